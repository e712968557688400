"""The Snakemake workflow: two jobs at a time, one killed, and a restart that ends as if nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GRID = """
about: two variants, one teacher that does not ship
data: digits
seeds: [7]
settings:
  teach: {epochs: 1}
  distill: {episodes: 8, warm_up: 2, student_steps: 2, checkpoint_every: 1, measure_every: 4}
cells:
  - name: full
  - {name: without msarc, settings: {method: {beta: 0}}}
"""
NAMES = ["full_seed7", "without-msarc_seed7"]
WORK = "my runs' $HOME & more"  # a folder may be called so; the shell must not read it


def start(folder: Path) -> subprocess.Popen:
    """Snakemake in a process group of its own, so that all of it can be killed at once."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "DFKD_DATA": str(folder / "kept"),
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    return subprocess.Popen(
        [
            sys.executable, "-m", "snakemake", "-s", str(ROOT / "workflow" / "Snakefile"),
            "--cores", "2", "--rerun-incomplete", "--nolock",
            "--config", "experiments=my grid.yaml", "records=my records", "device=cpu",
            f"work={WORK}",
        ],
        cwd=folder, env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def records(folder: Path) -> dict[str, dict]:
    paths = (folder / "my records" / "my grid").glob("*.json")
    return {path.stem: json.loads(path.read_text()) for path in paths}


def measured(record: dict) -> tuple:
    history = [
        {key: value for key, value in row.items() if not key.startswith("seconds")}
        for row in record["history"]
    ]
    return record["last"], history, record["teacher"]["sha256"]


def wait_for(found, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    """A workflow that was killed while students were being made, and then started once more."""
    folder = tmp_path_factory.mktemp("workflow")
    (folder / "my grid.yaml").write_text(GRID)
    first = start(folder)
    # two students at work: both have a checkpoint of their first episodes, none is done
    steps = f"{WORK}/my grid/*/checkpoints/step-*"
    wait_for(lambda: len({path.parts[-3] for path in folder.glob(steps)}) >= 2, first)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    (folder / "cut-off.json").write_text(json.dumps(sorted(records(folder))))
    second = start(folder)
    output, _ = second.communicate(timeout=240)
    assert second.returncode == 0, output[-3000:]
    return folder


def test_every_run_is_recorded_once_and_the_report_is_written(interrupted):
    assert sorted(records(interrupted)) == sorted(NAMES)
    assert len(json.loads((interrupted / "cut-off.json").read_text())) < len(NAMES)
    table = (interrupted / WORK / "report.csv").read_text().splitlines()
    assert len(table) == 3 and all(",1,1,0," in line for line in table[1:])  # 1 of 1, 0 diverged
    assert "without msarc" in (interrupted / WORK / "report.html").read_text()


def test_runs_that_were_cut_off_went_on_and_ended_the_same(interrupted, tmp_path):
    found = records(interrupted)
    resumed = [name for name, record in found.items() if record["resumed_after"]]
    assert resumed, "nothing was cut off: the test killed too early or too late"
    # the same file without Snakemake, and nothing killed
    (tmp_path / "my grid.yaml").write_text(GRID)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "DFKD_DATA": str(tmp_path / "kept"),
        "PYTHONPATH": str(ROOT),
    }
    subprocess.run(
        [
            sys.executable, "-m", "dfkd_lite", "run", "my grid.yaml", "--device", "cpu",
            "--records", "my records", "--work", "runs", "--only", f"name={resumed[0]}",
        ],
        cwd=tmp_path, env=environment, check=True, capture_output=True,
    )  # fmt: skip
    assert measured(records(tmp_path)[resumed[0]]) == measured(found[resumed[0]])


def test_the_teacher_of_both_is_trained_once(interrupted):
    (card,) = (interrupted / "kept" / "teachers").glob("*.json")
    assert json.loads(card.read_text())["seed"] == 7
    sums = {record["teacher"]["sha256"] for record in records(interrupted).values()}
    assert sums == {json.loads(card.read_text())["sha256"]}
