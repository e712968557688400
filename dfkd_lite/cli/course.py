"""Provides the command ``dfkd course``, which grades a folder of submissions."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InputError, choose

BUILT = Path("_build", "course")
SECONDS = {"cell": "a cell", "test": "a test", "total": "a submission in all"}


def add_commands(commands: Any, common: Callable[..., argparse.ArgumentParser]) -> None:
    """Add ``course`` to the command line; ``common`` makes the parser of one command."""
    course = commands.add_parser("course", help="grade assignments")
    actions = course.add_subparsers(required=True, metavar="ACTION")
    parser = common(actions, "grade", grade, "grade every notebook in a folder")
    parser.add_argument("folder", type=Path, help="folder of submissions (*.ipynb, at any depth)")
    parser.add_argument(
        "--assignment", required=True,
        help="an autograder.zip, or the name of an assignment that `make course` has made here",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("grades"), help="folder (%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at once (all cores)")
    help_text = "without the fence that Linux puts around submissions"
    parser.add_argument("--unfenced", action="store_true", help=help_text)
    for what, text in SECONDS.items():
        help_text = f"for {text} (the assignment's)"
        parser.add_argument(f"--{what}-seconds", type=float, metavar="S", help=help_text)


def grade(options: argparse.Namespace) -> None:
    """Grade a folder of submissions, and print one line for each: ``dfkd course grade FOLDER``."""
    from dfkd_course.grade import (
        grade_folder,
        require_fence,
    )  # imported late: dfkd_course stands on dfkd_lite
    from dfkd_course.reading import list_ignored, read_assignment

    if options.unfenced:
        print("Without the kernel's fence: only Python's audit hook stands around submissions.")
    else:
        require_fence()
        print("The fence: Landlock and seccomp, and Python's audit hook for its messages.")
    named = Path(options.assignment)
    path = named if named.suffix == ".zip" else _made_here(options.assignment)
    limits = {f"{what}_seconds": getattr(options, f"{what}_seconds") for what in SECONDS}
    assignment = read_assignment(path)
    grades = grade_folder(
        options.folder,
        assignment,
        options.out,
        options.jobs,
        unfenced=options.unfenced,
        **limits,
    )
    for ignored in list_ignored(options.folder):
        print(f"ignored: {ignored}")
    for graded in grades:
        print(f"{graded.name:30} {graded.points:5g} of {graded.of:g}   {'; '.join(graded.notes)}")
    print(f"{options.out / 'grades.csv'}; every mark explained: marks.csv and reports/ beside it")


def _made_here(name: str) -> Path:
    made = sorted(path.parent.name for path in BUILT.glob("*/autograder.zip"))
    if not made:
        raise InputError(f"There are no assignments in {BUILT}: call `make course` first.")
    return BUILT / choose("assignment", name, made) / "autograder.zip"
