"""`make quick`: the tests of what changed, then those of what imports it, in under 90 seconds.

What lies nearest to the change is tested first. When the time is over the rest is passed over, and
said: `make test` runs all of it.
"""

import subprocess
import sys
import time
from pathlib import Path

from depends import Modules

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 70  # for tests; the rest of the 90 is for starting and for the last one to end
ALWAYS = ("tests/test_packaging.py",)  # quick, and about files that no module imports
MARKS = "not slow and not browser and not book"


def git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.splitlines()


def changed(base: str) -> list[str]:
    """The files that differ from a commit, those that git does not know yet among them."""
    return git("diff", "--name-only", base) + git("ls-files", "--others", "--exclude-standard")


def nearness(test: Path, files: set[Path], modules: Modules) -> int | None:
    """0: the test was changed, or is named after what was; else the imports between them."""
    if test in files or any(test.stem == f"test_{path.stem}" for path in files):
        return 0
    away = modules.needed_by(test.read_text(encoding="utf-8"))
    return min((steps for path, steps in away.items() if path in files), default=None)


def chosen(root: Path, names: list[str]) -> list[Path]:
    """The test files that some changed files concern, the nearest first."""
    files = {root / name for name in names}
    modules = Modules(root, tools=("book", "tests"))
    found = {}
    for test in sorted((root / "tests").glob("test_*.py")):
        near = nearness(test, files, modules)
        if near is not None:
            found[test] = near
    return sorted(found, key=lambda test: found[test])


def main() -> int:
    base = sys.argv[1] if len(sys.argv) > 1 else "HEAD"
    begun, names = time.time(), changed(base)
    if not names and base == "HEAD":
        print("Nothing differs from the last commit: the last commit is tested.")
        names = git("diff", "--name-only", "HEAD~1")
    tests = [str(path.relative_to(ROOT)) for path in chosen(ROOT, names)]
    tests += [name for name in ALWAYS if name not in tests]
    print(f"{len(names)} changed files concern {len(tests)} test files, the nearest first:")
    print(f"  {', '.join(Path(name).stem for name in tests)}", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup"]
    command += ["--no-loadscope-reorder", "-m", MARKS, "--until", str(begun + SECONDS)]
    code = subprocess.run([*command, *tests], cwd=ROOT).returncode
    return 0 if code == 5 else code  # 5: none of them is quick


if __name__ == "__main__":
    sys.exit(main())
