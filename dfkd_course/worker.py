"""Runs submissions behind the fence, then their tests: the process that :mod:`grade` starts.

Importing takes longer than most submissions do, so the process imports once and then forks for each
job. A job is a line of JSON. Its process says who it is, runs the cells, says ``ready``, and only
then gets the tests as a second line, so that no cell can read them. Each answer is a line of JSON
that begins with the job's token; whatever the submission prints goes nowhere.
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import os
import signal
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import dfkd_lite

from . import checking
from .fence import limit, raise_fence

PACKAGE = Path(dfkd_lite.__file__).parent
FORKS = sys.platform == "linux"  # libraries of other systems may not survive it: one job a process
THREADS = 64  # more than these left by a cell: it has gone wild
#: Imported before the fence stands: they look at the machine as they load.
EARLY = (
    "torch", "torch.testing", "torchvision", "numpy", "scipy.stats", "sklearn.datasets",
    "matplotlib.pyplot", "plotly.graph_objects", "ipywidgets", "tqdm.auto", "dfkd_lite.cli.main",
    "dfkd_lite.viz.widgets", "otter.test_files",
)  # fmt: skip
#: Modules that tests rely on.
OURS = ("dfkd_lite", "dfkd_lab", "dfkd_course", "otter.test_files")
#: From these the assignments' checks import.
SHARED = ("checking", "norms", "stages")
TOPICS = sorted(
    {path.stem for path in Path(__file__).parent.glob("*.py")}
    - {*SHARED, "__init__", "fence", "grade", "reading", "worker"}
)
#: Modules of checks: in this order they are loaded anew, so that none takes from an old one.
CHECKS = tuple(f"{__package__}.{name}" for name in (*SHARED, *TOPICS))


class OutOfTime(BaseException):
    """Raised in a cell or a test that takes too long; no ``except Exception`` catches it."""


class Silence(io.TextIOBase):
    """Where a submission's output goes: a loop that prints for ever fills no memory."""

    def write(self, text: str) -> int:
        return len(text)


@contextmanager
def deadline(seconds: float) -> Any:
    """At most so long for what is inside."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise OutOfTime

    signal.signal(signal.SIGALRM, stop)
    # again and again: a first one may be swallowed by a bare `except` in a loop
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    """Import everything once; for each job fork a process, and say how it ended."""
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
                os._exit(code)  # whatever threads are left
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        # the process may have died in the middle of a line
        print("\n" + json.dumps({"token": job["token"], "ended": code}), file=answers, flush=True)


def jobs_in(questions: TextIO) -> Iterator[dict[str, Any]]:
    """Wait for jobs, without what is left of the tests of a submission that died."""
    for line in iter(questions.readline, ""):
        try:
            job = json.loads(line)
        except ValueError:  # it has read a part of them
            continue
        if "cells" in job:
            yield job


def _work(job: dict[str, Any], questions: TextIO, answers: TextIO) -> None:
    """One submission and its tests."""

    def say(**answer: Any) -> None:
        print(json.dumps({"token": job["token"], **answer}), file=answers, flush=True)

    say(process=os.getpid())
    _move(job["folder"])
    shell = _shell()
    pristine = _state()
    limit(job["memory"], job["file_size"])
    refused = raise_fence(Path.cwd(), _readable())
    with redirect_stdout(Silence()), redirect_stderr(Silence()):
        for number, source in job["cells"]:
            say(cell=number)
            error = _run_cell(shell, number, source, job["cell_seconds"])
            if error is not None:
                say(cell=number, failed=_line(error, job["cell_seconds"]))
                if _spoilt(error):
                    os._exit(1)  # the grader tries again without this cell
        _restore(pristine)
        say(ready=True)
        tests = json.loads(questions.readline())
        for question, source in tests.items():
            _run_tests(question, source, shell.user_ns, job["test_seconds"], say)
    say(refused=refused, measured=checking.measured, done=True)


def _move(folder: str) -> None:
    """Into the submission's own folder, with all that is kept by its user."""
    os.chdir(folder)
    os.environ.update(dict.fromkeys(("HOME", "TMPDIR", "IPYTHONDIR"), folder))
    tempfile.tempdir = None  # asked for anew


def _shell() -> Any:
    """IPython, for what it makes of `%magics` and `!commands`; the cells run without it.

    (It would keep what they print, and their tracebacks.)
    """
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    return InteractiveShell.instance(config=config)


def _readable() -> list[Path]:
    """What Python itself and the package read; not the assignments, nor other submissions."""
    ours = [PACKAGE, PACKAGE.parent / "dfkd_lab", PACKAGE.parent / "data", Path(__file__).parent]
    paths = [Path(sys.prefix), Path(sys.base_prefix), *ours]
    about = (m for p in sys.path for m in Path(p).glob("*.*-info"))  # what importlib.metadata reads
    return [*paths, *(Path(p) for p in sysconfig.get_paths().values()), *about]


def _run_cell(shell: Any, number: int, source: str, seconds: float) -> BaseException | None:
    """What a cell raises, or None."""
    try:
        with deadline(seconds):
            code = compile(shell.transform_cell(source), f"<cell {number}>", "exec")
            exec(code, shell.user_ns)
    except BaseException as error:  # whatever a submission raises
        return error
    return None


def _spoilt(error: BaseException) -> bool:
    """Whether the process is of no use any more: its memory is full, or threads are left in it."""
    full = isinstance(error, MemoryError) or "allocate memory" in str(error)
    return full or threading.active_count() > THREADS


def _line(error: BaseException, seconds: float) -> str:
    """An error as a report shows it."""
    if isinstance(error, OutOfTime):
        return f"took longer than {seconds:g} s"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _state() -> dict[str, dict[str, Any]]:
    """The names of the modules that tests rely on."""
    found = {n: m for n, m in sys.modules.items() if n.startswith(OURS)}
    found |= {n: sys.modules[n] for n in ("torch", "torch.nn.functional", "torch.testing", "numpy")}
    return {name: dict(vars(module)) for name, module in found.items()}


def _restore(state: dict[str, dict[str, Any]]) -> None:
    """Put back what a submission may have replaced, so that its tests are the tests."""
    for name, names in state.items():
        vars(sys.modules[name]).update(names)
    for name in CHECKS:  # their objects hold things that may have changed
        importlib.reload(sys.modules[name])


def _run_tests(
    question: str, source: str, answers: dict[str, Any], seconds: float, say: Callable[..., None]
) -> None:
    from otter.test_files.exception_test import ExceptionTestFile

    for case in ExceptionTestFile.from_string(source).test_cases:
        why = _outcome(case, answers, seconds)
        say(question=question, points=case.points, hidden=case.hidden, why=why)


def _outcome(case: Any, answers: dict[str, Any], seconds: float) -> str | None:
    """None where a test passes, else why not. Of a hidden test only what it says itself."""
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
