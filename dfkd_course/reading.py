"""Reads autograders, and the cells of submissions."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from dfkd_lite.errors import InputError


@dataclass(frozen=True)
class Assignment:
    """Holds what grades one assignment: tests by question, and questions that a person reads."""

    name: str
    tests: dict[str, str]
    by_hand: dict[str, float]  # points of the questions whose answers are read by a person
    files: dict[str, bytes]  # contents of the files beside a student's notebook
    withheld: dict[str, bytes]  # contents of the files that only the tests get
    limits: dict[str, float]  # limits that replace the grader's defaults

    @property
    def key(self) -> str:
        """Return a hash that changes when a test does, or anything else here."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


def read_assignment(path: Path) -> Assignment:
    """Read an ``autograder.zip`` that ``make course`` wrote.

    Raises:
        InputError: there is no such file, or it is no autograder of this course.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}. `make course` makes the autograders.")
    try:
        with zipfile.ZipFile(path) as archive:
            about = json.loads(archive.read("course.json"))
            names = sorted(n for n in archive.namelist() if re.fullmatch(r"tests/\w+\.py", n))
            tests = {Path(n).stem: archive.read(n).decode() for n in names}
            given = [n for n in archive.namelist() if re.fullmatch(r"files/[\w.-]+", n)]
            files = {Path(n).name: archive.read(n) for n in given}
            withheld = {name: files.pop(name) for name in about["withheld"]}
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise InputError(f"{path} is no autograder of this course: {error}.") from None
    return Assignment(about["name"], tests, about["by_hand"], files, withheld, about["limits"])


def find_submissions(folder: Path) -> dict[str, Path]:
    """Find all notebooks below a folder; each name is the path in it, without the ending.

    Raises:
        InputError: there is no such folder, or no notebook in it.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.")
    paths = [p for p in sorted(folder.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
    if not paths:
        raise InputError(f"There are no notebooks (*.ipynb) in {folder}.")
    return {p.relative_to(folder).with_suffix("").as_posix(): p for p in paths}


class Unreadable(Exception):
    """Raised for a submission that is no Python notebook; the message says what it is."""


def read_cells(path: Path) -> list[tuple[int, str]]:
    """Read the code cells of a submission, numbered from 1 over all its cells.

    Raises:
        Unreadable: the file is no notebook, or not one of Python.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = notebook["cells"]
        found = [
            (number, "".join(cell["source"]))
            for number, cell in enumerate(cells, start=1)
            if cell["cell_type"] == "code"
        ]
        language = notebook.get("metadata", {}).get("kernelspec", {}).get("language", "python")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Unreadable("not a notebook: the file cannot be read as one") from None
    if language.lower() != "python":
        raise Unreadable(f"a notebook of {language}, not of Python")
    return found
