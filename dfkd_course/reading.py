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
    """What grades one assignment: tests by question, and the questions that a person reads."""

    name: str
    tests: dict[str, str]
    by_hand: dict[str, float]  # points of the questions whose answers are read by a person
    files: dict[str, bytes]  # that lie beside a student's notebook
    withheld: dict[str, bytes]  # that only the tests get
    limits: dict[str, float]  # its own, where the defaults do not fit

    @property
    def key(self) -> str:
        """Changes where a test does."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


def read_assignment(path: Path) -> Assignment:
    """An ``autograder.zip`` that ``make course`` wrote.

    Raises:
        InputError: no such file, or not such a file.
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
    """All notebooks below a folder, by a name: their path in it, without the ending.

    Raises:
        InputError: no such folder, or no notebook in it.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.")
    paths = [p for p in sorted(folder.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
    if not paths:
        raise InputError(f"There are no notebooks (*.ipynb) in {folder}.")
    return {p.relative_to(folder).with_suffix("").as_posix(): p for p in paths}


class Unreadable(Exception):
    """A submission that is no notebook of Python; the message says what it is."""


def read_cells(path: Path) -> list[tuple[int, str]]:
    """The code cells of a submission, numbered from 1 over all its cells.

    Raises:
        Unreadable: not a notebook, or not of Python.
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
