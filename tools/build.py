"""`make book`: execute what changed, build the pages, and say which file to open."""

import argparse
import json
import sys
import time
from pathlib import Path

from execute import TIMES, ChapterError, Record, execute_all
from generated import was_busy
from pages import Folders, PagesError, build_pages


def build(root: Path, keep_times: bool = False) -> Path:
    """Bring the whole book up to date; returns the first page."""
    folders = Folders(root)
    notebooks = folders.notebooks()
    print(f"Executing what changed of {len(notebooks)} notebooks:", flush=True)
    records = execute_all(notebooks, root, folders.executed)
    if keep_times:
        write_times(records)
    built = build_pages(folders)
    print("  done" if built else "The pages are unchanged.", flush=True)
    return folders.html / "index.html"


def write_times(records: list[Record]) -> None:
    """Keep the chapters' seconds, by which a first build on another machine says what is left.

    Raises:
        ChapterError: the machine was busy with other work.
    """
    busy = [record.notebook for record in records if was_busy(record)]
    if busy:
        raise ChapterError(f"The machine was busy: no times are kept ({', '.join(busy)}).")
    where = records[0].environment
    known = {
        "machine": f"{where['cores']} cores, {where['machine']}",
        "beside": records[0].beside,
        "seconds": {Path(record.notebook).stem: record.seconds for record in records},
    }
    TIMES.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep-times", action="store_true", help="write tools/times.json anew")
    options = parser.parse_args()
    begun = time.monotonic()
    try:
        page = build(Path(__file__).resolve().parents[1], options.keep_times)
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
