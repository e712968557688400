"""Shared by all tests: one thread, fixed seeds, and the Chromium that browser tests use."""

import os
import random
import sys
from collections import Counter

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; sums stay reproducible

import pytest
from chromium import find_chromium
from hypothesis import settings

settings.register_profile("dfkd", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("dfkd")

NO_BROWSER = "no Chromium for the browser tests (install it, or name it in CHROMIUM)"
IN_CI = os.environ.get("CI") == "true"


def missing(what: str) -> None:
    """Skip the test for want of something on this machine; in CI that is an error."""
    if IN_CI:
        pytest.fail(f"{what}; with CI=true that is an error")
    pytest.skip(what)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the Chromium executable; without one the test is skipped, or fails in CI."""
    path = find_chromium()
    if path is None:
        missing(NO_BROWSER)
    return path


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
        sys.modules["torch"].manual_seed(0)


def pytest_terminal_summary(terminalreporter):
    """Say in one line per reason how many tests were skipped (no Chromium, no data set, ...)."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.items():
        terminalreporter.write_line(f"{count} skipped: {reason}")
