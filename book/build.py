"""`make book`: execute what changed, build the pages, and say which file to open."""

import sys
import time
from pathlib import Path

from execute import ChapterError, execute_all
from pages import Folders, PagesError, build_pages


def build(root: Path) -> Path:
    """Bring the whole book up to date; returns the first page."""
    folders = Folders(root)
    notebooks = folders.notebooks()
    print(f"Executing {len(notebooks)} notebook{'s' * (len(notebooks) != 1)}:", flush=True)
    execute_all(notebooks, root, folders.executed)
    print("Building the pages ...", flush=True)
    built = build_pages(folders)
    print("  done" if built else "  unchanged", flush=True)
    return folders.html / "index.html"


def main() -> int:
    begun = time.monotonic()
    try:
        page = build(Path(__file__).resolve().parents[1])
    except (ChapterError, PagesError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. What was finished is kept; call make again to go on.", file=sys.stderr)
        return 130
    print(f"Ready after {time.monotonic() - begun:.0f} s. Open {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
