"""Reads autograders, and the cells of submissions."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

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


#: Kernels of other languages, for a notebook that names no language.
OTHER_KERNELS = {"ir": "R", "bash": "Bash", "javascript": "JavaScript", "octave": "Octave"}
#: Folders whose notebooks are nobody's submission: copies of Jupyter, and what macOS adds to a zip.
NOT_THEIRS = {".ipynb_checkpoints": "a copy of Jupyter's", "__MACOSX": "added by macOS"}
LARGEST = 64 * 1024**2  # bytes of a notebook; with its figures a full one has some hundred kB


def find_submissions(folder: Path) -> dict[str, Path]:
    """Find all that is named like a notebook below a folder, readable or not.

    Each name is the path in the folder without the ending, in letters that any file can hold; no
    two are alike.

    Raises:
        InputError: there is no such folder, or no notebook in it.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.")
    found: dict[str, Path] = {}
    for path in _named_like_notebooks(folder):
        if _passed_over(path, folder) is None:
            name = printable(path.relative_to(folder).with_suffix("").as_posix())
            names = (f"{name} ({n})" if n > 1 else name for n in count(1))
            found[next(n for n in names if n not in found)] = path
    if not found:
        raise InputError(f"There are no notebooks (*.ipynb) in {folder}.")
    return found


def list_ignored(folder: Path) -> list[str]:
    """List what looks like a notebook and is no submission, each with the reason."""
    about = ((path, _passed_over(path, folder)) for path in _named_like_notebooks(folder))
    return [f"{printable(str(p.relative_to(folder)))}: {why}" for p, why in about if why]


def printable(text: str) -> str:
    """Replace what a terminal obeys and a file cannot hold (control characters, half a character).

    A line break becomes a space.
    """
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}"
                   for c in text)  # fmt: skip


def _named_like_notebooks(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.suffix.lower() == ".ipynb"]


def _passed_over(path: Path, folder: Path) -> str | None:
    """Return why a path is nobody's submission, or None."""
    for part in path.relative_to(folder).parts[:-1]:
        if part in NOT_THEIRS:
            return NOT_THEIRS[part]
    if path.name.startswith("._"):
        return NOT_THEIRS["__MACOSX"]
    if path.is_dir() and any(p.is_file() for p in _named_like_notebooks(path)):
        return "a folder, whose notebooks are read"
    return None


class Unreadable(Exception):
    """Raised for a submission that is no Python notebook; the message says what it is."""


@dataclass(frozen=True)
class Notebook:
    """Holds the code cells of a submission by number, from 1 over all its cells, and remarks."""

    cells: list[tuple[int, str]]
    notes: list[str]


def read_content(path: Path, folder: Path) -> bytes:
    """Read a submission's bytes.

    Raises:
        Unreadable: it is no file, a link that leads out of ``folder``, too large, or refused.
    """
    try:
        if path.is_symlink() and not path.exists():
            raise Unreadable("a link to nothing")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise Unreadable("a link to a file outside the folder of submissions")
        if path.is_dir():
            raise Unreadable("a folder, not a notebook")
        if not path.is_file():  # reading a pipe would never end
            raise Unreadable("not a file")
        if path.stat().st_size > LARGEST:
            raise Unreadable(f"larger than {LARGEST // 1024**2} MiB")
        return path.read_bytes()
    except (OSError, RuntimeError) as error:  # a circle of links is a RuntimeError
        why = getattr(error, "strerror", None) or "a circle of links"
        raise Unreadable(f"the file cannot be read: {why}") from None


def read_cells(content: bytes) -> Notebook:
    """Read the code cells of a submission, of nbformat 2 to 4.

    A cell that is none costs only itself, and a remark says so.

    Raises:
        Unreadable: the file is no notebook, or not one of Python.
    """
    try:
        notebook = json.loads(content)
        old = "worksheets" in notebook
        sheets = notebook["worksheets"] if old else [notebook]
        cells = [cell for sheet in sheets for cell in sheet["cells"]]
        about = notebook.get("metadata")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Unreadable("not a notebook: the file cannot be read as one") from None
    notes = ["written in an old format (nbformat 3 or earlier)"] if old else []
    notes += _check_language(about)
    found = []
    for number, cell in enumerate(cells, start=1):
        kind = cell.get("cell_type") if isinstance(cell, dict) else None
        if kind not in ("code", "markdown", "raw", "heading"):
            notes.append(f"cell {number}: not a cell of a notebook, left out")
        elif kind == "code":
            try:
                found.append((number, "".join(cell["input" if old else "source"])))
            except (KeyError, TypeError):
                notes.append(f"cell {number}: holds no text, left out")
    return Notebook(found, notes)


def _check_language(metadata: Any) -> list[str]:
    """Return a remark on a kernel that is not known; refuse a language other than Python."""

    def text(group: str, key: str) -> str:
        about = metadata.get(group) if isinstance(metadata, dict) else None
        value = about.get(key) if isinstance(about, dict) else None
        return value if isinstance(value, str) else ""

    kernel = text("kernelspec", "name")
    language = text("kernelspec", "language") or text("language_info", "name")
    if not language and kernel in OTHER_KERNELS:
        language = OTHER_KERNELS[kernel]
    if language and not language.lower().startswith(("python", "ipython")):
        raise Unreadable(f"a notebook of {printable(language)}, not of Python")
    if kernel and not language and not kernel.lower().startswith("python"):
        return [f"the kernel {printable(kernel)} is not known: taken for Python"]
    return []
