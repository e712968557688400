"""Kept teachers: their cards tell the truth, and what was cut off or damaged is never used."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dfkd_lab import trained
from dfkd_lab.trained import find_teacher, keep_teacher, taught
from dfkd_lite.data import FolderSplit, ImageData, Split, load
from dfkd_lite.errors import InputError
from dfkd_lite.measure.evaluate import evaluate
from dfkd_lite.networks import build
from dfkd_lite.settings import plain
from dfkd_lite.storage.checkpoint import load_checkpoint
from dfkd_lite.storage.weights import load_network, read_metadata
from dfkd_lite.teach import TeachConfig, Teaching, teach

CONFIG = TeachConfig(epochs=3, batch_size=32, shift=1, flip=False, seed=7)


def some(data: ImageData, name: str = "some", taught_on: int = 160, held_out: int = 100):
    """The first digits only: an epoch takes a moment."""
    train, test = data.train, data.test
    return replace(
        data,
        name=name,
        train=Split(train.images[:taught_on], train.labels[:taught_on]),
        test=Split(test.images[:held_out], test.labels[:held_out]),
    )


@pytest.fixture(scope="module")
def digits():
    return some(load("digits"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DFKD_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def kept(digits, tmp_path_factory):
    """A folder with the teacher of ``CONFIG``, trained without disturbance."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFKD_DATA", str(folder))
        quiet(digits)
    return folder


def quiet(data, config=CONFIG, network="wrn-10-1"):
    return taught(data, network, config, "cpu", progress=False)


def file_in(folder: Path) -> Path:
    (path,) = folder.glob("teachers/*.safetensors")
    return path


def same(one, two) -> bool:
    one, two = one.state_dict(), two.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def untimed(history: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in history]


def right(network, data: ImageData) -> float:
    """Test accuracy, counted here."""
    x = (data.test.images.float() / 255 - data.mean[0]) / data.std[0]
    with torch.no_grad():
        return (network(x).argmax(1) == data.test.labels).double().mean().item()


def interrupted(monkeypatch, number: int, step: str = "epoch", error=RuntimeError):
    """Let the ``number``-th call of ``Teaching``'s method fail."""
    original, calls = getattr(Teaching, step), []

    def failing(self, *arguments):
        calls.append(1)
        if len(calls) == number:
            raise error
        return original(self, *arguments)

    monkeypatch.setattr(Teaching, step, failing)


# --- The card ----------------------------------------------------------------------------------


def test_the_card_is_true_of_the_file(digits, kept, folder, monkeypatch):
    path = file_in(kept)
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    network, spec = load_network(path)
    assert card["test"]["accuracy"] == right(network, digits) > 0.15  # guessing: 0.1
    again = evaluate(network, digits.test, spec)
    assert card["test"]["confusion"] == again["confusion"]
    for measure in ("macro_f1", "auc", "ece"):  # the trained one lay otherwise in memory
        assert card["test"][measure] == pytest.approx(again[measure], abs=1e-6)
    assert float(read_metadata(path)["test_accuracy"]) == pytest.approx(right(network, digits))
    assert card["settings"] == plain(CONFIG) and card["settings"]["seed"] == card["seed"] == 7
    assert (card["network"], card["epochs"], card["stored_as"]) == ("wrn-10-1", 3, "float32")
    pixels = digits.train.images.numpy().tobytes() + digits.train.labels.numpy().tobytes()
    pixels += digits.test.images.numpy().tobytes() + digits.test.labels.numpy().tobytes()
    assert card["data"]["sha256"] == hashlib.sha256(pixels).hexdigest()
    assert (card["data"]["train_images"], card["data"]["test_images"]) == (160, 100)
    assert [row["epoch"] for row in card["history"]] == [1, 2, 3]
    assert card["environment"]["device"] == "cpu" and card["seconds"] > 0
    # and what is given is what the file holds
    monkeypatch.setenv("DFKD_DATA", str(kept))
    monkeypatch.setattr(trained, "teach", None)
    given, given_spec, given_card = quiet(digits)
    assert same(given, network) and not given.training
    assert (given_spec, given_card) == (spec, card)


def test_a_kept_teacher_is_the_one_that_was_trained(digits, kept):
    model, spec, history = teach("wrn-10-1", digits, CONFIG, "cpu", progress=False)
    network, kept_spec = load_network(file_in(kept))
    assert same(model, network) and kept_spec == spec
    card = json.loads(file_in(kept).with_suffix(".json").read_text())
    assert untimed(card["history"]) == untimed(history)


def keep(folder: Path, network, data: ImageData) -> tuple[Path, dict]:
    path = folder / "teacher.safetensors"
    spec = data.spec("wrn-10-2")
    keep_teacher(path, network, spec, data, CONFIG, {"seconds": 1.0})
    return path, json.loads(path.with_suffix(".json").read_text())


def large(biases: list[float]):
    """1.2 MB of random weights, all of whose answers are these, plus what is common to all."""
    network = build("wrn-10-2", 10, 1, 16)
    network(torch.rand(64, 1, 16, 16))
    with torch.no_grad():
        network.fc.weight.copy_(network.fc.weight[:1].expand_as(network.fc.weight).clone())
        network.fc.bias.copy_(torch.tensor(biases + [0.0] * (10 - len(biases))))
    return network.eval()


def labelled(data: ImageData, label: int) -> ImageData:
    labels = torch.full_like(data.test.labels, label)
    return replace(data, test=Split(data.test.images, labels))


def test_large_weights_are_halved_where_that_changes_no_accuracy(folder, digits):
    network = large([0.0, 1.0])
    before = copy.deepcopy(network)
    path, card = keep(folder, network, labelled(digits, 1))
    assert same(network, before)  # the caller's network is not rounded
    stored = load_file(path)
    assert card["stored_as"] == "float16" and card["test"]["accuracy"] == 1.0
    assert {v.dtype for v in stored.values() if v.is_floating_point()} == {torch.float16}
    assert path.stat().st_size < 0.55 * 1_217_440  # 304 360 numbers
    loaded, spec = load_network(path)
    for key, value in before.state_dict().items():
        half = value.half().float() if value.is_floating_point() else value
        assert torch.equal(loaded.state_dict()[key], half), key
    # the report is of what the file holds, not of what was trained
    assert card["test"] == evaluate(loaded, labelled(digits, 1).test, spec)
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("label", "accuracy"), [(1, 1.0), (0, 0.0)], ids=["worse", "better"])
def test_weights_whose_rounding_would_change_the_accuracy_are_kept_as_they_are(
    folder, digits, label, accuracy
):
    network = large([1.0, 1.00001])  # always class 1; rounded, a tie, and class 0
    path, card = keep(folder, network, labelled(digits, label))
    assert card["stored_as"] == "float32" and card["test"]["accuracy"] == accuracy
    assert same(load_network(path)[0], network)


@pytest.mark.parametrize("key", ["stage1.0.bn1.running_var", "fc.bias", "conv1.weight"])
def test_weights_beyond_float16_are_kept_as_they_are(folder, digits, key):
    network = large([0.0, 1.0])
    network.state_dict()[key].view(-1)[0] = 1e5  # the largest float16 is 65 504
    path, card = keep(folder, network, labelled(digits, 1))
    assert card["stored_as"] == "float32"
    assert same(load_network(path)[0], network)


def test_small_weights_are_never_rounded(folder, digits, kept):
    stored = load_file(file_in(kept))
    assert {v.dtype for v in stored.values() if v.is_floating_point()} == {torch.float32}


# --- Found again, or not -----------------------------------------------------------------------


def test_same_settings_same_file_and_others_another(digits, kept, tmp_path, monkeypatch):
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    first = file_in(tmp_path)
    content, moment = first.read_bytes(), first.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(trained, "teach", None)
        assert find_teacher(digits, "wrn-10-1", CONFIG) == first
        quiet(digits)
    short = replace(CONFIG, epochs=1)
    others = [
        (digits, "wrn-10-1", short),
        (digits, "wrn-10-1", replace(short, lr=0.05)),
        (digits, "wrn-10-1", replace(short, precision="bfloat16")),
        (digits, "wrn-10-1", replace(short, seed=70)),
        (digits, "wrn-16-1", short),
        (some(digits, "other"), "wrn-10-1", short),
    ]
    found = {first}
    for data, network, config in others:
        assert find_teacher(data, network, config) is None
        quiet(data, config, network)
        path = find_teacher(data, network, config)
        assert path not in found
        found.add(path)
    assert set(tmp_path.glob("teachers/*.safetensors")) == found
    assert (first.read_bytes(), first.stat().st_mtime_ns) == (content, moment)
    assert all(path.with_suffix(".json").is_file() for path in found)


def test_other_images_under_the_same_name_are_other_data(digits, kept, tmp_path):
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    first, darker = file_in(tmp_path), digits.train.images // 2
    other = replace(digits, train=Split(darker, digits.train.labels), mean=(0.1,))
    assert find_teacher(other, "wrn-10-1", CONFIG) is None
    content = first.read_bytes()
    _, spec, card = quiet(other)
    assert spec.mean == (0.1,) and first.read_bytes() == content
    before = json.loads(first.with_suffix(".json").read_text())
    assert card["data"]["sha256"] != before["data"]["sha256"]


def test_files_of_one_name_in_two_folders_do_not_replace_each_other(digits, tmp_path):
    short = replace(CONFIG, epochs=1)
    one, two = some(digits, "/a/mine.npz"), some(digits, "/b/mine.npz", taught_on=96)
    quiet(one, short)
    path = find_teacher(one, "wrn-10-1", short)
    content = path.read_bytes()
    quiet(two, short)
    assert path.read_bytes() == content and find_teacher(one, "wrn-10-1", short) == path
    assert find_teacher(two, "wrn-10-1", short) not in (None, path)


def test_folders_whose_files_have_the_same_names_are_other_data(digits, tmp_path):
    def photos(folder: Path, images: torch.Tensor) -> ImageData:
        folder.mkdir(parents=True)
        paths = tuple(folder / f"{number}.png" for number in range(len(images)))
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image[0].numpy()).save(path)
        split = FolderSplit(paths, digits.train.labels[: len(images)], 1, 16)
        return replace(digits, name=f"{folder}", train=split, test=split)

    images, short = digits.train.images[:20], replace(CONFIG, epochs=1)
    one = photos(tmp_path / "one/photos", images)
    other = photos(tmp_path / "other/photos", torch.randint_like(images, 256))
    quiet(one, short)
    assert find_teacher(one, "wrn-10-1", short) is not None
    assert find_teacher(other, "wrn-10-1", short) is None


def test_a_name_with_brackets_is_found_again(digits, monkeypatch):
    data, short = some(digits, "photos [2024]"), replace(CONFIG, epochs=1)
    quiet(data, short)
    assert find_teacher(data, "wrn-10-1", short) is not None


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGES = {
    "a weight": ("safetensors", lambda content: flipped(content, len(content) - 100)),
    "in the middle": ("safetensors", lambda content: flipped(content, len(content) // 2)),
    "the header": ("safetensors", lambda content: flipped(content, 3)),
    "cut": ("safetensors", lambda content: content[:-1]),
    "empty": ("safetensors", lambda content: b""),
    "gone": ("safetensors", None),
    "card cut": ("json", lambda content: content[: len(content) // 2]),
    "card of another": ("json", lambda content: b"{}"),
    "card empty": ("json", lambda content: b""),
    "card gone": ("json", None),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_teacher_is_refused_or_made_anew(digits, kept, tmp_path, name):
    ending, damage = DAMAGES[name]
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    path = file_in(tmp_path).with_suffix(f".{ending}")
    whole = load_network(file_in(kept))[0]
    card = json.loads(file_in(kept).with_suffix(".json").read_text())
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    try:
        network, _, found = quiet(digits)
    except InputError as error:
        assert path.stem in str(error) and len(str(error)) > len(str(path))
    else:
        assert same(network, whole) and found["sha256"] == card["sha256"]
        assert file_in(tmp_path).read_bytes() == file_in(kept).read_bytes()


# --- Cut off, and gone on ----------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cut_off_and_gone_on_with_is_as_if_nothing_had_happened(
    digits, tmp_path, monkeypatch, precision
):
    config = replace(CONFIG, precision=precision)
    whole, _, history = teach("wrn-10-1", digits, config, "cpu", progress=False)
    arguments = ("wrn-10-1", digits, config, "cpu", False, tmp_path / "run", True)
    for method, number, error, left in (
        ("epoch", 1, KeyboardInterrupt, 0),
        ("_step", 8, RuntimeError, 1),  # in the middle of the second epoch, of 5 steps
        ("epoch", 2, MemoryError, 2),
    ):
        with monkeypatch.context() as patch:
            interrupted(patch, number, method, error)
            with pytest.raises(error):
                teach(*arguments)
        found = load_checkpoint(tmp_path / "run")
        assert (found.step if found else 0) == left
    torch.manual_seed(99)  # the global state does not matter
    again, spec, resumed = teach(*arguments)
    assert untimed(resumed) == untimed(history) and same(again, whole) and not again.training
    assert spec == digits.spec("wrn-10-1")
    finished, _, thrice = teach(*arguments)  # a finished one goes on to itself
    assert untimed(thrice) == untimed(history) and same(finished, whole)


def test_bfloat16_is_not_float32_but_its_weights_are(digits):
    short = replace(CONFIG, epochs=1)
    one, two = (
        teach("wrn-10-1", digits, replace(short, precision=precision), "cpu", progress=False)[0]
        for precision in ("float32", "bfloat16")
    )
    assert not same(one, two)
    assert all(p.dtype == torch.float32 for p in two.parameters())
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.05)


def test_another_run_in_the_folder_is_refused(digits, tmp_path, monkeypatch):
    def begin(config=CONFIG, resume=False, network="wrn-10-1", data=digits):
        teach(network, data, config, "cpu", False, tmp_path / "run", resume)

    with monkeypatch.context() as patch:
        interrupted(patch, 2)
        with pytest.raises(RuntimeError):
            begin()
    with pytest.raises(InputError, match=r"already holds a run \(at step 1\): continue it with"):
        begin()
    for changes in (
        {"config": replace(CONFIG, lr=0.05)},
        {"config": replace(CONFIG, precision="bfloat16")},
        {"config": replace(CONFIG, seed=8)},
        {"network": "wrn-10-2"},
        {"data": some(digits, "other")},
    ):
        with pytest.raises(InputError, match="a run with other settings"):
            begin(resume=True, **changes)
    assert load_checkpoint(tmp_path / "run").step == 1


def test_taught_goes_on_by_itself_to_the_same_file(digits, kept, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted(patch, 3)
        with pytest.raises(RuntimeError):
            quiet(digits)
    assert not (tmp_path / "teachers").exists()
    (step,) = tmp_path.glob("checkpoints/*/step-*")
    assert step.name == "step-000002.pt"
    _, _, card = quiet(digits)
    assert file_in(tmp_path).read_bytes() == file_in(kept).read_bytes()
    whole = json.loads(file_in(kept).with_suffix(".json").read_text())
    for one in (card, whole):
        one["history"] = untimed(one["history"])
        del one["seconds"]
    assert card == whole
    assert not list((tmp_path / "checkpoints").iterdir())


def test_the_cards_seconds_are_those_of_all_parts(digits, monkeypatch):
    original, clock = Teaching._step, [0.0]

    def step(self, *batch):
        clock[0] += 20
        return original(self, *batch)

    monkeypatch.setattr(Teaching, "_step", step)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    with monkeypatch.context() as patch:
        interrupted(patch, 3)
        with pytest.raises(RuntimeError):
            quiet(digits)
    _, _, card = quiet(digits)
    assert card["seconds"] == 3 * 5 * 20  # epochs, steps, seconds


def test_a_damaged_checkpoint_is_refused_with_its_place(digits, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted(patch, 2)
        with pytest.raises(RuntimeError):
            quiet(digits)
    (path,) = tmp_path.glob("checkpoints/*/step-000001.pt")
    content = path.read_bytes()
    path.write_bytes(flipped(content, len(content) - 60))
    with pytest.raises(InputError, match=r"step-000001\.pt is damaged \(it is not as it was"):
        quiet(digits)
    assert not (tmp_path / "teachers").exists()
