"""Checkpoints: what is saved comes back; what is cut off, damaged or foreign never does harm."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from dfkd_lite.errors import InputError
from dfkd_lite.networks import NetworkSpec
from dfkd_lite.networks.zoo import build
from dfkd_lite.storage import checkpoint, files
from dfkd_lite.storage import weights as stored

SPEC = NetworkSpec("wrn-10-1", 4, 1, 16, (0.25,), (0.5,), ("a", "b", "c", "d"))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build(SPEC.network, SPEC.classes, SPEC.channels, SPEC.size)


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def broken(monkeypatch, function: str, number: int, at: int = 1):
    """Make ``os.<function>`` fail with an error number from its ``at``-th call on."""
    real, calls = getattr(os, function), [0]

    def failing(*args, **kwargs):
        calls[0] += 1
        if calls[0] >= at:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, function, failing)


# --- write_bytes, write_json -----------------------------------------------------------------


def test_write_bytes_makes_folders_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "deep" / "a.bin"
    files.write_bytes(path, b"one")
    files.write_bytes(path, b"two")
    assert path.read_bytes() == b"two" and os.listdir(path.parent) == ["a.bin"]


def test_bytes_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b))[1])
    files.write_bytes(tmp_path / "a", b"x")
    assert events == ["fsync", "replace", "fsync"]  # the file, its name, its folder


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EROFS, "the disk is read-only"),
        (errno.EACCES, "not allowed there"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch, number, message, function):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    broken(monkeypatch, function, number)
    with pytest.raises(InputError, match=rf"a\.bin could not be saved: .*{message}"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


def test_place_below_a_file_or_taken_by_a_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.bin", tmp_path / "file" / "b" / "a.bin"):
        with pytest.raises(InputError, match="a part of its path is a file"):
            files.write_bytes(path, b"x")
    with pytest.raises(InputError, match="a folder has this name"):
        files.write_bytes(tmp_path / "folder", b"x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    with pytest.raises(InputError, match="a part of its path is a file"):
        checkpoint.save_checkpoint(tmp_path / "file", 1, {}, {})


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path / "a", b"x")
    assert os.listdir(tmp_path) == []


def test_json(tmp_path):
    content = {"κ": [1, 2.5, None], "name": "x"}
    files.write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == content
    for bad in ({"a": float("nan")}, {"a": torch.ones(2)}):
        with pytest.raises(InputError, match=r"a\.json cannot be written as JSON"):
            files.write_json(tmp_path / "a.json", bad)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == content


# --- networks and weights --------------------------------------------------------------------


def test_network_comes_back_with_its_spec_and_outputs(tmp_path):
    model, path = network(), tmp_path / "t.safetensors"
    model(torch.rand(8, 1, 16, 16))  # moves the batch-norm statistics away from 0 and 1
    stored.save_network(path, model, SPEC, {"seed": "3"})
    loaded, spec = stored.load_network(path)
    assert spec == SPEC and not loaded.training
    assert same(loaded.state_dict(), model.state_dict())
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(loaded(images), model.eval()(images))
    metadata = stored.read_metadata(path)
    assert metadata["seed"] == "3" and json.loads(metadata["spec"])["classes"] == 4
    assert same(load_file(path), model.state_dict())  # an ordinary safetensors file


def test_equal_networks_make_equal_files(tmp_path):
    notes = {f"note {n}": "ü" * n for n in range(8)}
    for number in range(5):
        stored.save_network(tmp_path / f"{number}.safetensors", network(), SPEC, notes)
    first, *others = (path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert all(other == first for other in others)
    with safe_open(tmp_path / "0.safetensors", "pt") as file:  # the library reads them
        assert {k: v for k, v in file.metadata().items() if k in notes} == notes
        assert same({k: file.get_tensor(k) for k in network().state_dict()}, network().state_dict())


def test_weights_in_other_memory_formats_and_shared_are_saved(tmp_path):
    model = network().to(memory_format=torch.channels_last)
    stored.save_network(tmp_path / "a", model, SPEC)
    assert same(stored.load_network(tmp_path / "a")[0].state_dict(), model.state_dict())
    tied = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    tied["b"].weight = tied["a"].weight
    stored.save_network(tmp_path / "b", tied, SPEC)
    assert torch.equal(load_file(tmp_path / "b")["b.weight"], tied["a"].weight)


@pytest.mark.parametrize("extra", [{"seed": 3}, {"spec": "x"}, {"format": "x"}, {1: "x"}])
def test_notes_must_be_strings_under_free_names(tmp_path, extra):
    with pytest.raises(InputError, match="cannot be saved with the network"):
        stored.save_network(tmp_path / "a", network(), SPEC, extra)
    assert os.listdir(tmp_path) == []


def test_weights_into_a_network_of_ones_own(tmp_path):
    save_file(small(1).state_dict(), tmp_path / "w")
    model = small(2)
    assert not same(model.state_dict(), small(1).state_dict())
    stored.load_weights(tmp_path / "w", model)
    assert same(model.state_dict(), small(1).state_dict())


def change(**tensors):
    """Edits to the weights of ``small``: a tensor to set, or None to leave it out."""
    edited = {k.replace("_", ".", 1): v for k, v in tensors.items()}
    weights = small(1).state_dict() | edited
    return {k: v for k, v in weights.items() if v is not None}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (change(**{"0_weight": None}), r"it lacks 0\.weight;"),
        (
            {k: v for k, v in small().state_dict().items() if k[0] == "0"},
            r"it lacks 1\.bias, 1\.num_batches_tracked, 1\.running_mean and 4 more",
        ),
        (change(**{"9_weight": torch.ones(1)}), r"beyond what the network needs, 9\.weight"),
        (
            change(**{"3_weight": torch.ones(5, 3)}),
            r"'3\.weight' is \(5, 3\) in the file and \(2, 3\) in the network",
        ),
        (change(**{"3_bias": torch.tensor([0, float("nan")])}), r"NaN .*'3\.bias'"),
        (change(**{"1_running_var": torch.full((3,), float("inf"))}), r"'1\.running_var'"),
    ],
)
def test_weights_that_do_not_fit_leave_the_network_as_it_was(tmp_path, weights, message):
    save_file(weights, tmp_path / "w.safetensors")
    model = small(2)
    with pytest.raises(InputError, match=message) as refusal:
        stored.load_weights(tmp_path / "w.safetensors", model)
    assert str(tmp_path / "w.safetensors") in str(refusal.value)
    assert same(model.state_dict(), small(2).state_dict())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["0.weight", "1.running_mean"])
def test_networks_that_are_not_finite_are_refused(tmp_path, value, key):
    model = small()
    stored.check_finite("The teacher", model)
    model.state_dict()[key].view(-1)[1] = value
    with pytest.raises(InputError, match=rf"The teacher has NaN or infinite numbers in '{key}'"):
        stored.check_finite("The teacher", model)
    with pytest.raises(InputError, match=f"The network has NaN .*'{key}'"):
        stored.save_network(tmp_path / "a", model, SPEC)
    assert os.listdir(tmp_path) == []


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def test_files_that_are_not_whole_safetensors(tmp_path):
    path = tmp_path / "t.safetensors"
    stored.save_network(path, network(), SPEC)
    whole = path.read_bytes()
    torch.save({"a": Bomb(tmp_path / "mark")}, tmp_path / "t.pt")
    foreign = (tmp_path / "t.pt").read_bytes()
    plain = pickle.dumps(Bomb(tmp_path / "mark"))
    for content in (whole[:-1], whole[:100], whole + b"x", b"", b"text", foreign, plain):
        path.write_bytes(content)
        for read in (stored.load_network, lambda p: stored.load_weights(p, network())):
            with pytest.raises(InputError, match=r"t\.safetensors is not a safetensors file"):
                read(path)
    assert not (tmp_path / "mark").exists()
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="There is no file"):
            stored.load_network(missing)
        with pytest.raises(InputError, match="There is no file"):
            stored.load_weights(missing, network())


def edited_spec(**fields) -> str:
    spec = {"network": "wrn-10-1", "classes": 4, "channels": 1, "size": 16, "class_names": []}
    spec |= {"mean": [0.2], "std": [0.5]} | fields
    return json.dumps({k: v for k, v in spec.items() if v is not None})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, "save_network did not write it"),
        ("{", "cannot be understood"),
        ("[]", "cannot be understood"),
        (edited_spec(mean=None), "cannot be understood"),
        (edited_spec(classes="4"), "cannot be understood"),
        (edited_spec(size=16.5), "'size' is 16.5; expected: valid integer"),
        (edited_spec(std=[0.0]), "cannot be understood"),
        (edited_spec(colour=1), "cannot be understood"),
        (edited_spec(network="wrm-10-1"), "no network called 'wrm-10-1'"),
        (edited_spec(classes=5), r"\(4, 64\) in the file and \(5, 64\)"),
    ],
)
def test_specs_that_do_not_describe_the_network(tmp_path, spec, message):
    metadata = {"format": "pt"} | ({} if spec is None else {"spec": spec})
    save_file(network().state_dict(), tmp_path / "t", metadata)
    with pytest.raises(InputError, match=message):
        stored.load_network(tmp_path / "t")


# --- checkpoints of a run --------------------------------------------------------------------


def weights(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    return {"student": small(seed).state_dict(), "generator": small(seed + 100).state_dict()}


def run_state() -> dict:
    """What a run keeps: optimiser, random numbers, history."""
    model = small()
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.rand(2, 1, 3, 3)).sum().backward()
    optimiser.step()
    return {
        "optimiser": optimiser.state_dict(),
        "rng": torch.get_rng_state(),
        "history": [{"step": 1, "loss": float("nan")}],
        "pool": torch.arange(6, dtype=torch.uint8),
        "best": None,
    }


def test_checkpoint_comes_back_and_the_one_before_goes(tmp_path):
    state, folder = run_state(), tmp_path / "run"
    assert checkpoint.load_checkpoint(folder) is None
    checkpoint.save_checkpoint(folder, 9, weights(1), {"old": True})
    checkpoint.save_checkpoint(folder, 120, weights(2), state)
    assert os.listdir(folder) == ["step-000120.pt"]
    loaded = checkpoint.load_checkpoint(folder)
    assert loaded.step == 120 and loaded.weights.keys() == {"student", "generator"}
    for name, tensors in weights(2).items():
        assert same(loaded.weights[name], tensors)
    assert torch.equal(loaded.state["rng"], state["rng"])
    assert torch.equal(loaded.state["pool"], state["pool"]) and loaded.state["best"] is None
    moments, before = (s["optimiser"]["state"][0]["exp_avg"] for s in (loaded.state, state))
    assert torch.equal(moments, before) and moments.abs().sum() > 0


def test_the_same_step_again_replaces(tmp_path):
    checkpoint.save_checkpoint(tmp_path, 5, weights(1), {"try": 1})
    checkpoint.save_checkpoint(tmp_path, 5, weights(2), {"try": 2})
    loaded = checkpoint.load_checkpoint(tmp_path)
    assert loaded.state == {"try": 2} and os.listdir(tmp_path) == ["step-000005.pt"]
    assert same(loaded.weights["student"], weights(2)["student"])


def test_an_earlier_step_is_refused(tmp_path):
    checkpoint.save_checkpoint(tmp_path, 50, weights(), {})
    with pytest.raises(InputError, match="holds a checkpoint of step 50, later than step 7"):
        checkpoint.save_checkpoint(tmp_path, 7, weights(), {})
    assert os.listdir(tmp_path) == ["step-000050.pt"]


def test_steps_beyond_six_digits_are_ordered_as_numbers(tmp_path):
    checkpoint.save_checkpoint(tmp_path, 999_999, weights(), {})
    checkpoint.save_checkpoint(tmp_path, 1_000_000, weights(), {})
    assert checkpoint.load_checkpoint(tmp_path).step == 1_000_000


@pytest.mark.parametrize(
    ("step", "tensors", "state", "message"),
    [
        (-1, {}, {}, "step is -1"),
        (1, {"s": {"w": torch.tensor([float("inf")])}}, {}, "At step 1, s has NaN .*diverged"),
        (1, {}, {"path": Bomb(Path("x"))}, r"plain data and tensors only \(found \w+\.mkdir"),
        (1, {}, {"f": lambda: 0}, "plain data and tensors only"),
        (1, {}, [1], "plain data and tensors only .*list"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_written(
    tmp_path, step, tensors, state, message
):
    checkpoint.save_checkpoint(tmp_path, 0, weights(), {"fine": 1})
    with pytest.raises(InputError, match=message):
        checkpoint.save_checkpoint(tmp_path, step, tensors, state)
    assert os.listdir(tmp_path) == ["step-000000.pt"]
    assert checkpoint.load_checkpoint(tmp_path).state == {"fine": 1}


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("step", [1, 2])
def test_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, function, step):
    checkpoint.save_checkpoint(tmp_path, 1, weights(1), {"try": 1})
    with monkeypatch.context() as patch:
        broken(patch, function, errno.ENOSPC)
        with pytest.raises(InputError, match="could not be saved: the disk is full"):
            checkpoint.save_checkpoint(tmp_path, step, weights(2), {"try": 2})
    assert checkpoint.load_checkpoint(tmp_path).state == {"try": 1}
    checkpoint.save_checkpoint(tmp_path, 3, weights(3), {"try": 3})
    assert os.listdir(tmp_path) == ["step-000003.pt"]


KILLED = """
import os, signal, sys
import torch
from dfkd_lite.storage import checkpoint, files

folder, again = sys.argv[1], int(sys.argv[2])

def weights(value):
    return {"student": {"w": torch.full((64,), float(value))}}

def die_at(n):
    # each call that changes what is on the disk, and each byte written, is a chance to die
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
    os.fsync, os.replace, os.unlink = wrap(os.fsync), wrap(os.replace), wrap(os.unlink)
    files.write_synced = wrap(files.write_synced, half_written)

checkpoint.save_checkpoint(folder, 1, weights(1), {"value": 1})
step, deaths, seen = 1, 0, set()
for n in range(1, 100):
    child = os.fork()
    if child == 0:
        die_at(n)
        new = step if again else step + 1
        checkpoint.save_checkpoint(folder, new, weights(100 + n), {"value": 100 + n})
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
    deaths += 1
    found = checkpoint.load_checkpoint(folder)
    value = found.state["value"]
    assert value in (n, 100 + n), (n, value)  # what was there before, or the new one: whole
    assert torch.equal(found.weights["student"]["w"], torch.full((64,), float(value)))
    seen.add("old" if value == n else "new")
    checkpoint.save_checkpoint(folder, found.step + 1, weights(n + 1), {"value": n + 1})
    step = found.step + 1
final = checkpoint.load_checkpoint(folder)
assert final.state["value"] == 100 + n
assert os.listdir(folder) == [f"step-{final.step:06d}.pt"], os.listdir(folder)
print(deaths, sorted(seen))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to kill a writer at every point")
@pytest.mark.parametrize("again", [0, 1], ids=["next step", "same step"])
def test_writer_killed_at_any_point_leaves_a_whole_checkpoint(tmp_path, again):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run"), str(again)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    deaths, seen = done.stdout.split(maxsplit=1)
    assert int(deaths) >= 5 and seen.strip() == "['new', 'old']"


def test_damaged_checkpoint_is_refused_with_the_reason(tmp_path):
    checkpoint.save_checkpoint(tmp_path, 3, weights(), run_state())
    file = tmp_path / "step-000003.pt"
    whole = file.read_bytes()
    for at in (-1, -50, len(whole) // 2, 300):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at:][1:])
        with pytest.raises(InputError, match=r"step-000003\.pt is damaged \(it is not as it was"):
            checkpoint.load_checkpoint(tmp_path)
    file.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="delete this file, and the run starts anew"):
        checkpoint.load_checkpoint(tmp_path)
    file.write_bytes(whole)
    assert checkpoint.load_checkpoint(tmp_path).step == 3


def forge(folder: Path, content: bytes) -> None:
    """Write a checkpoint of step 3 with an honest checksum of a content of one's choice."""
    folder.mkdir()
    digest = hashlib.sha256(content).hexdigest()
    about = json.dumps({"format": checkpoint.CHECKPOINT_FORMAT, "sha256": digest})
    (folder / "step-000003.pt").write_bytes(about.encode() + b"\n" + content)


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_forged_checkpoints_cannot_run_code(tmp_path):
    bomb = {"step": 3, "weights": {}, "state": {"a": Bomb(tmp_path / "mark")}}
    for folder, content in (("a", saved(bomb)), ("b", pickle.dumps(bomb))):
        forge(tmp_path / folder, content)
        with pytest.raises(InputError, match=r"step-000003\.pt is damaged \("):
            checkpoint.load_checkpoint(tmp_path / folder)
    with pytest.raises(InputError, match=r"is damaged \(found \w+\.mkdir"):
        checkpoint.load_checkpoint(tmp_path / "a")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not torch.save's", ""),
        (saved([1]), ""),
        (saved({"step": 3}), ""),
        (saved({"step": 3, "weights": {}, "state": [1]}), r"it is a list, not a dictionary"),
        (
            saved({"step": 3, "weights": {"s": {"w": torch.tensor([math.nan])}}, "state": {}}),
            r"s has NaN",
        ),
        (saved({"step": 4, "weights": {}, "state": {}}), "it says step 4"),
    ],
)
def test_forged_content_is_refused(tmp_path, content, message):
    forge(tmp_path / "run", content)
    with pytest.raises(InputError, match=rf"is damaged \(.*{message}"):
        checkpoint.load_checkpoint(tmp_path / "run")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]\n",
        b"{}\n",
        b'{"format": "other", "sha256": ""}\n',
        b'{"format": "dfkd_lite checkpoint 2"}\n',
        b"\x80\x00\n",
    ],
)
def test_foreign_files_are_refused(tmp_path, content):
    (tmp_path / "step-000003.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"step-000003\.pt is not a checkpoint of this package"):
        checkpoint.load_checkpoint(tmp_path)


def test_renamed_checkpoint_is_refused(tmp_path):
    checkpoint.save_checkpoint(tmp_path, 3, weights(), {})
    os.rename(tmp_path / "step-000003.pt", tmp_path / "step-000009.pt")
    with pytest.raises(InputError, match="it says step 3"):
        checkpoint.load_checkpoint(tmp_path)


def test_other_things_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "step-notes").mkdir()
    (tmp_path / "history.json").write_text("{}")
    assert checkpoint.load_checkpoint(tmp_path) is None
    checkpoint.save_checkpoint(tmp_path, 1, weights(), {})
    checkpoint.save_checkpoint(tmp_path, 2, weights(), {})
    assert sorted(os.listdir(tmp_path)) == ["history.json", "step-000002.pt", "step-notes"]
