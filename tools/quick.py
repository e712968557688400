"""Chooses what `make quick` tests: what changed, then what imports it, in under 90 seconds.

It prints pytest's arguments, the tests nearest to the change first. When the time is over the
rest is skipped, which pytest says; `make test` runs all of it.
"""

import subprocess
import sys
import time
from pathlib import Path

from depends import Modules

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 58  # for tests; the rest of the 90 is for starting, and for the last one to end
ALWAYS = ("tests/test_packaging.py",)  # quick, and about files that no module imports


def git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.splitlines()


def changed(base: str) -> list[str]:
    """List the files that differ from a commit, with those that git does not know yet."""
    return git("diff", "--name-only", base) + git("ls-files", "--others", "--exclude-standard")


def own_test(path: Path) -> str:
    """Return the name of the test file that is about a file."""
    return "test_chapters" if path.suffix == ".ipynb" else f"test_{path.stem}"


def reads(test: str, path: Path) -> bool:
    """Return whether a test's text names the folder of ``data/`` that holds a file."""
    data = ROOT / "data"
    return data in path.parents and f'"{path.relative_to(data).parts[0]}"' in test


def nearness(test: Path, files: set[Path], modules: Modules) -> int | None:
    """Return 0 for a test that changed, is about a change or reads it; else the imports between."""
    text = test.read_text(encoding="utf-8")
    if any(test == path or test.stem == own_test(path) or reads(text, path) for path in files):
        return 0
    away = modules.needed_by(text)
    return min((steps for path, steps in away.items() if path in files), default=None)


def chosen(root: Path, names: list[str]) -> list[Path]:
    """Return the test files that some changed files concern, the nearest first."""
    files = {root / name for name in names}
    modules = Modules(root, tools=("tools", "tests"))
    tests = sorted((root / "tests").glob("test_*.py"))
    found = {test: nearness(test, files, modules) for test in tests}
    return sorted((t for t, near in found.items() if near is not None), key=lambda t: found[t])


def main() -> None:
    base = sys.argv[1] if len(sys.argv) > 1 else "HEAD"
    begun, names = time.time(), changed(base)
    if not names and base == "HEAD":
        say("Nothing differs from the last commit: the last commit is tested.")
        names = git("diff", "--name-only", "HEAD~1")
    tests = [str(path.relative_to(ROOT)) for path in chosen(ROOT, names)]
    tests += [name for name in ALWAYS if name not in tests]
    say(f"{len(names)} changed files concern {len(tests)} test files, the nearest first:")
    say(f"  {', '.join(Path(name).stem for name in tests)}")
    print("--until", round(begun + SECONDS), *tests)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
