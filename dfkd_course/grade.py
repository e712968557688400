"""Grades a folder of submissions: it runs each in a process of its own and explains every mark.

``otter assign`` writes an assignment's tests into a zip file, hidden ones included. Otter's own
runner reads a pickle that the submission's process has written. Here, results come as text, the
process gets the tests only after the submission has run, and :mod:`fence` limits what it may do.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dfkd_course
import dfkd_lab
import dfkd_lite
from dfkd_lite.errors import InputError, check_range
from dfkd_lite.storage.files import write_bytes, write_json

from .kernel import missing
from .reading import (
    Assignment,
    Unreadable,
    find_submissions,
    printable,
    read_cells,
    read_content,
)

GIB = 1024**3
MOST_FILES = 10_000  # of one submission, folders too
STARTING = 300  # seconds that a worker may take to import
MOST_NOTES = 50  # of one run
LONGEST = 16 * 1024**2  # characters of a line; the worker's own lines are shorter


@dataclass(frozen=True)
class Limits:
    """Holds what one submission may use; the defaults are several times what our solutions need."""

    cell_seconds: float = 120
    test_seconds: float = 60
    total_seconds: float = 300
    memory: int = 4 * GIB  # bytes that the process allocates
    file_size: int = 64 * 1024**2  # bytes of any one file
    disk: int = GIB // 2  # bytes of all files together

    def __post_init__(self) -> None:
        for name in (
            "cell_seconds",
            "test_seconds",
            "total_seconds",
            "memory",
            "file_size",
            "disk",
        ):
            check_range(name, getattr(self, name), 0, above=True)


@dataclass
class Mark:
    """Holds the result of one test: its points, the most it can give, and why some are missing."""

    question: str
    points: float
    of: float
    why: str = ""


@dataclass
class Grade:
    """Holds the result of one submission."""

    name: str
    marks: list[Mark] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what happened on the way
    measured: dict[str, float] = field(default_factory=dict)  # numbers from tests, by name

    @property
    def points(self) -> float:
        return sum(mark.points for mark in self.marks)

    @property
    def of(self) -> float:
        return sum(mark.of for mark in self.marks)

    def of_question(self, question: str) -> float:
        """Return the submission's points in one question."""
        return sum(mark.points for mark in self.marks if mark.question == question)


# --- one submission -------------------------------------------------------------------------------


def grade(
    name: str, content: bytes, assignment: Assignment, limits: Limits, workers: Workers
) -> Grade:
    """Run a submission and its tests, in at most three tries.

    A cell in which the process dies or has to be stopped is left out of the next try, so that the
    questions before and after it still count.

    Raises:
        Unreadable: the content is no notebook of Python.
    """
    notebook = read_cells(content)
    result, cells = Grade(name, notes=notebook.notes), notebook.cells
    for _ in range(3):
        with workers.one() as worker:
            run = _Run(worker, cells, assignment, limits, workers.fenced)
        if run.begun:
            result.notes += [note for note in run.notes if note not in result.notes]
        if run.finished or (run.begun and run.cell is None):
            break
        cells = [(number, source) for number, source in cells if number != run.cell]
    result.marks = run.marks if run.finished else nothing(assignment, run.notes[-1])
    result.measured = run.measured
    return result


def without_points(name: str, assignment: Assignment, why: str) -> Grade:
    """Return the grade of a submission that could not be graded, for one reason."""
    return Grade(name, nothing(assignment, why), [why])


def nothing(assignment: Assignment, why: str) -> list[Mark]:
    """Return marks without points for all questions, for one reason."""
    totals = {name: _total(source) for name, source in assignment.tests.items()}
    return [Mark(name, 0, points, why) for name, points in totals.items()]


def _total(source: str) -> float:
    from otter.test_files.exception_test import ExceptionTestFile

    return sum(case.points for case in ExceptionTestFile.from_string(source).test_cases)


# The fork server of `multiprocessing` is not used: any process forked from it can end it with one
# byte, and it then starts again silently, with the instructor's environment.
class Worker:
    """Holds a process of :mod:`worker`, which imports everything once and runs job after job."""

    def __init__(self) -> None:
        self.home = tempfile.TemporaryDirectory(prefix="dfkd-course-")
        self.fresh = True  # its pipes hold nothing of an earlier job
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=self.home.name, env=_environment(self.home.name), start_new_session=True,
            encoding="utf-8", errors="replace",  # a submission may have written any bytes
        )  # fmt: skip

    def kill(self) -> None:
        """Kill the process and whatever it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(BrokenPipeError):  # a dead process has not read all
                pipe.close()  # type: ignore[union-attr]
        self.home.cleanup()


class Workers:
    """Holds idle workers; each is started when it is needed and kept for the next job.

    ``fenced`` says whether the kernel's fence stands around submissions; None: where it can.
    """

    def __init__(self, fenced: bool | None = None) -> None:
        self.fenced = missing() is None if fenced is None else fenced
        self.idle: list[Worker] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.idle:
            worker.close()

    @contextmanager
    def one(self) -> Iterator[Worker]:
        try:
            worker = self.idle.pop()
        except IndexError:
            worker = Worker()
        try:
            yield worker
        finally:
            if worker.fresh:
                self.idle.append(worker)
            else:
                worker.close()


class _Run:
    """Runs a submission once, and holds what the worker said of it."""

    def __init__(
        self,
        worker: Worker,
        cells: list[tuple[int, str]],
        assignment: Assignment,
        limits: Limits,
        fenced: bool,
    ) -> None:
        self.marks: list[Mark] = []
        self.measured: dict[str, float] = {}
        self.notes: list[str] = []
        self.begun = False  # the submission's process has said something
        self.process: int | None = None  # id of the submission's process, once it has said so
        self.cell: int | None = None  # number of the cell that runs, or that ended the process
        self.finished = False
        self.ended: int | None = None  # the exit status of the submission's process
        self.over = threading.Event()
        self.stopped = ""  # why the grader has ended the process
        self.worker, self.assignment = worker, assignment
        worker.fresh = False
        with _folder() as folder:
            _lay(folder, assignment.files)
            job = {"token": secrets.token_hex(16), "folder": folder, "cells": cells}
            watch = threading.Thread(target=self._watch, args=(Path(folder), limits))
            watch.start()
            try:
                self._talk(job | asdict(limits) | {"fenced": fenced})
            finally:
                self.over.set()
                watch.join()
                # it still answers, and what it started is gone, whatever was said
                worker.fresh = self.ended is not None and not _children(worker.process.pid)
                if not worker.fresh:
                    worker.kill()
        if not self.finished:
            self._say_why()

    def _watch(self, folder: Path, limits: Limits) -> None:
        """End the process when its time is over or its files are too large together."""
        end = time.monotonic() + STARTING
        began = False
        while not self.over.wait(0.25):
            if self.begun and not began:  # what the worker needs to import is not the submission's
                began, end = True, time.monotonic() + limits.total_seconds
            if time.monotonic() > end:
                self._stop(f"after {limits.total_seconds if began else STARTING:g} s in all")
            elif not _within(folder, limits.disk):
                self._stop("by its files, too many or too large")

    def _stop(self, why: str) -> None:
        self.stopped = self.stopped or why
        if self.process in _children(self.worker.process.pid):
            with suppress(ProcessLookupError):
                os.kill(self.process, signal.SIGKILL)
        else:
            self.worker.kill()

    def _talk(self, job: dict[str, Any]) -> None:
        process: Any = self.worker.process
        try:
            print(json.dumps(job), file=process.stdin, flush=True)
            for line in iter(lambda: process.stdout.readline(LONGEST), ""):
                answer = _answer(line, job["token"])
                if answer is None:
                    continue
                if "ended" in answer:
                    self.ended = answer["ended"]
                    return
                if answer.get("ready"):
                    self.cell = None
                    _lay(job["folder"], self.assignment.withheld)
                    print(json.dumps(self.assignment.tests), file=process.stdin, flush=True)
                self._hear(answer)
        except BrokenPipeError:  # the process is gone; what it said until then counts
            pass

    def _hear(self, answer: dict[str, Any]) -> None:
        """Take one answer; the submission may have written it, so that nothing is relied on."""
        self.begun = True
        with suppress(AttributeError, KeyError, TypeError, ValueError, OverflowError):
            if "process" in answer:
                self.process = answer["process"]
            elif "failed" in answer:
                self._note(f"cell {int(answer['cell'])}: {answer['failed']}")
            elif "left_out" in answer:
                where = f"cell {int(answer['cell'])}" if answer["cell"] else "in the tests"
                self._note(f"{where}: left out {answer['left_out'][:100]}")
            elif "cell" in answer:
                self.cell = int(answer["cell"])
            elif answer.get("question") in self.assignment.tests:
                of, why = float(answer["points"]), printable(str(answer["why"] or ""))
                self.marks.append(Mark(answer["question"], 0 if why else of, of, why))
            elif answer.get("done"):
                measured = {printable(k): float(v) for k, v in answer["measured"].items()}
                for what in answer["refused"]:
                    self._note(f"tried to {what}: refused")
                self.measured = {k: v for k, v in measured.items() if math.isfinite(v)}
                self.finished = True

    def _note(self, text: str) -> None:
        if len(self.notes) < MOST_NOTES and printable(text) not in self.notes:
            self.notes.append(printable(text))

    def _say_why(self) -> None:
        where = "its tests" if self.cell is None else f"cell {self.cell}"
        if self.stopped:
            self.notes.append(f"stopped in {where} {self.stopped}")
        else:
            code = self.worker.process.returncode if self.ended is None else self.ended
            self.notes.append(f"the process ended in {where} (exit {code})")


@contextmanager
def _folder() -> Iterator[str]:
    """Make a folder for one submission; at the end remove it, however deep and closed it is."""
    folder = tempfile.mkdtemp(prefix="dfkd-course-")
    try:
        yield folder
    finally:
        for command in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            subprocess.run([*command, folder], stderr=subprocess.DEVNULL, check=False)


def _within(folder: Path, most: int) -> bool:
    """Return whether a folder's files are few, and smaller than so many bytes together."""
    size = number = 0
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    number += 1
                    if number > MOST_FILES:
                        return False
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        size += entry.stat(follow_symlinks=False).st_size
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # folders in folders, without an end
                return False
    return size <= most


def _children(process: int) -> list[int]:
    """List the processes that a process has started and not yet seen end (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            if int(path.read_bytes().rpartition(b")")[2].split()[1]) == process:
                found.append(int(path.parent.name))
    return found


def _lay(folder: str, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        Path(folder, name).write_bytes(content)


def _answer(line: str, token: str) -> dict[str, Any] | None:
    """Parse an answer of the worker; return None for a line without the job's token."""
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) and answer.pop("token", None) == token else None


def _environment(home: str) -> dict[str, str]:
    """Return a worker's environment: nothing private, and one thread, as jobs run side by side."""
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "PYTHONPATH", "DFKD_DATA")}
    own = {"HOME": home, "TMPDIR": home, "IPYTHONDIR": home, "MPLBACKEND": "Agg"}
    fonts = os.environ.get("MPLCONFIGDIR")  # without it matplotlib lists all fonts again
    if fonts:
        own["MPLCONFIGDIR"] = fonts
    return kept | own | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


# --- a folder -------------------------------------------------------------------------------------


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
        parts = [assignment.key.encode(), repr(limits).encode(), content, *_code()]
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
