"""What conftest.py does to a test run: one worker for each file, and an end at a given moment."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def pytest_in(folder: Path, *arguments: str) -> str:
    """What pytest prints for the tests of a folder, run under our conftest.py."""
    ours = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    (folder / "conftest.py").write_text(ours.replace("GRACE = 10", "GRACE = 1"), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", *arguments, str(folder)]
    command += ["--override-ini", f"pythonpath={ROOT / 'tools'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    return done.stdout + done.stderr


def test_the_tests_of_a_file_stay_on_one_worker(tmp_path: Path) -> None:
    """Else what a file sets up once is set up on both: the course, the workflow, the pages."""
    text = """
import time
import pytest

@pytest.mark.parametrize("number", range(6))
def test_some(number):
    time.sleep(0.1)
"""
    for name in ("one", "two", "three"):
        (tmp_path / f"test_{name}.py").write_text(text)
    printed = pytest_in(tmp_path, "-v", "-n", "2", "--dist", "loadgroup")
    ran = re.findall(r"\[(gw\d)\].* PASSED .*test_(\w+)\.py", printed)
    assert len(ran) == 18, printed
    assert len(set(ran)) == 3, printed  # pairs of worker and file


SLOW_TEST = """
import time

def test_ends():
    assert True

def test_takes_long():
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
@pytest.mark.parametrize(("seconds", "said"), [(-1, "2 skipped"), (10, "1 passed, 1 skipped")])
def test_when_the_time_is_over_tests_are_passed_over(
    seconds: int, said: str, tmp_path: Path
) -> None:
    """Those that are not begun, and one that does not end."""
    (tmp_path / "test_slow.py").write_text(SLOW_TEST)
    begun = time.time()
    printed = pytest_in(tmp_path, "-q", "--until", str(begun + seconds))
    assert said in printed
    assert time.time() - begun < 40
