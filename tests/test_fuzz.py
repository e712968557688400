"""Files that go wrong in seeded ways: a sentence for the user or the right answer, nothing else."""

from __future__ import annotations

import io
import json
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd_lab.file import read_experiment
from dfkd_lite import InputError, NetworkSpec, build, load
from dfkd_lite.data import ImageData
from dfkd_lite.storage.weights import load_network, save_network

FILES = 200
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def sentence_or(action: Callable[[], object]) -> object | None:
    """Do something; None where it was refused with a sentence. Any other error is the test's."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return action()
    except InputError as error:
        text = str(error)
        assert len(text) > 20 and text.rstrip()[-1] in ".)", text
        return None


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Cut, flip, repeat, remove or insert bytes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(data) + 1)
        length = rng.choice((1, 2, 4, 64, 512))
        kind = rng.randrange(5)
        if kind == 0:
            del data[place:]
        elif kind == 1:
            for i in range(place, min(place + length, len(data))):
                data[i] ^= rng.randrange(1, 256)
        elif kind == 2:
            data[place:place] = data[max(0, place - length) : place]
        elif kind == 3:
            del data[place : place + length]
        else:
            data[place:place] = rng.randbytes(length)
    return bytes(data)


# --- npz ---------------------------------------------------------------------------------------


def arrays(rng: random.Random) -> dict[str, np.ndarray]:
    shape = rng.choice(((9, 8, 8), (9, 8, 8, 1), (9, 8, 8, 3), (9, 12, 12)))
    made = np.random.default_rng(rng.randrange(99))
    pixels = made.integers(0, 256, shape, dtype=np.uint8)
    labels = np.arange(9) % 3
    return {
        "train_images": pixels, "train_labels": labels,
        "test_images": pixels[::-1].copy(), "test_labels": labels[::-1].copy(),
    }  # fmt: skip


CASTS = ("float64", ">i4", "uint64", "int8", "bool", "complex64", "U3", "S2", "datetime64[D]")


def changed_array(array: np.ndarray, rng: random.Random) -> np.ndarray:
    kind = rng.randrange(8)
    if kind == 0:
        return array.astype(rng.choice(CASTS))
    if kind == 1:
        return array[: rng.randrange(len(array))]
    if kind == 2:
        return array.reshape(-1)
    if kind == 3:
        return array[..., None]
    if kind == 4:
        return np.asfortranarray(array)
    if kind == 5:
        return array + array.dtype.type(rng.randrange(4))
    if kind == 6:
        return np.array(rng.choice((0, 1.5, "x", None, [[]])), dtype=rng.choice((None, object)))
    return array.T


def check_read(data: ImageData) -> None:
    """What was read holds together: labels in range, names for all, numbers that are finite."""
    for split in data.splits().values():
        images = split.take(slice(0, 4))
        assert images.dtype == torch.uint8 and images.shape[1:] == (
            data.channels, data.size, data.size,
        )  # fmt: skip
        assert split.labels.min() >= 0 and split.labels.max() < data.classes
    assert all(0 <= m <= 1 for m in data.mean) and all(s > 0 for s in data.std)
    assert len(str(data).splitlines()) == 2


@pytest.mark.parametrize("part", range(4))
def test_npz(tmp_path, part):
    read = 0
    for number in range(part * FILES // 4, (part + 1) * FILES // 4):
        rng = random.Random(number)
        content, path = arrays(rng), tmp_path / f"{number}.npz"
        if number % 2:
            name = rng.choice(list(content))
            content[name] = changed_array(content[name], rng)
            if rng.random() < 0.2:
                del content[rng.choice(list(content))]
        save = rng.choice((np.savez, np.savez_compressed))
        save(path, **content)
        if number % 2 == 0:
            path.write_bytes(damaged(path.read_bytes(), rng))
        size = rng.choice((None, 8, 16))
        data = sentence_or(lambda p=path, s=size: load(p, size=s))
        if data is None:
            continue
        check_read(data)
        read += 1
        if data.size == content["train_images"].shape[1]:  # then its pixels are those we wrote
            wanted = content["train_images"].reshape(len(data.train), data.size, data.size, -1)
            found = data.train.images.permute(0, 2, 3, 1).numpy()
            assert np.array_equal(found, wanted), number
            assert np.array_equal(data.train.labels, content["train_labels"].reshape(-1)), number
    assert 0 < read < FILES // 4  # the mutator neither spares nor ruins all


@pytest.mark.parametrize("shape", [(2**40, 8, 8), (2**100, 8, 8), (-1, 8, 8), (True, 8, 8), (9, 9)])
def test_npz_that_tells_a_wrong_shape(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for name, array in arrays(random.Random(0)).items():
            told = io.BytesIO()
            header = {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(told, header)
            file.writestr(f"{name}.npy", told.getvalue() + array.tobytes())
    with pytest.raises(InputError, match="its size is not what it says"):
        load(tmp_path / "a.npz", root=tmp_path / "root")
    assert not (tmp_path / "root").exists()


# --- folders -----------------------------------------------------------------------------------

WORDS = ("cat", "dog", "0", "10", "2", "train", "Test", "val", "a b", "ü", "{x}", "x'y")
JUNK = (".ipynb_checkpoints", "__MACOSX", "._a.png", "Thumbs.db", "notes.txt", "empty")
MODES = ("L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16")


def picture(path: Path, level: int, mode: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", (9, 8), level)
    image = Image.new(mode, (9, 8), 300) if mode == "I;16" else image.convert(mode)
    image.save(path.with_suffix(".jpg" if mode == "CMYK" else ".png"), quality=100)


def folder_of(rng: random.Random, folder: Path) -> dict[str, int] | None:
    """Make a folder; return the level of each class where nothing was damaged, else None."""
    classes = rng.sample(WORDS[:5], rng.randrange(1, 5))
    layout = rng.choice((("",), ("train", "test"), ("Training", "valid", "Testing"), ("TRAIN",)))
    whole = len(classes) > 1
    below = rng.choice(("", "", "in", "in/side"))
    for split in layout:
        for k, name in enumerate(classes):
            for i in range(rng.randrange(2, 5)):
                mode = rng.choices(MODES, (20, 20, 5, 5, 2, 0, 2, 1))[0]
                whole = whole and mode != "I;16"
                picture(folder / below / split / name / f"{i}.png", 20 * k + 20, mode)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for _ in range(rng.choice((0, 0, 1, 2))):
        victim, kind = rng.choice(files), rng.randrange(6)
        if not victim.is_file():
            continue
        if kind == 0:
            whole, _ = False, victim.write_bytes(damaged(victim.read_bytes(), rng))
        elif kind == 1:
            whole, _ = False, shutil.rmtree(victim.parent)
        elif kind == 2:
            junk = victim.parents[rng.randrange(2)] / rng.choice(JUNK[:5])
            picture(junk / "x.png", 255, "L") if not junk.suffix else junk.write_bytes(b"\0")
        elif kind == 3:
            (victim.parent / "gone.png").symlink_to(folder / "nowhere")
            whole = False
        elif kind == 4:
            (victim.parent.parent / rng.choice(WORDS)).mkdir(exist_ok=True)
            whole = False
        else:
            (victim.parent / "again").symlink_to(folder, target_is_directory=True)
    return {name: 20 * k + 20 for k, name in enumerate(classes)} if whole else None


@pytest.mark.parametrize("part", range(4))
def test_folders(tmp_path, part):
    read = 0
    for number in range(part * FILES // 4, (part + 1) * FILES // 4):
        rng, folder = random.Random(number), tmp_path / str(number)
        folder.mkdir()
        known = folder_of(rng, folder)
        data = sentence_or(lambda p=folder: load(p, size=8))
        if known is not None:
            assert data is not None and set(data.class_names) == set(known), number
            numbers = [int(name) for name in data.class_names if name.isdecimal()]
            assert numbers == sorted(numbers)
            for split in data.splits().values():
                levels = split.images[:, 0, 4, 4].tolist()
                for level, label in zip(levels, split.labels.tolist(), strict=True):
                    assert abs(level - known[data.class_names[label]]) <= 3, number
        if data is not None:
            check_read(data)
            read += 1
    assert 0 < read < FILES // 4


# --- safetensors -------------------------------------------------------------------------------

SPECS = {
    "network": ("wrn-10-1", "wrn-9999999-1", "wrn-10-99999", "vgg-11", "", None, 3, ["a"]),
    "classes": (3, 2, 0, -1, 10**9, 10**30, 2.5, "3", None, True),
    "channels": (1, 3, 0, 10**9, "1", None),
    "size": (16, 8, 0, -4, 10**9, 1e9, None),
    "mean": ([0.5], [], [0.5, 0.5], ["a"], None, [float("nan")], [10**400]),
    "std": ([0.5], [0.0], [-1.0], [float("inf")], None, 3),
    "class_names": (["a", "b", "c"], [], ["a"], [1, 2, 3], "abc", None),
    "more": (1,),
}


@pytest.mark.parametrize("part", range(4))
def test_safetensors(tmp_path, part):
    torch.manual_seed(0)
    network = build("wrn-10-1", 3, 1, 16).eval()
    spec = NetworkSpec("wrn-10-1", 3, 1, 16, (0.5,), (0.5,), ("a", "b", "c"))
    save_network(tmp_path / "whole.safetensors", network, spec)
    whole = (tmp_path / "whole.safetensors").read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    images = torch.rand(2, 1, 16, 16)
    for number in range(part * FILES // 4, (part + 1) * FILES // 4):
        rng, path = random.Random(number), tmp_path / f"{number}.safetensors"
        header = json.loads(whole[8:end])
        if number % 3 == 0:
            content = damaged(whole, rng)
        elif number % 3 == 1:
            content = damaged(whole[:end], rng) + whole[end:]
        else:
            told = json.loads(header["__metadata__"]["spec"])
            name = rng.choice(list(SPECS))
            told[name] = rng.choice(SPECS[name])
            told["class_names"] = rng.choice(([], told.get("class_names")))
            header["__metadata__"]["spec"] = rng.choice((json.dumps(told),) * 9 + ("[]", "{", "3"))
            text = json.dumps(header).encode()
            content = len(text).to_bytes(8, "little") + text + whole[end:]
        path.write_bytes(content)
        loaded = sentence_or(lambda p=path: load_network(p))
        if loaded is not None:
            model, found = loaded
            assert found.classes == 3 and found.channels == 1
            with torch.no_grad():
                answer = model(images)
            assert answer.shape == (2, 3)
            if content[end:] == whole[end:] and number % 3 == 2:
                assert answer.equal(network(images))


# --- experiment files --------------------------------------------------------------------------

GRID = """\
about: two variants
data: digits
teacher: wrn-16-1
student: wrn-10-1
method: fssc
seeds: [7, 8]
threads: 2
settings:
  teach: {epochs: 1}
  distill: {episodes: 8, warm_up: 2, student_steps: 2}
grid:
  distill.lr: [0.1, 0.2]
  method.beta: [0, 1.5]
"""
VALUES = (
    "", "~", "yes", "-1", "1e400", ".nan", "0x10", "1_0", "[]", "{}", "[1, [2]]", "*a", "&a 3",
    "!!python/object:os.system x", "'", '"x', "2024-01-01", "9" * 400, "{a: {b: {c: 1}}}", "\t",
    "wrn-99999-1", "wrn-10-99999", "{distill.lr: 1}", "? x", "|", "- a", "\0", "\ud7ff", "=", "<<",
)  # fmt: skip


@pytest.mark.parametrize("part", range(4))
def test_experiments(tmp_path, part):
    (tmp_path / "whole.yaml").write_text(GRID)
    assert len(read_experiment(tmp_path / "whole.yaml")) == 8
    for number in range(part * FILES // 4, (part + 1) * FILES // 4):
        rng, path = random.Random(number), tmp_path / f"{number}.yaml"
        if number % 2:
            content = damaged(GRID.encode(), rng)
        else:
            lines = GRID.splitlines()
            row = rng.randrange(len(lines))
            name = lines[row].partition(":")[0]
            lines[row] = f"{name}: {rng.choice(VALUES)}"
            content = "\n".join(lines).encode()
        path.write_bytes(content)
        runs = sentence_or(lambda p=path: read_experiment(p))
        if runs is not None:
            assert runs and all(run.experiment == str(number) for run in runs)
            assert len({run.name for run in runs}) == len(runs)
