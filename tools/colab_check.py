"""Executes every notebook in a clean environment of Colab's package versions (`make colab`).

It installs the pins of tests/colab-pins.txt, then this package as the notebooks' first cells would.
It fails where that changes a version that was there, or where a notebook fails. It is slow and
large (torch again): run it before a release, not for every change.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import colab
import course
import yaml

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "tests" / "colab-pins.txt"
VENV = ROOT / ".cache" / "colab"
PYTHON = VENV / "bin" / "python"
LIMIT = 1200  # seconds for one notebook

# What Colab's own front end does with a notebook: run its cells in a kernel, in an empty folder.
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
source, target, folder = sys.argv[1:]
notebook = nbformat.read(source, as_version=4)
client = NotebookClient(notebook, timeout=600, kernel_name="python3",
                        resources={"metadata": {"path": folder}})
try:
    client.execute()
finally:
    nbformat.write(notebook, target)
"""


def pip(*arguments: str) -> str:
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def versions() -> dict[str, str]:
    return {p["name"].lower(): p["version"] for p in json.loads(pip("list", "--format=json"))}


def changed(before: dict[str, str], after: dict[str, str]) -> dict[str, tuple[str, str | None]]:
    """Return packages that were there and have changed: name -> (version before, after)."""
    return {n: (v, after.get(n)) for n, v in before.items() if after.get(n) != v}


def make_environment() -> None:
    if not PYTHON.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    print("Installing Colab's versions (torch is large) ...", flush=True)
    pip("install", "--quiet", "-r", str(PINS))
    pip("uninstall", "--quiet", "--yes", "dfkd_lite", "dfkd_lite_networks")
    before = versions()
    print("Installing dfkd_lite[export] ...", flush=True)
    pip("install", "--quiet", f"dfkd_lite[export] @ {ROOT.as_uri()}")
    pip("install", "--quiet", f"dfkd_lite_networks @ {(ROOT / 'data').as_uri()}")
    after = versions()
    if broken := changed(before, after):
        sys.exit(f"Installing the package changes what Colab has: {broken}")
    print(f"  added, nothing changed: {', '.join(sorted(after.keys() - before.keys()))}")
    subprocess.run(
        [str(PYTHON), "-m", "ipykernel", "install", "--prefix", str(VENV), "--name", "python3"],
        check=True,
        capture_output=True,
    )


def execute(notebook: Path, out: Path, *beside: Path) -> bool:
    """Execute a notebook in a folder of its own, in which only what belongs beside it lies."""
    folder = out / notebook.stem
    folder.mkdir(parents=True, exist_ok=True)
    for path in beside:
        shutil.copy(path, folder)
    begun = time.monotonic()
    command = [str(PYTHON), "-c", EXECUTE, str(notebook), str(out / notebook.name), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    good = done.returncode == 0
    print(f"  {notebook.name}: {'done' if good else 'FAILED'} in {time.monotonic() - begun:.0f} s")
    if not good:
        print("\n".join(done.stderr.strip().splitlines()[-15:]), flush=True)
    return good


def assignment_works(master: Path, out: Path) -> bool:
    """Return whether an assignment's solution runs, and every check says that it is right."""
    install = colab.install_cell(yaml.safe_load((ROOT / "_config.yml").read_text("utf-8")))
    made = course.make(master, out / "course", install)
    beside = [path for path in made.student.parent.iterdir() if path.suffix != ".ipynb"]
    if not execute(made.solution, out, *beside):
        return False
    text = (out / made.solution.name).read_text(encoding="utf-8")
    right, wrong = text.count("✓ q"), text.count("✗ q")
    print(f"    {right} checks say right, {wrong} say wrong", flush=True)
    return right > 0 and wrong == 0


def main() -> int:
    make_environment()
    out = ROOT / "_build" / "colab"
    print("Executing the notebooks:", flush=True)
    good = [execute(path, out) for path in sorted((ROOT / "book").glob("*.ipynb"))]
    print("Executing the assignments' solutions:", flush=True)
    good += [assignment_works(master, out) for master in course.masters()]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
