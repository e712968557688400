"""Grades a folder of submissions: writes tables and reports as results come, and keeps them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import dfkd_course
import dfkd_lab
import dfkd_lite
from dfkd_lite.errors import InputError, check_range
from dfkd_lite.storage.files import write_bytes, write_json

from .grade import Grade, Limits, Mark, Workers, grade, without_points
from .kernel import missing
from .reading import Assignment, Unreadable, find_submissions, printable, read_content


def require_fence() -> None:
    """Refuse to grade where Linux itself cannot keep submissions in.

    Raises:
        InputError: this machine has no fence; says why.
    """
    lacking = missing()
    if lacking is not None:
        raise InputError(
            f"This machine has no fence for submissions: {lacking}. Grade on a newer Linux, or in "
            "a container with `--unfenced`: then only Python's own audit hook stands around them."
        )


def grade_folder(
    folder: Path,
    assignment: Assignment,
    out: Path,
    jobs: int = 2,
    workers: Workers | None = None,
    unfenced: bool = False,
    **limits: float | None,
) -> list[Grade]:
    """Grade every notebook in a folder and write ``grades.csv``, ``marks.csv`` and a report each.

    Results are kept in ``out``: a second call grades only what is new or has changed. A caller that
    grades several folders can give ``workers``: starting one takes ten seconds. ``limits`` are
    those of :class:`Limits`; None means the assignment's own, or else the default. ``unfenced``
    grades without the kernel's fence, for machines that have none.

    Raises:
        InputError: nothing to grade, a number out of range, no Otter installed, Windows, no fence.
    """
    from tqdm.auto import tqdm

    if find_spec("resource") is None:
        raise InputError(
            "Grading needs Linux or macOS, which can limit what a submission's process uses; "
            "on Windows, grade in its Subsystem for Linux (WSL)."
        )
    if find_spec("otter") is None:
        raise InputError("Grading needs otter-grader: pip install 'dfkd_lite[course]'.")
    check_range("jobs", jobs, 1)
    if workers is None and not unfenced:
        require_fence()
    own = {name: value for name, value in limits.items() if value is not None}
    allowed = Limits(**(assignment.limits | own))  # type: ignore[arg-type]
    submissions = find_submissions(folder)
    kept = out / "kept"
    grades: dict[str, Grade] = {}
    place = Workers(fenced=not unfenced) if workers is None else nullcontext(workers)
    with place as ready, ThreadPoolExecutor(jobs) as pool:
        waiting = {
            pool.submit(_graded, name, path, folder, assignment, allowed, kept, ready): name
            for name, path in submissions.items()
        }
        try:
            for done in tqdm(as_completed(waiting), total=len(waiting), desc="grading"):
                name = waiting[done]
                grades[name] = done.result()
                _write_report(grades[name], assignment, out)
                _write({name: grades.get(name) for name in submissions}, assignment, out)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [grades[name] for name in submissions]


@cache
def _code() -> list[bytes]:
    """Read the code that grades: when it changes, everything is graded again."""
    folders = (Path(package.__path__[0]) for package in (dfkd_lite, dfkd_lab, dfkd_course))
    return [p.read_bytes() for folder in folders for p in sorted(folder.rglob("*.py"))]


def _graded(
    name: str,
    path: Path,
    folder: Path,
    assignment: Assignment,
    limits: Limits,
    kept: Path,
    workers: Workers,
) -> Grade:
    """Return the grade of an earlier call if nothing has changed, else grade now.

    Whatever goes wrong with a submission is its own grade and nobody else's.
    """
    try:
        content = read_content(path, folder)
        how = repr((limits, workers.fenced)).encode()
        parts = [assignment.key.encode(), how, content, *_code()]
        key = hashlib.sha256(b"\0".join(parts)).hexdigest()
        file = kept / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
        old = _kept(name, file, key)
        if old is None:
            old = grade(name, content, assignment, limits, workers)
            write_json(file, {"key": key, **asdict(old)})
        return old
    except Unreadable as error:
        return without_points(name, assignment, str(error))
    except Exception as error:
        why = printable(f"the grader failed with {type(error).__name__}: {error}")
        return without_points(name, assignment, f"{why[:300]}; look at it by hand")


def _kept(name: str, file: Path, key: str) -> Grade | None:
    try:
        old = json.loads(file.read_text(encoding="utf-8"))
        if old["key"] == key:
            marks = [Mark(**mark) for mark in old["marks"]]
            return Grade(name, marks, old["notes"], old["measured"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _write(grades: dict[str, Grade | None], assignment: Assignment, out: Path) -> None:
    """Write the tables; a submission whose grade is None has not been graded yet."""
    questions = list(assignment.tests)
    by_hand = [f"{name} (by hand, of {points:g})" for name, points in assignment.by_hand.items()]
    head = ["submission", *questions, "points", "of", *by_hand, "notes"]
    known = [g for g in grades.values() if g is not None]
    wide = {
        g.name: [
            *(g.name, *(f"{g.of_question(q):g}" for q in questions)),
            *(f"{g.points:g}", f"{g.of:g}", *[""] * len(by_hand), "; ".join(g.notes)),
        ]
        for g in known
    }
    later = [""] * (len(head) - 2)
    rows = [wide.get(name, [name, *later, "not graded yet"]) for name in grades]
    _write_text(out / "grades.csv", _csv([head, *rows]))
    long = [
        [g.name, m.question, f"{m.points:g}", f"{m.of:g}", m.why] for g in known for m in g.marks
    ]
    _write_text(out / "marks.csv", _csv([["submission", "question", "points", "of", "why"], *long]))
    if any(g.measured for g in known):
        _write_text(out / "leaderboard.csv", _csv(leaderboard(known)))


def _write_report(graded: Grade, assignment: Assignment, out: Path) -> None:
    """Write a student's report; where its name is no name of a file, one made of a hash."""
    text = report(graded, assignment)
    try:
        _write_text(out / "reports" / f"{graded.name}.md", text)
    except InputError:
        short = hashlib.sha256(graded.name.encode()).hexdigest()[:16]
        _write_text(out / "reports" / f"{short}.md", text)


def _write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def leaderboard(grades: list[Grade]) -> list[list[str]]:
    """Return a table of what the tests measured: best accuracy first, those without one last."""
    keys = sorted({key for g in grades for key in g.measured})
    ordered = sorted(grades, key=lambda g: -g.measured.get("accuracy", -1.0))
    lines = [
        [g.name, *(f"{g.measured[k]:g}" if k in g.measured else "" for k in keys)] for g in ordered
    ]
    return [["submission", *keys], *lines]


def _csv(lines: Iterable[Iterable[str]]) -> str:
    """Write a table as text; a cell that a spreadsheet takes for a formula gets an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for line in lines:
        writer.writerow([f"'{cell}" if cell[:1] in ("=", "+", "-", "@") else cell for cell in line])
    return text.getvalue()


def report(graded: Grade, assignment: Assignment) -> str:
    """Write what a student gets back, in Markdown: every mark, and why points are missing."""
    lines = [f"# {assignment.name}: {graded.points:g} of {graded.of:g} points", ""]
    for question in assignment.tests:
        marks = [mark for mark in graded.marks if mark.question == question]
        lines.append(
            f"## {question}: {sum(m.points for m in marks):g} of {sum(m.of for m in marks):g}"
        )
        lines += [f"- {m.points:g} of {m.of:g}: {m.why or 'right'}" for m in marks] + [""]
    for question, points in assignment.by_hand.items():
        lines += [f"## {question}: of {points:g}", "- read by a person", ""]
    if graded.notes:
        lines += ["## What happened", *(f"- {note}" for note in graded.notes), ""]
    return "\n".join(lines)
