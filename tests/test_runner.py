"""One run -> one record: whatever kills it, fills its disk or flips its bytes on the way."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from dfkd_lab import command as lab_command
from dfkd_lab import runner
from dfkd_lab.cost import Cost
from dfkd_lab.file import read_experiment
from dfkd_lab.records import Record
from dfkd_lab.runner import Place, best_on_test, execute, phases
from dfkd_lab.viz.pictures import tile
from dfkd_lite.cli import main as cli
from dfkd_lite.errors import InputError
from dfkd_lite.settings import plain
from dfkd_lite.storage import files
from dfkd_lite.storage.weights import load_network

ROOT = Path(__file__).parents[1]
NAME = "wrn-10-1_wrn-10-1_seed7"  # no teacher of this seed ships
EPISODES = 6


# --- A place for one experiment, and what it leaves there --------------------------------------


def lay(folder: Path, distill=(), **content) -> Path:
    """``folder`` with ``small.yaml`` and ``mine.npz``: 256 digits of 16 x 16 pixels, 100 held out.

    The test images have another mean than the ones taught, so that mixing them up would show.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels.reshape(-1, 8, 8).repeat(2, 1).repeat(2, 2)
    taught, held_out = np.uint8(15 * pixels[:256]), np.uint8(14 * pixels[256:356])
    arrays = {"train_images": taught, "train_labels": labels[:256]}
    arrays |= {"test_images": held_out, "test_labels": labels[256:356]}
    np.savez(folder / "mine.npz", **arrays)
    loop = {"episodes": EPISODES, "warm_up": 1, "student_steps": 2, "batch_size": 16}
    loop |= {"measure_every": 2, "checkpoint_every": 1, **dict(distill)}
    method = {"synthesis_batch": 16, "generator": {"z_dim": 8, "width": 8}}
    settings = {"teach": {"epochs": 3, "batch_size": 32}, "distill": loop, "method": method}
    about = {"about": "Small.", "preset": "lite", "data": "mine", "seeds": [7]}
    about |= {"teacher": "wrn-10-1", "student": "wrn-10-1", "settings": settings, **content}
    (folder / "small.yaml").write_text(yaml.safe_dump(about))
    return folder


def command(folder: Path, *more: str) -> list[str]:
    """The experiment of ``folder`` as arguments of ``dfkd``."""
    places = ["--records", f"{folder}/records", "--work", f"{folder}/work"]
    return ["run", f"{folder}/small.yaml", "--device", "cpu", *places, *data(folder), *more]


def data(folder: Path) -> list[str]:
    return ["--data", f"mine={folder}/mine.npz"]


def dfkd(folder: Path, *more: str) -> int:
    """The exit code of the experiment, run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFKD_DATA", f"{folder}/data")
        return cli.main(command(folder, *more))


def run_and_place(folder: Path, **options):
    """The only run of ``folder``, and the place that the command would give it."""
    (run,) = read_experiment(folder / "small.yaml")
    where = {"records": folder / "records", "work": folder / "work", "device": "cpu"}
    return run, Place({"mine": f"{folder}/mine.npz"}, progress=False, **where, **options)


def record_of(folder: Path, name: str = NAME) -> dict:
    return json.loads((folder / f"records/small/{name}.json").read_text())


def work_of(folder: Path) -> Path:
    return folder / "work/small" / NAME


def teacher_of(folder: Path) -> Path:
    (path,) = (folder / "data/teachers").glob("*.safetensors")
    return path


def step_of(folder: Path) -> int:
    """The newest checkpoint's number; 0 where there is none."""
    names = [path.name for path in (work_of(folder) / "checkpoints").glob("step-*")]
    return max((int(name[5:-3]) for name in names), default=0)


def result(folder: Path) -> dict:
    """All that must be the same however often a run was cut off: everything but times."""
    record = record_of(folder)
    for key in ("started", "ended", "seconds", "peak_memory_bytes", "resumed_after"):
        del record[key]
    untimed = [
        {k: v for k, v in row.items() if not k.startswith("seconds")} for row in record["history"]
    ]
    student = (work_of(folder) / "student.safetensors").read_bytes()
    return record | {
        "history": untimed,
        "student.safetensors": hashlib.sha256(student).hexdigest(),
        "teacher.safetensors": hashlib.sha256(teacher_of(folder).read_bytes()).hexdigest(),
    }


def everything(folder: Path) -> dict[str, tuple]:
    """Each path below ``folder`` with its content and its time."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


def stopped(folder: Path, what: str, number: int, *more: str) -> Path:
    """Ctrl-C in the ``number``-th ``Distillation.step`` or ``Teaching.epoch``."""
    owner = {"step": runner.Distillation, "epoch": sys.modules["dfkd_lite.teach"].Teaching}[what]
    original, calls = getattr(owner, what), []

    def counted(self):
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, what, counted)
        assert dfkd(folder, *more) == 130
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    folder = lay(tmp_path_factory.mktemp("whole"))
    assert dfkd(folder) == 0
    return folder


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory):
    """The same run, stopped in its fourth episode."""
    folder = stopped(lay(tmp_path_factory.mktemp("cut_off")), "step", 4)
    assert step_of(folder) == 3
    return folder


@pytest.fixture(scope="module")
def unlearned(tmp_path_factory):
    """The same run, stopped in the third epoch of its teacher."""
    return stopped(lay(tmp_path_factory.mktemp("unlearned")), "epoch", 3)


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to, dirs_exist_ok=True))


@pytest.fixture
def ready(whole, tmp_path):
    """Lays an experiment whose teacher is there already."""

    def laid(*about, **content) -> Path:
        copied(whole / "data", tmp_path / "data")
        return lay(tmp_path, *about, **content)

    return laid


# --- What a record holds -----------------------------------------------------------------------


def test_every_field_is_filled_and_true(whole):
    record = record_of(whole)
    assert set(record) == set(Record.model_fields)
    (run,) = read_experiment(whole / "small.yaml")
    assert (record["experiment"], record["name"], record["seed"]) == ("small", NAME, 7)
    assert record["settings"]["distill"] == plain(run.distill)
    assert record["settings"]["distill"]["seed"] == 7
    assert record["settings"]["distill"]["episodes"] == EPISODES
    assert record["settings"]["teach"]["batch_size"] == 32
    assert record["settings"]["method"]["generator"]["width"] == 8
    assert record["networks"] == {"teacher": "wrn-10-1", "student": "wrn-10-1", "method": "fssc"}
    assert record["environment"]["device"] == "cpu" and record["environment"]["threads"] == 1
    assert record["variant"] == "wrn-10-1_wrn-10-1" and record["paper"] is None
    assert record["data"]["name"] == "mine" and record["data"]["train_images"] == 256
    assert record["started"] <= record["ended"] and record["peak_memory_bytes"] > 50 * 2**20
    assert record["diverged"] is None and record["resumed_after"] == []
    weights = load_file(work_of(whole) / "student.safetensors")
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    learnt = sum(v.numel() for k, v in weights.items() if not k.endswith(statistics))
    assert record["parameters"] == {"teacher": learnt, "student": learnt}
    content = teacher_of(whole).read_bytes()
    assert record["teacher"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert record["teacher"]["stored_as"] == "float32"


def right(path: Path, folder: Path) -> float:
    """Test accuracy of a saved network, counted here."""
    network, spec = load_network(path)
    with np.load(folder / "mine.npz") as file:
        images, labels = torch.from_numpy(file["test_images"]), file["test_labels"]
    x = (images[:, None].float() / 255 - spec.mean[0]) / spec.std[0]
    with torch.no_grad():
        return float((network(x).argmax(1).numpy() == labels).mean())


def test_a_record_names_the_format_of_auto_and_goes_on_in_it_elsewhere(tmp_path, monkeypatch):
    auto = {"precision": "auto"}
    lay(tmp_path, auto)
    content = yaml.safe_load((tmp_path / "small.yaml").read_text())
    content["settings"]["teach"] |= auto
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr("dfkd_lite.devices.bfloat16_pays", lambda _: True)
    monkeypatch.setenv("DFKD_DATA", f"{tmp_path}/data")
    run, place = run_and_place(tmp_path, watch=stop_at_3)
    with pytest.raises(KeyboardInterrupt):
        execute(run, place)
    monkeypatch.setattr("dfkd_lite.devices.bfloat16_pays", lambda _: False)
    assert dfkd(tmp_path, "--resume") == 0
    record = record_of(tmp_path)
    assert record["resumed_after"] == [2]
    for part, asked in (("teach", run.teach), ("distill", run.distill)):
        assert record["settings"][part] == plain(replace(asked, precision="bfloat16"))


def stop_at_3(run, _):
    if run.episode == 3:
        raise KeyboardInterrupt


def test_last_is_the_last_step_and_best_is_labelled_as_no_result(whole):
    record = record_of(whole)
    last, history = record["last"], record["history"]
    assert [row["episode"] for row in history] == list(range(1, EPISODES + 1))
    measured = {row["episode"]: row["accuracy"] for row in history if "accuracy" in row}
    assert list(measured) == [2, 4, 6]
    assert last["student"]["accuracy"] == measured[EPISODES]
    assert last["student"]["accuracy"] == right(work_of(whole) / "student.safetensors", whole)
    assert last["teacher"]["accuracy"] == right(teacher_of(whole), whole)
    assert {"agreement", "kl_to_teacher"} <= set(last["student"]) - set(last["teacher"])
    best = record["best_on_test"]
    assert best["accuracy"] == max(measured.values()) == measured[best["episode"]]
    assert "not a result" in best["note"]


def test_best_on_test_is_the_maximum_wherever_it_is():
    values = {1: None, 2: 0.3, 3: None, 4: 0.8, 5: 0.8, 6: 0.5}
    rows = [{"episode": e} | ({} if v is None else {"accuracy": v}) for e, v in values.items()]
    best = best_on_test(rows)
    assert (best["accuracy"], best["episode"]) == (0.8, 4)
    assert best["note"] == "chosen by looking at test images: not a result"
    assert best_on_test([{"episode": 1}]) is None and best_on_test([]) is None


def test_seconds_add_up(whole):
    record, history = record_of(whole), record_of(whole)["history"]
    seconds = record["seconds"]
    assert set(seconds) == {"load", "teach", "distil", "synthesise", "transfer", "measure"}
    assert min(seconds.values()) > 0
    assert seconds["distil"] == pytest.approx(sum(row["seconds"] for row in history))
    assert seconds["synthesise"] + seconds["transfer"] == pytest.approx(seconds["distil"])
    assert seconds["synthesise"] == pytest.approx(sum(row["seconds_synthesise"] for row in history))
    measured = [row["seconds_measure"] for row in history if "seconds_measure" in row]
    assert seconds["measure"] == pytest.approx(sum(measured)) and len(measured) == 3
    card = json.loads(teacher_of(whole).with_suffix(".json").read_text())
    assert seconds["teach"] == card["seconds"]
    rows = [{"seconds": 5.0, "seconds_synthesise": 2.0, "seconds_measure": 1.0}]
    rows += [{"seconds": 7.0, "seconds_synthesise": 3.0}]
    assert phases(rows) == {"distil": 12, "synthesise": 5, "transfer": 7, "measure": 1}


def test_the_newest_images_are_kept_as_a_picture(cut_off, tmp_path, monkeypatch, whole):
    copied(cut_off, tmp_path)
    monkeypatch.setenv("DFKD_DATA", f"{tmp_path}/data")
    pools = []
    run, place = run_and_place(tmp_path, resume=True, watch=lambda d, row: pools.append(d.pool))
    record = execute(run, place)
    assert json.loads(json.dumps(plain(record))) == record_of(tmp_path)
    assert result(tmp_path) == result(whole)
    sheet = Image.open(io.BytesIO(base64.b64decode(record["images_png"])))
    assert np.array_equal(np.asarray(sheet), tile(pools[-1].newest(16), columns=8))


def test_same_seed_same_bits_whatever_was_drawn_before(whole, tmp_path):
    torch.manual_seed(123)
    random.seed(5)
    lay(tmp_path)
    assert dfkd(tmp_path) == 0
    assert result(tmp_path) == result(whole)


def test_another_seed_gives_other_bits(whole, tmp_path):
    lay(tmp_path, {"episodes": 2}, seeds=[8])
    assert dfkd(tmp_path) == 0
    record = record_of(tmp_path, NAME.replace("seed7", "seed8"))
    assert record["teacher"]["sha256"] != record_of(whole)["teacher"]["sha256"]
    assert record["images_png"] != record_of(whole)["images_png"]
    assert record["data"] == record_of(whole)["data"]


# --- Records are never overwritten -------------------------------------------------------------


def test_a_finished_run_is_not_done_again(whole, tmp_path, capsys):
    copied(whole, tmp_path)
    before = everything(tmp_path)
    for more in ([], ["--resume"]):
        assert dfkd(tmp_path, *more) == 0
        assert f"small/{NAME}: recorded already" in capsys.readouterr().out
    assert everything(tmp_path) == before
    run, place = run_and_place(tmp_path)
    with pytest.raises(InputError, match=r"seed7\.json exists, and records are never overwritten"):
        execute(run, place)
    assert everything(tmp_path) == before


def test_a_record_that_appears_meanwhile_is_not_overwritten(cut_off, tmp_path, monkeypatch):
    copied(cut_off, tmp_path)
    monkeypatch.setenv("DFKD_DATA", f"{tmp_path}/data")
    path = tmp_path / f"records/small/{NAME}.json"

    def watch(*_):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of somebody else")

    run, place = run_and_place(tmp_path, resume=True, watch=watch)
    with pytest.raises(InputError, match="never overwritten"):
        execute(run, place)
    assert path.read_text() == "of somebody else" and len(os.listdir(path.parent)) == 1


# --- Killed, and gone on -----------------------------------------------------------------------


def environment() -> dict[str, str]:
    """For processes that import the package that is tested here."""
    search = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": search}


def started(folder: Path, *more: str) -> subprocess.Popen:
    """``python -m dfkd_lite`` as a process of its own."""
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dfkd_lite", *command(folder, *more)],
            cwd=folder,
            env=environment() | {"DFKD_DATA": f"{folder}/data"},
            stdout=log,
            stderr=log,
        )


def kill_once(process: subprocess.Popen, there, after: float) -> None:
    """SIGKILL some seconds after a file is there."""
    while process.poll() is None and not there():
        time.sleep(0.002)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL, "it was over before it could be killed"


def test_killed_process_goes_on_to_the_same_record(whole, tmp_path, capsys):
    lay(tmp_path)
    moments = random.Random(0)
    learning = tmp_path / "data/checkpoints"
    first = started(tmp_path)
    kill_once(first, lambda: any(learning.glob("*/step-*")), moments.uniform(0, 0.05))
    assert not (tmp_path / "data/teachers").exists() and step_of(tmp_path) == 0
    second = started(tmp_path)  # a teacher goes on by itself, and no run has begun yet
    kill_once(second, lambda: step_of(tmp_path) >= 2, moments.uniform(0, 0.1))
    at = step_of(tmp_path)
    assert 2 <= at < EPISODES and not (tmp_path / "records").exists()
    assert dfkd(tmp_path) == 2
    said = capsys.readouterr().err
    assert f"already holds a run (at step {at}): continue it with resume=True (--resume)" in said
    assert said.count("mine: train 256, test 100 images of 1 x 16 x 16\n10 classes") == 1
    assert step_of(tmp_path) == at
    assert dfkd(tmp_path, "--resume") == 0
    assert result(tmp_path) == result(whole)
    assert record_of(tmp_path)["resumed_after"] == [at]
    assert not beside_results(tmp_path, killed=True)


def beside_results(folder: Path, killed: bool = False) -> list[str]:
    """What lies below ``folder`` beside the results; after a kill, but for what no run looks at."""
    stem, work = teacher_of(folder).stem, f"work/small/{NAME}"
    wanted = [f"data/teachers/{stem}.{ending}" for ending in ("safetensors", "json")]
    wanted += [f"{work}/{network}.safetensors" for network in ("student", "generator")]
    wanted += [f"records/small/{NAME}.json", "small.yaml", "mine.npz", "log"]
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert set(wanted) - {"log"} <= set(names)
    if killed:
        finished = (f"data/checkpoints/{stem}/", f"{work}/checkpoints/")
        names = [n for n in names if not n.startswith(finished) and not n.endswith(".tmp")]
    return [name for name in names if name not in wanted]


DRIVER = """
import json, os, random, signal, sys, time
from pathlib import Path

import torch._dynamo  # optimisers import it: once for all children

from dfkd_lite.cli import main as cli
from dfkd_lite.storage import files

def die_at(n):
    # each call that changes what is on the disk is a chance to die, half-way through a write too
    count = 0
    def wrap(real, half=None):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == n:
                if half:
                    half(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call
    def half_written(path, content):
        path.write_bytes(content[: len(content) // 2])
    os.fsync, os.replace, os.mkdir = wrap(os.fsync), wrap(os.replace), wrap(os.mkdir)
    files.write_synced = wrap(files.write_synced, half_written)
    os.unlink = wrap(os.unlink)

def steps(folder):
    # checkpoints of the teacher and of the run
    patterns = ("data/checkpoints/*/step-*", "work/*/*/checkpoints/step-*")
    return {path for pattern in patterns for path in Path(folder).glob(pattern)}

def attempt(folder, command, operation=None, seconds=None):
    before, child = steps(folder), os.fork()
    if child == 0:
        os.environ["DFKD_DATA"] = f"{folder}/data"
        log = os.open(f"{folder}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if operation is not None:
            die_at(operation)
        os._exit(cli.main(command))
    while seconds is not None:  # after the next checkpoint
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if steps(folder) - before:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

found = []
for seed, (folder, command, by_time) in enumerate(json.loads(sys.argv[1])):
    moments, kills, seen, code = random.Random(seed), 0, [], -signal.SIGKILL
    while code == -signal.SIGKILL and kills < 30:
        if not list(Path(folder).glob("records/*/*.json")):  # its folder is made a moment before it
            work = Path(folder).glob("work/*/*/checkpoints/step-*")
            seen.append(max((int(path.name[5:-3]) for path in work), default=0))
        if by_time:
            code = attempt(folder, command, seconds=moments.uniform(0, 0.3))
        else:
            code = attempt(folder, command, operation=moments.randint(5, 40))
        kills += code == -signal.SIGKILL
    found.append({"code": code, "kills": kills, "seen": seen})
print(json.dumps(found))
"""


BY_TIME = (False, True)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Runs killed again and again, at writes and at moments drawn from a seed, until they end."""
    folders = [lay(tmp_path_factory.mktemp("killed")) for _ in BY_TIME]
    tasks = [
        (str(folder), command(folder, "--resume"), by_time)
        for folder, by_time in zip(folders, BY_TIME, strict=True)
    ]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(tasks)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return list(zip(folders, json.loads(done.stdout), strict=True))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to start often")
@pytest.mark.parametrize("number", range(len(BY_TIME)))
def test_killed_again_and_again_ends_in_the_same_record(whole, killed, number):
    folder, found = killed[number]
    assert found["code"] == 0, (folder / "log").read_text()[-2000:]
    assert found["kills"] >= 3
    assert result(folder) == result(whole)
    # every step from which it went on, once
    assert record_of(folder)["resumed_after"] == sorted(set(found["seen"]) - {0})
    assert not beside_results(folder, killed=True)


def test_ctrl_c_says_how_to_go_on(cut_off, tmp_path, whole, capsys):
    copied(cut_off, tmp_path)
    stopped(tmp_path, "step", 2, "--resume")
    assert "dfkd: stopped. Continue with --resume." in capsys.readouterr().err
    assert step_of(tmp_path) == 4
    assert dfkd(tmp_path, "--resume") == 0
    assert record_of(tmp_path)["resumed_after"] == [3, 4] and result(tmp_path) == result(whole)


def test_cut_off_after_the_last_episode_measures_what_is_there(
    cut_off, tmp_path, whole, monkeypatch
):
    copied(cut_off, tmp_path)

    def interrupt(network, split, spec, teacher=None):
        if teacher is not None:  # the student's turn
            raise KeyboardInterrupt
        return original(network, split, spec)

    original = runner.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(runner, "evaluate", interrupt)
        assert dfkd(tmp_path, "--resume") == 130
    assert step_of(tmp_path) == EPISODES and not (tmp_path / "records").exists()
    assert dfkd(tmp_path) == 2
    assert dfkd(tmp_path, "--resume") == 0
    assert result(tmp_path) == result(whole)
    assert record_of(tmp_path)["resumed_after"] == [3, EPISODES]
    assert not beside_results(tmp_path)


def test_a_teacher_that_was_cut_off_is_gone_on_with(unlearned, tmp_path, whole):
    copied(unlearned, tmp_path)
    (begun,) = (tmp_path / "data/checkpoints").glob("*/step-*")
    assert begun.name == "step-000002.pt"
    assert dfkd(tmp_path, "--teachers") == 0
    assert teacher_of(tmp_path).read_bytes() == teacher_of(whole).read_bytes()
    assert not list((tmp_path / "data/checkpoints").iterdir())


# --- Damaged and foreign checkpoints -----------------------------------------------------------


def checkpoint_in(folder: Path) -> Path:
    """The only checkpoint of a run or of a teacher."""
    (path,) = [*folder.glob("work/small/*/checkpoints/step-*"), *folder.glob("data/*/*/step-*")]
    return path


def flip(path: Path) -> None:
    content = path.read_bytes()
    at = len(content) // 2
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


def test_a_damaged_checkpoint_is_refused_with_the_reason(cut_off, tmp_path, capsys):
    flip(checkpoint_in(copied(cut_off, tmp_path)))
    assert dfkd(tmp_path, "--resume") == 2
    said = capsys.readouterr().err
    assert "step-000003.pt is damaged (it is not as it was saved)" in said
    assert "delete this file, and the run starts anew" in said
    assert not (tmp_path / "records").exists() and step_of(tmp_path) == 3


def test_a_damaged_teachers_checkpoint_is_refused(unlearned, tmp_path, capsys):
    flip(checkpoint_in(copied(unlearned, tmp_path)))
    assert dfkd(tmp_path, "--resume") == 2
    assert "step-000002.pt is damaged" in capsys.readouterr().err
    assert not (tmp_path / "data/teachers").exists() and not (tmp_path / "records").exists()


def test_as_the_message_says_the_run_starts_anew_without_the_file(cut_off, tmp_path, whole):
    path = checkpoint_in(copied(cut_off, tmp_path))
    flip(path)
    assert dfkd(tmp_path, "--resume") == 2
    path.unlink()
    assert dfkd(tmp_path) == 0
    assert result(tmp_path) == result(whole)


def changed(folder: Path, **content) -> None:
    """Edit ``small.yaml``; settings are merged."""
    path = folder / "small.yaml"
    about = yaml.safe_load(path.read_text())
    for part, values in content.pop("settings", {}).items():
        about["settings"][part] |= values
    about |= content
    path.write_text(yaml.safe_dump(about))


@pytest.mark.parametrize(
    "settings",
    [
        {"distill": {"lr": 0.05}},
        {"method": {"beta": 0.2}},
        {"teach": {"epochs": 2}},  # another teacher
    ],
    ids=["loop", "method", "teacher"],
)
def test_a_checkpoint_of_other_settings_is_refused(cut_off, tmp_path, capsys, settings):
    copied(cut_off, tmp_path)
    changed(tmp_path, settings=settings)
    assert dfkd(tmp_path, "--resume") == 2
    assert "is of a run with other settings" in capsys.readouterr().err
    assert not (tmp_path / "records").exists() and step_of(tmp_path) == 3


def test_a_checkpoint_of_another_student_is_refused(cut_off, tmp_path, capsys):
    copied(cut_off, tmp_path)
    changed(tmp_path, student="wrn-10-2")
    work_of(tmp_path).rename(tmp_path / "work/small/wrn-10-1_wrn-10-2_seed7")
    assert dfkd(tmp_path, "--resume") == 2
    assert "is of a run with other settings" in capsys.readouterr().err


def test_a_checkpoint_of_other_data_is_refused(cut_off, tmp_path, capsys):
    copied(cut_off, tmp_path)
    with np.load(tmp_path / "mine.npz") as file:
        arrays = dict(file)
    arrays["train_images"] = arrays["train_images"] // 2
    np.savez(tmp_path / "mine.npz", **arrays)
    assert dfkd(tmp_path, "--resume") == 2
    assert "is of a run with other settings" in capsys.readouterr().err


# --- A full disk -------------------------------------------------------------------------------


def test_a_full_disk_is_named_and_the_run_goes_on(cut_off, tmp_path, monkeypatch, whole, capsys):
    copied(cut_off, tmp_path)
    work, after = f"work/small/{NAME}", [3]
    for place, step in (
        (f"{work}/checkpoints/.step-000004.pt.*.tmp", 3),
        (f"{work}/checkpoints/.step-000005.pt.*.tmp", 4),
        (f"{work}/.student.safetensors.*.tmp", EPISODES),
        (f"{work}/.generator.safetensors.*.tmp", EPISODES),
        (f"records/small/.{NAME}.json.*.tmp", EPISODES),
    ):
        with monkeypatch.context() as patch:
            fails_at(patch, f"{tmp_path}/{place}")
            assert dfkd(tmp_path, "--resume") == 2
        said = capsys.readouterr().err
        assert "could not be saved: the disk is full; free some space" in said
        assert "What was saved before is untouched." in said
        assert step_of(tmp_path) == step and not list(tmp_path.rglob("*.tmp"))
        assert not list(tmp_path.glob("records/*/*"))
        after.append(step)
    assert dfkd(tmp_path, "--resume") == 0
    assert result(tmp_path) == result(whole) and not beside_results(tmp_path)
    assert record_of(tmp_path)["resumed_after"] == sorted(set(after))


def fails_at(patch: pytest.MonkeyPatch, pattern: str) -> None:
    """The disk is full in the middle of the files whose paths fit the pattern."""
    real = files.write_synced

    def full(path, content):
        if path.match(pattern):
            path.write_bytes(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, content)

    patch.setattr(files, "write_synced", full)


def test_a_disk_that_fills_up_while_the_teacher_learns(
    unlearned, tmp_path, monkeypatch, whole, capsys
):
    copied(unlearned, tmp_path)
    for place, step in (
        ("data/checkpoints/*/.step-000003.pt.*.tmp", 2),
        ("data/teachers/.*.safetensors.*.tmp", 3),
        ("data/teachers/.*.json.*.tmp", 3),
    ):
        with monkeypatch.context() as patch:
            fails_at(patch, f"{tmp_path}/{place}")
            assert dfkd(tmp_path) == 2
        said = capsys.readouterr().err
        assert "could not be saved: the disk is full; free some space" in said
        assert checkpoint_in(tmp_path).name == f"step-{step:06d}.pt"
        assert not list(tmp_path.rglob("*.tmp"))
    assert dfkd(tmp_path, "--teachers") == 0
    assert teacher_of(tmp_path).read_bytes() == teacher_of(whole).read_bytes()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MB; needs the right to mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)]
    try:
        done = subprocess.run(mount, capture_output=True)
    except OSError:
        done = None
    if done is None or done.returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def fill(folder: Path) -> Path:
    """A file of all the space that is left."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as file:
        for size in (2**16, 2**12):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return path


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("log", [[], ["--log", "tensorboard"]], ids=["plain", "log"])
def test_a_disk_that_is_really_full(cut_off, small_disk, whole, capsys, log):
    folder = copied(cut_off, small_disk / "run")
    before = checkpoint_in(folder).read_bytes()
    filler = fill(small_disk)
    try:
        code = dfkd(folder, "--resume", *log)
    except OSError as error:
        code = repr(error)  # not raised: pytest stumbles over the writer's thread in its traceback
    assert code == 2
    assert "the disk is full; free some space" in capsys.readouterr().err
    assert checkpoint_in(folder).read_bytes() == before
    filler.unlink()
    assert dfkd(folder, "--resume", *log) == 0
    assert result(folder) == result(whole)


def test_a_disk_that_is_really_full_while_the_teacher_learns(unlearned, small_disk, whole, capsys):
    folder = copied(unlearned, small_disk / "run")
    before = checkpoint_in(folder).read_bytes()
    filler = fill(small_disk)
    assert dfkd(folder, "--teachers") == 2
    assert "the disk is full; free some space" in capsys.readouterr().err
    assert checkpoint_in(folder).read_bytes() == before
    filler.unlink()
    assert dfkd(folder, "--teachers") == 0
    assert teacher_of(folder).read_bytes() == teacher_of(whole).read_bytes()


# --- Runs that diverge -------------------------------------------------------------------------


def diverged(folder: Path) -> dict:
    """The record of a run that diverged, after what holds for each of them."""
    record = record_of(folder)
    assert record["diverged"] and set(record["last"]) == {"teacher"}
    assert record["last"]["teacher"]["accuracy"] == right(teacher_of(folder), folder)
    assert not (work_of(folder) / "student.safetensors").exists()
    assert set(record) == set(Record.model_fields) and record["images_png"]
    return record


@pytest.mark.parametrize("every", [2, 1, EPISODES])
def test_a_run_that_diverges_leaves_a_record_and_no_student(ready, tmp_path, capsys, every):
    ready({"lr": 1e6, "measure_every": every, "checkpoint_every": EPISODES})
    assert dfkd(tmp_path) == 0
    assert f"small/{NAME}: diverged -> " in capsys.readouterr().out
    record = diverged(tmp_path)
    assert len(record["history"]) < EPISODES
    assert dfkd(tmp_path) == 0  # it is a result as any other: not tried again
    assert "recorded already" in capsys.readouterr().out
    assert not list(work_of(tmp_path).rglob("*.safetensors"))


def gone_on_with(cut_off: Path, tmp_path: Path, monkeypatch, change) -> dict:
    """The rest of a run whose networks are changed by ``change(distillation, episode)``."""
    monkeypatch.setenv("DFKD_DATA", f"{copied(cut_off, tmp_path)}/data")
    run, place = run_and_place(
        tmp_path, resume=True, watch=lambda d, row: change(d, row["episode"])
    )
    execute(run, place)
    return record_of(tmp_path)


def test_weights_that_break_before_a_checkpoint_leave_a_record(cut_off, tmp_path, monkeypatch):
    def change(distillation, episode):
        if episode == 5:
            distillation.network.fc.weight.data[0, 0] = float("inf")

    gone_on_with(cut_off, tmp_path, monkeypatch, change)
    assert len(diverged(tmp_path)["history"]) == 5


def test_answers_that_break_in_the_last_step_leave_a_record(cut_off, tmp_path, monkeypatch):
    def change(distillation, episode):
        if episode == EPISODES:  # finite weights, and answers that are not
            distillation.network.fc.weight.data.fill_(3e38)

    gone_on_with(cut_off, tmp_path, monkeypatch, change)
    assert len(diverged(tmp_path)["history"]) == EPISODES


def test_a_generator_that_breaks_in_the_last_step_leaves_a_record(cut_off, tmp_path, monkeypatch):
    def save(self, folder):  # no checkpoint sees it
        pass

    def change(distillation, episode):
        if episode == EPISODES:
            next(distillation.method.generator.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(runner.Distillation, "_save", save)
    gone_on_with(cut_off, tmp_path, monkeypatch, change)
    assert len(diverged(tmp_path)["history"]) == EPISODES


def test_a_measure_beyond_all_bounds_does_not_cost_the_record(cut_off, tmp_path, monkeypatch):
    def change(distillation, episode):
        if episode == EPISODES:  # logits around 1e25, whose squares float32 cannot hold
            distillation.network.fc.weight.data.mul_(1e25)

    record = gone_on_with(cut_off, tmp_path, monkeypatch, change)
    assert record["diverged"] or record["last"]["student"]["mse_to_teacher"] is None


# --- The command -------------------------------------------------------------------------------

CELLS = [
    {"name": name, "settings": {"distill": {"lr": lr}}}
    for name, lr in (("a", 0.05), ("b", 0.1), ("c", 0.2))
]


def test_dry_run_names_states_and_costs_and_writes_nothing(tmp_path, capsys, monkeypatch):
    folder = lay(tmp_path / "lab", cells=CELLS)
    (folder / "records/small").mkdir(parents=True)
    (folder / "records/small/a_seed7.json").write_text("{}")
    (folder / "work/small/b_seed7/checkpoints").mkdir(parents=True)
    (folder / "work/small/b_seed7/checkpoints/step-000002.pt").touch()
    monkeypatch.chdir(tmp_path)
    before = everything(tmp_path)
    assert dfkd(folder, "--dry-run") == 0
    assert everything(tmp_path) == before
    a, b, c, teachers, total = capsys.readouterr().out.splitlines()
    assert a == "a_seed7: recorded"
    assert b.startswith("b_seed7: cut off, --resume goes on with it, about ") and b.endswith(" s")
    assert c.startswith("c_seed7: to do, about ")
    assert teachers.startswith("1 teachers to train, about ")
    assert total.startswith("3 runs: about ") and total.endswith(" here")


def test_dry_run_without_the_data_says_what_is_missing(tmp_path, capsys):
    lay(tmp_path, cells=CELLS[:2])
    (tmp_path / "mine.npz").unlink()
    before = everything(tmp_path)
    assert dfkd(tmp_path, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "a_seed7: to do, cost unknown" in lines[0] and "--data mine=PATH" in lines[0]
    assert lines[-1].endswith("and 2 runs of unknown cost")
    assert everything(tmp_path) == before


def test_dry_run_times_each_setting_once_and_reads_the_data_once(tmp_path, monkeypatch, capsys):
    cells = [
        {"name": "a"},
        {"name": "larger", "settings": {"distill": {"batch_size": 32}}},
        {"name": "rounded", "settings": {"teach": {"precision": "bfloat16"}}},
    ]
    lay(tmp_path, cells=cells, seeds=[7, 8])
    timed, read = [], []
    load = runner.load

    def timing(run, place, data):
        timed.append(run.variant)
        return Cost(len(timed), len(timed), 0.0)

    def reading(source, **options):
        read.append(source)
        return load(source, **options)

    monkeypatch.setattr(lab_command, "measure_cost", timing)
    monkeypatch.setattr(runner, "load", reading)
    assert dfkd(tmp_path, "--dry-run") == 0
    assert timed == ["a", "larger", "rounded"]  # seeds share a cost, settings do not
    assert read == [f"{tmp_path}/mine.npz"]
    costs = [line.rpartition("about ")[2] for line in capsys.readouterr().out.splitlines()[:6]]
    assert costs == ["6 s", "6 s", "12 s", "12 s", "18 s", "18 s"]  # episodes of 1, 2, 3 seconds


def test_costs_are_multiplied_out(tmp_path):
    (run,) = read_experiment(lay(tmp_path) / "small.yaml")
    cost = Cost(epoch=2.0, synthesis=3.0, student_step=0.5)
    assert cost.teacher_seconds(run) == 3 * 2.0
    assert cost.student_seconds(run) == 6 * 3.0 + 5 * 2 * 0.5  # 5 episodes of 2 steps


def test_only_and_teachers(ready, tmp_path, capsys):
    ready({"episodes": 2}, cells=CELLS, seeds=[7, 8])
    assert dfkd(tmp_path, "--teachers", "--only", "VARIANT=b", "--only", "seed=7") == 0
    out = capsys.readouterr().out
    assert "[1/1] small/b_seed7: teacher wrn-10-1 with " in out
    assert f"{right(teacher_of(tmp_path), tmp_path):.2%}" in out
    assert not (tmp_path / "records").exists()
    assert dfkd(tmp_path, "--only", "VARIANT=b", "--only", "seed=7") == 0
    assert os.listdir(tmp_path / "records/small") == ["b_seed7.json"]
    record = record_of(tmp_path, "b_seed7")
    assert record["variant"] == "b" and record["settings"]["distill"]["lr"] == 0.1
    assert record["changes"] == {"distill": {"lr": 0.1}}
    teacher_of(tmp_path)  # no other was trained
    capsys.readouterr()
    assert dfkd(tmp_path, "--only", "variant=d") == 2
    assert "no variant called 'd'" in capsys.readouterr().err
    assert dfkd(tmp_path, "--only", "sed=7") == 2
    assert "Did you mean 'seed'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("mine", None, "(give its place with --data mine=PATH)"),
        ("mine", "mine=nowhere/x.npz", "There is no file or folder nowhere/x.npz"),
        ("mine", "mine", "--data mine: write NAME=PATH."),
        ("pneumoniamnist", None, "(give its place with --data pneumoniamnist=PATH)"),
    ],
)
def test_missing_data_is_refused_saying_how_to_give_it(
    tmp_path, monkeypatch, capsys, name, given, message
):
    lay(tmp_path, data=name)
    monkeypatch.setattr(sys.modules[__name__], "data", lambda _: ["--data", given] * bool(given))
    before = everything(tmp_path)
    assert dfkd(tmp_path) == 2
    assert message in capsys.readouterr().err
    assert everything(tmp_path) == before


def test_a_path_in_the_file_is_data_too(tmp_path, monkeypatch, whole):
    lay(tmp_path, {"episodes": 2}, data=str(tmp_path / "mine.npz"))
    monkeypatch.setattr(sys.modules[__name__], "data", lambda _: [])
    assert dfkd(tmp_path) == 0
    assert record_of(tmp_path)["data"]["sha256"] == record_of(whole)["data"]["sha256"]


def test_paper_numbers_are_kept_beside(ready, tmp_path):
    paper = {"table": "table5_ablation", "row": {"variant": "full method"}, "column": "CIFAR-10"}
    ready({"episodes": 2}, paper=paper | {"differs": "the data"})
    assert dfkd(tmp_path) == 0
    found = record_of(tmp_path)["paper"]
    assert found.pop("accuracy") == pytest.approx(0.9491)
    assert found == paper | {"differs": "the data"}


# --- Event files -------------------------------------------------------------------------------


def events(folder: Path):
    """What TensorBoard reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(work_of(folder) / "tensorboard"), {"scalars": 0, "images": 0})
    return found.Reload()


def assert_same_curves(folder: Path) -> None:
    history, found = record_of(folder)["history"], events(folder)
    names = {name for row in history for name in row} - {"episode"}
    assert set(found.Tags()["scalars"]) == names and {"kd", "msarc", "adv", "bn"} <= names
    for name in names:
        wanted = [(row["episode"], np.float32(row[name])) for row in history if name in row]
        assert [(e.step, np.float32(e.value)) for e in found.Scalars(name)] == wanted, name


def picture(event) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


def test_event_files_hold_the_history_images_and_maps(ready, tmp_path, whole, monkeypatch):
    pytest.importorskip("tensorboard")
    pools, original = [], runner.Distillation.step

    def step(self):
        pools.append(self.pool)
        return original(self)

    monkeypatch.setattr(runner.Distillation, "step", step)
    ready()
    assert dfkd(tmp_path, "--log", "tensorboard") == 0
    assert result(tmp_path) == result(whole)  # watching changes nothing
    assert_same_curves(tmp_path)
    found = events(tmp_path)
    assert set(found.Tags()["images"]) == {"images", "maps"}
    for name in ("images", "maps"):
        assert [event.step for event in found.Images(name)] == [2, 4, 6]
    newest = tile(pools[-1].newest(8), columns=8)
    assert np.array_equal(picture(found.Images("images")[-1]), newest)
    maps = picture(found.Images("maps")[-1])
    assert maps.shape[1] > 2 * maps.shape[0] > 200  # three rows of eight
    colour = (maps[..., 0].astype(int) - maps[..., 2]).reshape(len(maps), -1)
    assert colour.min() < -50 and colour.max() > 50  # blue and red


@pytest.mark.parametrize("saved", [True, False], ids=["after a checkpoint", "before one"])
def test_event_files_of_a_run_that_was_killed_hold_each_episode_once(
    ready, tmp_path, monkeypatch, saved
):
    pytest.importorskip("tensorboard")
    ready({"episodes": 4, "checkpoint_every": 2, "measure_every": 4})
    original, calls = runner.Distillation.step, []

    def step(self):
        calls.append(1)
        if len(calls) == (3 if saved else 4):  # what SIGKILL would leave is what lies there now
            time.sleep(0.2)  # the writer's thread
            shutil.copytree(tmp_path / "work", tmp_path / "left")
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(runner.Distillation, "step", step)
        assert dfkd(tmp_path, "--log", "tensorboard") == 130
    shutil.rmtree(tmp_path / "work")
    (tmp_path / "left").rename(tmp_path / "work")
    assert step_of(tmp_path) == 2
    assert dfkd(tmp_path, "--resume", "--log", "tensorboard") == 0
    assert_same_curves(tmp_path)


def test_a_place_for_each_run(tmp_path):
    run, place = run_and_place(lay(tmp_path))
    other = replace(run, experiment="x", name="y")
    assert place.folder(other) == tmp_path / "work/x/y"
    assert place.record(other) == tmp_path / "records/x/y.json"
