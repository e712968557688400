"""Holds what all tests share: one thread, fixed seeds, Chromium, marks, the order of the files."""

import os
import random
import signal
import sys
import time
from collections import Counter
from contextlib import contextmanager

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: sums stay reproducible

import pytest
from chromium import find_chromium
from hypothesis import settings

settings.register_profile("dfkd", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("dfkd")

NO_BROWSER = "no Chromium for the browser tests (install it, or name it in CHROMIUM)"
NO_TIME = "no time left (make test runs all)"
GRACE = 10  # seconds
IN_CI = os.environ.get("CI") == "true"
# Files that take longest. They begin first, so that no worker is left alone with one at the end.
LONGEST = (
    "test_workflow", "test_course", "test_chapters", "test_course_grader", "test_browser",
    "test_parallel", "test_book_build", "test_runner",
)  # fmt: skip


def missing(what: str) -> None:
    """Skip a test that misses something on this machine; with CI=true fail it."""
    if IN_CI:
        pytest.fail(f"{what}; with CI=true that is an error")
    pytest.skip(what)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Return the path of the Chromium executable; without one skip the test, or fail it in CI."""
    path = find_chromium()
    if path is None:
        missing(NO_BROWSER)
    return path


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Start every test from the same random state, whatever ran before it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def workers():
    """Yield the grader's processes, shared by all tests that grade: starting takes ten seconds."""
    from dfkd_course.grade import Workers

    with Workers() as kept:
        yield kept


def pytest_addoption(parser):
    parser.addoption("--until", type=float, help="skip what is not begun at this moment (epoch)")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(config, items):
    """Keep the tests of a file on one worker, unless they name a group themselves."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    if config.getoption("--until") is None:
        places = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    with deadline(item.config.getoption("--until")):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with deadline(item.config.getoption("--until")):
        return (yield)


@contextmanager
def deadline(until: float | None):
    """Skip a test that is not begun at a moment, or has not ended GRACE seconds after it."""
    if until is not None and time.time() > until:
        pytest.skip(NO_TIME)
    if until is None or not hasattr(signal, "setitimer"):  # Windows has none
        yield
        return
    signal.signal(signal.SIGALRM, lambda *_: pytest.skip(NO_TIME))
    signal.setitimer(signal.ITIMER_REAL, until + GRACE - time.time())
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def pytest_terminal_summary(terminalreporter):
    """Say in one line per reason how many tests were skipped (no Chromium, no data set, ...)."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.items():
        terminalreporter.write_line(f"{count} skipped: {reason}")
