"""Runs submissions behind the fence, then their tests, in the process that :mod:`grade` starts.

The process imports once and then forks for each job, since importing takes longer than most
submissions do. A job is a line of JSON. Its process says its id, runs the cells, says ``ready``,
and only then gets the tests as a second line, so that no cell can read them. Each answer is a line
of JSON that begins with the job's token; whatever the submission prints is dropped.
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import os
import re
import signal
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, TextIO

import dfkd_lab
import dfkd_lite

from . import checking
from .fence import FORBIDDEN, limit, raise_fence
from .kernel import enclose
from .magics import Shell, make_shell
from .switches import keep_switches, ordinary_gradients

PACKAGE, LAB = (Path(package.__path__[0]) for package in (dfkd_lite, dfkd_lab))
FORKS = sys.platform == "linux"  # elsewhere libraries may not survive a fork: one job a process
THREADS = 64  # a cell that leaves more of them ends the process
#: Modules imported before the fence is raised, because they look at the machine as they load.
EARLY = (
    "torch", "torch.testing", "torchvision", "numpy", "scipy.stats", "sklearn.datasets",
    "matplotlib.pyplot", "plotly.graph_objects", "ipywidgets", "tqdm.auto", "dfkd_lite.cli.main",
    "dfkd_lab.viz.widgets", "dfkd_lab.command", "otter.test_files",
)  # fmt: skip
#: Commands that install packages, which students leave in by the way.
INSTALLS = re.compile(r"!\s*(python3? -m |uv |sudo )*(pip|pip3|conda|mamba|apt|apt-get)\b")
PROGRAM = FORBIDDEN["subprocess."]
#: Modules that tests rely on.
OURS = ("dfkd_lite", "dfkd_lab", "dfkd_course", "otter.test_files")
#: Modules beside these that tests, or this one, rely on.
SHARED_WITH_TESTS = (
    "torch.nn.functional", "torch.testing._comparison", "numpy", "builtins", "inspect", "json",
    "math", "os", "random", "signal", "threading", "time", "warnings",
)  # fmt: skip
#: Modules from which the assignments' checks import.
SHARED = ("checking", "norms", "stages")
TOPICS = sorted(
    {path.stem for path in Path(__file__).parent.glob("*.py")}
    - {*SHARED, "__init__", "fence", "folder", "grade", "kernel", "magics", "reading", "switches"}
    - {"worker"}
)
#: Modules of checks, in the order of reloading: each comes after those that it imports from.
CHECKS = tuple(f"{__package__}.{name}" for name in (*SHARED, *TOPICS))


class OutOfTime(BaseException):
    """Raised in a cell or a test that takes too long; no ``except Exception`` catches it."""


class Silence(io.TextIOBase):
    """Drops a submission's output, so that a loop that prints for ever fills no memory."""

    def write(self, text: str) -> int:
        return len(text)


@contextmanager
def deadline(seconds: float) -> Any:
    """Raise :class:`OutOfTime` inside the ``with`` block after so many seconds."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise OutOfTime

    signal.signal(signal.SIGALRM, stop)
    # the signal is repeated: a bare `except` in a loop may swallow the first one
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    """Import everything once; fork a process for each job (on Linux), and say how it ended."""
    answers, questions = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    for name in (*EARLY, *CHECKS):
        importlib.import_module(name)
    for job in jobs_in(questions):
        child = os.fork() if FORKS else 0
        if child == 0:
            code = 1
            try:
                _work(job, questions, answers)
                code = 0
            finally:
                os._exit(code)  # even if threads are left
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        # the process may have died in the middle of a line
        print("\n" + json.dumps({"token": job["token"], "ended": code}), file=answers, flush=True)


def jobs_in(questions: TextIO) -> Iterator[dict[str, Any]]:
    """Yield the jobs as they come; skip tests that a submission which died has not read."""
    for line in iter(questions.readline, ""):
        try:
            job = json.loads(line)
        except ValueError:  # the dead process had read a part of the tests
            continue
        if "cells" in job:
            yield job


def _work(job: dict[str, Any], questions: TextIO, answers: TextIO) -> None:
    """Run one submission and its tests."""

    def say(**answer: Any) -> None:
        print(json.dumps({"token": job["token"], **answer}), file=answers, flush=True)

    say(process=os.getpid())
    _move(job["folder"])
    at = [0]  # number of the cell that runs; of the tests, 0

    def leave_out(what: str) -> None:
        if what.startswith("!") and not INSTALLS.match(what) and PROGRAM not in refused:
            refused.append(PROGRAM)
        say(cell=at[0], left_out=what)

    shell = make_shell(leave_out)
    pristine, put_back = _state(), keep_switches()
    limit(job["memory"], job["file_size"])
    if job["fenced"]:
        enclose(Path.cwd(), _readable())
    refused = raise_fence(Path.cwd(), _readable())
    with redirect_stdout(Silence()), redirect_stderr(Silence()):
        for number, source in job["cells"]:
            at[0] = number
            say(cell=number)
            error = _run_cell(shell, number, source, job["cell_seconds"])
            if error is not None:
                say(cell=number, failed=_line(error, job["cell_seconds"]))
                if _spoilt(error):
                    os._exit(1)  # the grader tries again without this cell
        _restore(pristine)
        put_back()
        at[0] = 0
        say(ready=True)
        tests = json.loads(questions.readline())
        with ordinary_gradients():
            for question, source in tests.items():
                _run_tests(question, source, shell.user_ns, job["test_seconds"], say)
    say(refused=refused, measured=checking.measured, done=True)


def _move(folder: str) -> None:
    """Enter the submission's own folder, and make it the home and the place of temporary files."""
    os.chdir(folder)
    os.environ.update(dict.fromkeys(("HOME", "TMPDIR", "IPYTHONDIR"), folder))
    tempfile.tempdir = None  # Python looks for the folder again


def _readable() -> list[Path]:
    """List what Python and the package read, but no assignments and no other submissions."""
    ours = [PACKAGE, LAB, PACKAGE.parent / "data", Path(__file__).parent]
    paths = [Path(sys.prefix), Path(sys.base_prefix), *ours]
    about = (m for p in sys.path for m in Path(p).glob("*.*-info"))  # what importlib.metadata reads
    return [*paths, *(Path(p) for p in sysconfig.get_paths().values()), *about]


def _run_cell(shell: Shell, number: int, source: str, seconds: float) -> BaseException | None:
    """Run a cell; return what it raises, or None."""
    try:
        with deadline(seconds):
            code = compile(shell.transform_cell(source), f"<cell {number}>", "exec")
            exec(code, shell.user_ns)
    except BaseException as error:  # whatever a submission raises
        return error
    return None


def _spoilt(error: BaseException) -> bool:
    """Return whether the process cannot go on: its memory is full, or many threads are left."""
    full = isinstance(error, MemoryError) or "allocate memory" in str(error)
    return full or threading.active_count() > THREADS


def _line(error: BaseException, seconds: float) -> str:
    """Return an error as a report shows it."""
    if isinstance(error, OutOfTime):
        return f"took longer than {seconds:g} s"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _state() -> dict[ModuleType, dict[str, Any]]:
    """Copy the names, with their values, of the modules that tests rely on."""
    found = {n: m for n, m in sys.modules.items() if n.startswith(OURS)}
    found |= {n: sys.modules[n] for n in (*SHARED_WITH_TESTS, *EARLY[:2])}
    return {module: dict(vars(module)) for module in found.values()}


def _restore(state: dict[ModuleType, dict[str, Any]]) -> None:
    """Put back what a submission may have replaced, so that the tests are the real ones."""
    for module, names in state.items():
        vars(module).update(names)
        sys.modules[names["__name__"]] = module
    for name in CHECKS:  # objects inside of them may have changed too
        importlib.reload(sys.modules[name])


def _run_tests(
    question: str, source: str, answers: dict[str, Any], seconds: float, say: Callable[..., None]
) -> None:
    from otter.test_files.exception_test import ExceptionTestFile

    for case in ExceptionTestFile.from_string(source).test_cases:
        why = _outcome(case, answers, seconds)
        say(question=question, points=case.points, hidden=case.hidden, why=why)


def _outcome(case: Any, answers: dict[str, Any], seconds: float) -> str | None:
    """Run a test; return None if it passes, else why not: of a hidden one its hint and error."""
    wanted = [n for n in inspect.signature(case.body.test_func).parameters if n != "env"]
    missing = [name for name in wanted if answers.get(name) in (None, ...)]
    if missing:
        return f"`{missing[0]}` is missing: its cell is not there, is empty, or stopped"
    hint = case.failure_message or "a hidden test failed"
    try:
        with deadline(seconds):
            case.body.call_func(answers)
    except BaseException as error:  # whatever a submission raises
        if case.hidden and not isinstance(error, OutOfTime):
            name = type(error).__name__
            return hint if isinstance(error, AssertionError) else f"{hint} ({name})"
        return _line(error, seconds).removeprefix("Wrong: ")
    return None


if __name__ == "__main__":
    main()
