"""Makes of each assignment what students get, its solution, and what grades it (`make course`).

The masters in book/assignments/ are in the format of Otter Assign, which takes solutions and hidden
tests out. This program then takes out of the notebooks what Otter leaves of itself: on Colab,
Otter would replace packages, and the students' checks come from dfkd_course.
"""

import io
import json
import re
import shutil
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import colab
import yaml
from withheld import withheld_seed, write_archive

ROOT = Path(__file__).resolve().parents[1]
MASTERS = ROOT / "book" / "assignments"
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # date of all files in a zip: the same master gives the same bytes


class CourseError(Exception):
    """Raised for a master that cannot be made into an assignment; the message says why."""


@dataclass(frozen=True)
class Made:
    """Holds where the parts of one assignment lie."""

    student: Path
    solution: Path
    autograder: Path
    handout: Path


def masters(folder: Path = MASTERS) -> list[Path]:
    return sorted(folder.glob("*.ipynb"))


def place(name: str, out: Path) -> Made:
    folder = out / name
    notebook = f"{name}.ipynb"
    return Made(
        folder / "student" / notebook,
        folder / "solution" / notebook,
        folder / "autograder.zip",
        folder / f"{name}.zip",
    )


def make(master: Path, out: Path, install: dict) -> Made:
    """Make one assignment, in the folder of its name below `out`."""
    made = place(master.stem, out)
    with tempfile.TemporaryDirectory() as folder:
        dist, copy = Path(folder, "dist"), Path(folder, master.name)
        for path in (master, *master.parent.glob("*.safetensors")):
            shutil.copy(path, folder)
        hidden = config(master).get("autograder_files", [])
        for name in hidden:
            write_archive(Path(folder, name), withheld_seed())
        assign(copy, dist)
        student = cleaned(dist / "student" / master.name, install, solution=False)
        solution = cleaned(dist / "autograder" / master.name, install, solution=True)
        (archive,) = (dist / "autograder").glob("*.zip")
        files = {p.name: p.read_bytes() for p in (dist / "student").iterdir() if p != archive}
        grader = autograder(archive, master, hidden)
    files[master.name] = student
    for path, content in (
        (made.student, student),
        (made.solution, solution),
        (made.autograder, grader),
        (made.handout, zipped(files)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for name, content in files.items():
        (made.student.parent / name).write_bytes(content)
    return made


def assign(master: Path, dist: Path) -> None:
    """Run Otter Assign without its tests of the solution, which the grader does better."""
    from otter.assign import main as otter_assign  # takes seconds, and imports many packages

    try:
        otter_assign(str(master), str(dist), no_run_tests=True)
    except Exception as error:  # Otter has no class of its own for a bad master
        raise CourseError(f"{master.name}: otter assign failed. {error}") from error


def cleaned(path: Path, install: dict, solution: bool) -> bytes:
    """Return a notebook without Otter's own cells, and with the cell that installs on Colab."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["metadata"].pop("otter", None)
    notebook["metadata"].pop("course", None)
    kept = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if source.startswith("grader.check("):
            continue
        source = re.sub(r"<!-- (BEGIN|END) QUESTION -->\s*", "", source)
        if solution:
            source = without_marks(source)
        if not source.strip():
            continue
        tags = {"otter_answer_cell": "answer", "otter_assign_solution_cell": "answer"}
        found = [tags.get(tag, tag) for tag in cell["metadata"].get("tags", [])]
        metadata = {"tags": found} if found else {}
        lines = source.splitlines(keepends=True)
        name = f"cell-{len(kept)}"  # Otter's own names are random
        new = {**cell, "id": name, "source": lines, "metadata": metadata}
        if cell["cell_type"] == "code":
            new |= {"outputs": [], "execution_count": None}
        kept.append(new)
    notebook = colab.stamped({**notebook, "cells": kept}, install)
    return (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()


def without_marks(source: str) -> str:
    """Return a solution's code without the marks that told Otter what to take out."""
    source = re.sub(r"(?ms)^[ \t]*(\"\"\"|''') # BEGIN PROMPT.*?# END PROMPT\n?", "", source)
    source = re.sub(r"(?m)^[ \t]*# (BEGIN|END) SOLUTION( NO PROMPT)?[ \t]*\n?", "", source)
    return re.sub(r"(?m)[ \t]*# SOLUTION( NO PROMPT)?[ \t]*$", "", source).rstrip("\n")


def autograder(archive: Path, master: Path, hidden: list[str]) -> bytes:
    """Return Otter's zip, which Gradescope takes as it is, with what our grader wants to know."""
    with zipfile.ZipFile(archive) as found:
        files = {name: found.read(name) for name in found.namelist()}
    about = {
        "name": title(master),
        "by_hand": by_hand(master),
        "withheld": hidden,
        "limits": limits(master),
    }
    files["course.json"] = json.dumps(about, indent=1).encode()
    return zipped(files)


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, LONG_AGO), files[name])
    return buffer.getvalue()


def title(master: Path) -> str:
    first = next(c for c in _cells(master) if c["cell_type"] == "markdown")
    return "".join(first["source"]).splitlines()[0].lstrip("# ")


def config(master: Path) -> dict:
    """Read the assignment's settings for Otter from its first cell."""
    return yaml.safe_load("".join(_cells(master)[0]["source"]))


def limits(master: Path) -> dict[str, float]:
    """Read what one submission may use, where the grader's own limits do not fit."""
    metadata = json.loads(master.read_text(encoding="utf-8"))["metadata"]
    return metadata.get("course", {}).get("limits", {})


def by_hand(master: Path) -> dict[str, float]:
    """Return the questions whose answers a person reads, with their points."""
    found = {}
    for cell in _cells(master):
        source = "".join(cell["source"])
        if cell["cell_type"] == "raw" and source.startswith("# BEGIN QUESTION"):
            about = yaml.safe_load(source)
            if about.get("manual"):
                found[about["name"]] = about["points"]
    return found


def _cells(master: Path) -> list[dict]:
    return json.loads(master.read_text(encoding="utf-8"))["cells"]


def main() -> int:
    begun = time.monotonic()
    out = ROOT / "_build" / "course"
    install = colab.install_cell(yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8")))
    try:
        for master in masters():
            print(f"  {make(master, out, install).handout.relative_to(ROOT)}", flush=True)
    except CourseError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(f"Ready after {time.monotonic() - begun:.0f} s. Hand out the zips; beside each lie its")
    print("solution and autograder.zip: .venv/bin/dfkd course grade FOLDER --assignment NAME")
    return 0


if __name__ == "__main__":
    sys.exit(main())
