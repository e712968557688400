"""Data: values against the sources themselves, NumPy, Pillow and scikit-learn; refusals by name."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import io
import os
import sys
import tarfile
import threading
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from medmnist import BreastMNIST
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from dfkd_lite import data
from dfkd_lite.data import download, folders, medmnist, npz
from dfkd_lite.data.cifar import CIFAR_FILES
from dfkd_lite.errors import InputError
from dfkd_lite.networks import NetworkSpec


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing may leave the machine; the download tests talk to 127.0.0.1 only."""
    real = urllib.request.urlopen

    def local_only(request, **kwargs):
        assert request.host.startswith("127.0.0.1"), f"asked {request.full_url}"
        return real(request, **kwargs)

    monkeypatch.setattr(urllib.request, "urlopen", local_only)


# --- splits ----------------------------------------------------------------------------------


def make_split(count: int = 10, channels: int = 3, size: int = 8) -> data.Split:
    images = torch.from_numpy(pixels(count, channels, size, size))
    return data.Split(images, torch.arange(count) % 4)


def test_batches_are_in_order_in_unit_range_and_complete():
    split = make_split(10)
    batches = list(split.batches(4))
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert np.array_equal(images.numpy(), split.images.numpy().astype(np.float32) / 255)
    assert torch.equal(labels, split.labels)
    assert len(split) == 10


def test_shuffled_batches_are_the_permutation_of_the_generator():
    split = make_split(10)
    order = torch.randperm(10, generator=rng(3))
    images, labels = (torch.cat(p) for p in zip(*split.batches(4, rng(3)), strict=True))
    assert not torch.equal(order, torch.arange(10))
    assert torch.equal(images, split.images[order].float() / 255)
    assert torch.equal(labels, split.labels[order])


def test_batches_do_not_change_the_split():
    split = make_split(4)
    before = split.images.clone()
    next(split.batches(4))[0].zero_()
    assert torch.equal(split.images, before)


def test_bad_batch_size_is_refused_at_once():
    with pytest.raises(InputError, match="batch_size is 0"):
        make_split().batches(0)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 8, 8), torch.zeros(2).long(), "must be uint8"),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), torch.zeros(2).long(), "shape"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(3).long(), "each of the 2"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2), "must be int64"),
    ],
)
def test_split_refuses_other_tensors(images, labels, message):
    with pytest.raises(InputError, match=message):
        data.Split(images, labels)


# --- digits ----------------------------------------------------------------------------------


def test_digits_split_is_scikit_learns_and_never_changes():
    digits, labels = data.load("digits"), load_digits().target
    train, test = train_test_split(range(1797), test_size=500, stratify=labels, random_state=0)
    assert (len(digits.train), len(digits.test), digits.val) == (1297, 500, None)
    assert digits.train.labels.tolist() == labels[sorted(train)].tolist()
    assert digits.test.labels.tolist() == labels[sorted(test)].tolist()
    # pinned, so that another version of scikit-learn or NumPy cannot move the split unnoticed
    digest = hashlib.sha256(digits.test.labels.numpy().astype(np.uint8).tobytes()).hexdigest()
    assert digest.startswith("316d8a35ce569252")
    share = np.bincount(digits.test.labels) / np.bincount(labels)
    assert share.min() > 0.27 and share.max() < 0.29


def test_digits_at_their_own_size_are_the_source():
    digits = data.load("digits", size=8)
    _, test = train_test_split(
        range(1797), test_size=500, stratify=load_digits().target, random_state=0
    )
    source = np.rint(load_digits().images[sorted(test)] * 255 / 16)
    assert np.array_equal(digits.test.images[:, 0].numpy(), source)


@pytest.mark.parametrize("size", [16, 28])
def test_digits_are_enlarged_as_pillow_does(size):
    small, large = data.load("digits", size=8).test, data.load("digits", size=size).test
    assert large.images.shape == (500, 1, size, size)
    for i in range(0, 500, 50):
        picture = Image.fromarray(small.images[i, 0].numpy().astype(np.float32))
        enlarged = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
        # half a level from rounding here, half from the source having been rounded
        assert np.abs(enlarged - large.images[i, 0].numpy()).max() <= 1.01


def test_digits_default_size_statistics_and_spec():
    digits = data.load("digits")
    values = digits.train.images.numpy() / 255
    assert (digits.size, digits.channels, digits.classes) == (16, 1, 10)
    assert digits.mean == pytest.approx([values.mean()], abs=1e-9)
    assert digits.std == pytest.approx([values.std()], abs=1e-9)
    assert digits.spec("wrn-16-1") == NetworkSpec(
        "wrn-16-1", 10, 1, 16, digits.mean, digits.std, tuple("0123456789")
    )


@pytest.mark.parametrize(("size", "message"), [(7, "at least 8"), (225, "at most 224")])
def test_size_out_of_range(size, message):
    with pytest.raises(InputError, match=message):
        data.load("digits", size=size)


@pytest.mark.parametrize("size", [16.0, True, "16"])
def test_size_must_be_whole(size):
    with pytest.raises(InputError, match="whole number"):
        data.load("digits", size=size)


# --- names and paths -------------------------------------------------------------------------


def test_unknown_name_offers_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'pathmnist'"):
        data.load("pathmnits")
    with pytest.raises(InputError, match="Did you mean 'cifar10'"):
        data.load("cifar-10")


def test_names_are_medmnists_and_ours():
    assert {"digits", "cifar100", "imagenet100", "pathmnist", "bloodmnist"} <= set(data.names())


def test_missing_path_and_wrong_file(tmp_path):
    with pytest.raises(InputError, match=r"no file or folder .*photos"):
        data.load(tmp_path / "photos")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"notes\.txt is neither a folder"):
        data.load(tmp_path / "notes.txt")


def test_root_is_the_argument_then_the_environment_then_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("DFKD_DATA", raising=False)
    assert data.data_root() == Path("data/downloads")
    monkeypatch.setenv("DFKD_DATA", str(tmp_path / "a"))
    assert data.data_root() == tmp_path / "a"
    assert data.data_root(tmp_path / "b") == tmp_path / "b"


@pytest.mark.parametrize(
    ("name", "file", "address"),
    [
        ("pneumoniamnist", "pneumoniamnist.npz", "zenodo.org"),
        ("cifar10", "cifar-10-binary.tar.gz", "cs.toronto.edu"),
        ("cifar100", "cifar-100-binary.tar.gz", "cs.toronto.edu"),
        ("tiny-imagenet", "tiny-imagenet-200.zip", "cs231n.stanford.edu"),
        ("imagenette", "imagenette2-320.tgz", "fast-ai-imageclas"),
    ],
)
def test_missing_data_says_what_where_and_how(tmp_path, name, file, address):
    with pytest.raises(InputError) as refusal:
        data.load(name, root=tmp_path / "root")
    text = str(refusal.value)
    assert str(tmp_path / "root" / file) in text and address in text
    assert "download=True" in text and "--download" in text
    assert not (tmp_path / "root").exists()


# --- npz -------------------------------------------------------------------------------------


def arrays(size: int = 12, channels: int = 0, classes: int = 3, val: bool = True) -> dict:
    """Images and labels (N, 1) in MedMNIST's layout."""
    made = {}
    for seed, (split, count) in enumerate({"train": 12, "val": 5, "test": 6}.items()):
        shape = (count, size, size, channels) if channels else (count, size, size)
        made[f"{split}_images"] = pixels(*shape, seed=seed)
        made[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % classes)[:, None]
    return {k: v for k, v in made.items() if val or not k.startswith("val")}


def save(path: Path, content: dict) -> Path:
    np.savez_compressed(path, **content)
    return path


@pytest.mark.parametrize("channels", [0, 1, 3])
def test_npz_in_medmnists_layout(tmp_path, channels):
    content = arrays(channels=channels)
    loaded = data.load(save(tmp_path / "a.npz", content))
    for split in ("train", "val", "test"):
        images, labels = content[f"{split}_images"], content[f"{split}_labels"][:, 0]
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        assert np.array_equal(getattr(loaded, split).images.numpy(), images)
        assert getattr(loaded, split).labels.tolist() == labels.tolist()
    values = content["train_images"].reshape(12, 144, channels or 1) / 255
    assert loaded.mean == pytest.approx(values.mean((0, 1)), abs=1e-9)
    assert loaded.std == pytest.approx(values.std((0, 1)), abs=1e-9)
    assert (loaded.channels, loaded.size, loaded.class_names) == (channels or 1, 12, tuple("012"))


def test_npz_in_keras_layout(tmp_path):
    content = arrays(channels=3, val=False)
    keras = {
        "x_train": content["train_images"],
        "y_train": content["train_labels"][:, 0].astype(np.int64),
        "x_test": content["test_images"],
        "y_test": content["test_labels"][:, 0],
    }
    loaded = data.load(str(save(tmp_path / "k.npz", keras)))
    assert loaded.val is None
    assert np.array_equal(loaded.train.images.numpy(), keras["x_train"].transpose(0, 3, 1, 2))
    assert loaded.test.labels.tolist() == keras["y_test"].tolist()


@pytest.mark.parametrize("size", [8, 20])
def test_npz_is_resized_as_pillow_does(tmp_path, size):
    content = arrays(channels=3)
    loaded = data.load(save(tmp_path / "a.npz", content), size=size)
    assert loaded.size == size
    for image, source in zip(loaded.test.images, content["test_images"], strict=True):
        resized = Image.fromarray(source).resize((size, size), Image.Resampling.BILINEAR)
        difference = image.numpy().transpose(1, 2, 0) - np.asarray(resized, float)
        assert np.abs(difference).max() <= 1 and abs(difference.mean()) < 0.1  # rounded, not cut


def test_constant_channel_does_not_divide_by_zero(tmp_path):
    content = arrays()
    content["train_images"][:] = 51
    loaded = data.load(save(tmp_path / "a.npz", content))
    assert loaded.mean == pytest.approx((0.2,)) and loaded.std == (1 / 255,)


def test_npz_too_large_for_memory_is_mapped_from_disk(tmp_path, monkeypatch):
    path = save(tmp_path / "a.npz", arrays(channels=3))
    whole = data.load(path)
    monkeypatch.setattr(npz, "MEMORY_LIMIT", 0)
    monkeypatch.setattr("dfkd_lite.data.images.resize", None)
    mapped = data.load(path, root=tmp_path / "root")
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "root").rglob("*") if p.is_file()}
    assert len(files) == 6 and all(p.suffix == ".npy" for p in files)
    assert torch.equal(mapped.train.images, whole.train.images)
    assert (mapped.mean, mapped.std) == (whole.mean, whole.std)
    for a, b in zip(mapped.test.batches(4, rng()), whole.test.batches(4, rng()), strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    mapped.train.images.zero_()  # must not reach the file
    again = data.load(path, root=tmp_path / "root")
    assert torch.equal(again.train.images, whole.train.images)
    assert files == {p: p.stat().st_mtime_ns for p in files}


def without(key: str) -> dict:
    return {k: v for k, v in arrays().items() if k != key}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without("test_images"), "it needs train_images"),
        ({}, "holds nothing"),
        (arrays() | {"train_images": np.zeros((12, 12, 12))}, "train_images is float64"),
        (arrays() | {"test_images": np.zeros((6, 144), np.uint8)}, r"test_images has shape \(6, 1"),
        (arrays() | {"train_images": pixels(12, 3, 12, 12)}, r"\(N, H, W, C\)"),
        (arrays() | {"train_images": pixels(12, 12, 14)}, "square"),
        (arrays() | {"train_images": pixels(12, 4, 4)}, "at least 8"),
        (arrays() | {"test_images": pixels(6, 16, 16)}, "differ in image shape"),
        (arrays() | {"train_labels": np.zeros((11, 1), int)}, "for 12 images"),
        (arrays() | {"train_labels": np.eye(12, dtype=int)}, "several numbers an image"),
        (arrays() | {"train_labels": np.zeros(12)}, "train_labels is float64"),
        (arrays() | {"train_labels": np.arange(12) % 3 * 2}, "without gaps"),
        (arrays() | {"train_labels": np.zeros(12, int)}, "single class"),
        (arrays() | {"test_labels": np.arange(6)}, "test labels run from 0 to 5"),
        (arrays() | {"test_labels": np.arange(6) % 3 - 1}, "test labels run from -1"),
        (
            arrays() | {"test_images": pixels(0, 12, 12), "test_labels": np.zeros(0, int)},
            "at least one image",
        ),
    ],
)
def test_npz_refusals(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as refusal:
        data.load(save(tmp_path / "a.npz", content))
    assert str(tmp_path / "a.npz") in str(refusal.value)


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_pickled_arrays_are_refused_and_never_opened(tmp_path):
    content = arrays() | {"train_images": np.array([Bomb(tmp_path / "mark")], dtype=object)}
    with pytest.raises(InputError, match=r"train_images\.npy is pickled.*refused"):
        data.load(save(tmp_path / "a.npz", content))
    assert not (tmp_path / "mark").exists()
    np.load(tmp_path / "a.npz", allow_pickle=True)["train_images"]
    assert (tmp_path / "mark").exists()  # the bomb is a real one


def test_damaged_npz(tmp_path):
    path = save(tmp_path / "a.npz", arrays())
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    for content in (whole[:middle], b"", b"GIF89a", flipped):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.npz is not an \.npz file, or it is damaged"):
            data.load(path)


# --- MedMNIST --------------------------------------------------------------------------------


def test_medmnist_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(InputError, match="pip install medmnist"):
        data.load("pathmnist")
    assert data.load("digits").classes == 10


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("chestmnist", 28, "several labels at once"),
        ("organmnist3d", 28, "flat images only"),
        ("pathmnist", 32, "28, 64, 128, 224 px, not in 32"),
    ],
)
def test_medmnist_refusals(tmp_path, name, size, message):
    with pytest.raises(InputError, match=message):
        data.load(name, root=tmp_path, size=size)


def breast(size: int = 28) -> dict:
    made = {}
    for split, count in {"train": 546, "val": 78, "test": 156}.items():
        made[f"{split}_images"] = pixels(count, size, size, seed=count)
        made[f"{split}_labels"] = (np.arange(count) % 2).astype(np.uint8)[:, None]
    return made


def test_medmnist_by_name_takes_classes_from_the_table(tmp_path):
    save(tmp_path / "breastmnist_64.npz", breast(64))
    loaded = data.load("BreastMNIST", root=tmp_path, size=64)
    assert loaded.class_names == ("malignant", "normal, benign")
    assert (loaded.name, loaded.size, loaded.channels) == ("breastmnist", 64, 1)
    for split in ("train", "val", "test"):
        theirs, ours = BreastMNIST(split, root=tmp_path, size=64), getattr(loaded, split)
        assert np.array_equal(ours.images[:, 0].numpy(), theirs.imgs)
        assert np.array_equal(ours.labels.numpy(), theirs.labels[:, 0])


def test_medmnist_file_of_another_set_is_refused(tmp_path):
    save(tmp_path / "pneumoniamnist.npz", breast())
    with pytest.raises(InputError, match="is not the file of pneumoniamnist at 28 px"):
        data.load("pneumoniamnist", root=tmp_path)
    save(tmp_path / "breastmnist.npz", breast(64))
    with pytest.raises(InputError, match="1 x 64 x 64"):
        data.load("breastmnist", root=tmp_path)


def test_medmnist_labels_beyond_the_table_are_refused(tmp_path):
    content = breast()
    content["val_labels"][3] = 2
    save(tmp_path / "breastmnist.npz", content)
    with pytest.raises(InputError, match="val labels run from 0 to 2, but there are 2 classes"):
        data.load("breastmnist", root=tmp_path)


def test_real_pneumoniamnist():
    folder = os.environ.get("DFKD_TEST_DATA")
    if not folder or not (Path(folder) / "medmnist" / "pneumoniamnist.npz").is_file():
        pytest.skip("needs DFKD_TEST_DATA: a folder with medmnist/pneumoniamnist.npz")
    loaded = data.load("pneumoniamnist", root=Path(folder) / "medmnist")
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (4708, 524, 624)
    assert loaded.class_names == ("normal", "pneumonia")
    assert torch.bincount(loaded.test.labels).tolist() == [234, 390]  # 62.5 % pneumonia
    assert (loaded.channels, loaded.size, loaded.classes) == (1, 28, 2)


# --- CIFAR -----------------------------------------------------------------------------------


def cifar(monkeypatch, name: str, records: int = 7, test_records: int = 5):
    """Shrink the archive's expected counts; give its layout back."""
    files = dataclasses.replace(CIFAR_FILES[name], records=records, test_records=test_records)
    monkeypatch.setitem(CIFAR_FILES, name, files)
    return files


def cifar_records(count: int, classes: int, coarse: bool, seed: int):
    images, labels = pixels(count, 3, 32, 32, seed=seed), np.arange(count) * 3 % classes
    columns = [np.full((count, 1), 1)] * coarse + [labels[:, None], images.reshape(count, -1)]
    return np.hstack(columns).astype(np.uint8).tobytes(), images, labels


def tar_of(folder: Path, path: Path) -> str:
    """Pack a folder as .tar.gz; the MD5 of the archive."""
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, folder.name)
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_binary_cifar_from_its_archive(tmp_path, monkeypatch, name):
    files, archive = cifar(monkeypatch, name), download.ARCHIVES[name]
    folder, coarse = tmp_path / "made" / archive.folder, files.label_bytes == 2
    folder.mkdir(parents=True)
    images, labels = [], []
    for seed, file in enumerate(files.train):
        content, x, y = cifar_records(7, files.classes, coarse, seed)
        (folder / file).write_bytes(content)
        images.append(x)
        labels.append(y)
    content, test_images, test_labels = cifar_records(5, files.classes, coarse, 99)
    (folder / files.test).write_bytes(content)
    class_names = [f"class_{i}" for i in range(files.classes)]
    (folder / files.names).write_text("\n".join(class_names) + "\n\n")
    root = tmp_path / "root"
    root.mkdir()
    md5 = tar_of(folder, root / archive.file)
    monkeypatch.setitem(download.ARCHIVES, name, dataclasses.replace(archive, md5=md5))

    loaded = data.load(name, root=root)  # the archive was put there by hand
    assert np.array_equal(loaded.train.images.numpy(), np.concatenate(images))
    assert loaded.train.labels.tolist() == np.concatenate(labels).tolist()
    assert np.array_equal(loaded.test.images.numpy(), test_images)
    assert loaded.test.labels.tolist() == test_labels.tolist()
    assert loaded.class_names == tuple(class_names)
    assert sorted(p.name for p in root.iterdir()) == sorted([archive.folder, archive.file])
    assert data.load(name, root=root, size=40).test.images.shape == (5, 3, 40, 40)

    (root / archive.folder / files.test).write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"{files.test} has 15,3.. bytes"):
        data.load(name, root=root)
    (root / archive.folder / files.test).unlink()
    with pytest.raises(InputError, match=f"{files.test} is missing"):
        data.load(name, root=root)
    (root / archive.folder / files.test).write_bytes(b"\xff" * len(content))
    with pytest.raises(InputError, match="label 255"):
        data.load(name, root=root)


def test_archive_put_there_by_hand_is_checked(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"cifar-10-binary\.tar\.gz is damaged .*MD5"):
        data.load("cifar10", root=tmp_path)
    assert (tmp_path / "cifar-10-binary.tar.gz").exists()  # it is not ours to delete


def test_checksums_are_those_of_torchvision():
    from torchvision.datasets import Imagenette

    assert download.ARCHIVES["imagenette"].md5 == Imagenette._ARCHIVES["320px"][1]
    assert download.ARCHIVES["imagenette"].url == Imagenette._ARCHIVES["320px"][0]


# --- folders ---------------------------------------------------------------------------------


def draw(path: Path, seed: int = 0, size: tuple[int, ...] = (10, 10, 3), **options) -> np.ndarray:
    """Save random pixels of (height, width[, 3]) as a picture; the pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels(*size, seed=seed)
    Image.fromarray(image).save(path, **options)
    return image


def draw_classes(folder: Path, counts: dict[str, int], size=(10, 10, 3)) -> dict:
    return {
        (name, i): draw(folder / name / f"{i:03d}.png", seed=100 * k + i, size=size)
        for k, (name, count) in enumerate(counts.items())
        for i in range(count)
    }


@pytest.mark.parametrize("held", ["test", "val"])
def test_folder_of_splits(tmp_path, held):
    train = draw_classes(tmp_path / "train", {"cat": 3, "dog": 2})
    test = draw_classes(tmp_path / held, {"dog": 1, "cat": 2})
    (tmp_path / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not a picture")
    loaded = data.load(tmp_path)
    assert loaded.class_names == ("cat", "dog") and loaded.val is None
    expected = np.stack([train[k] for k in sorted(train)]).transpose(0, 3, 1, 2)
    assert np.array_equal(loaded.train.images.numpy(), expected)
    assert loaded.train.labels.tolist() == [0, 0, 0, 1, 1]
    expected = np.stack([test[k] for k in sorted(test)]).transpose(0, 3, 1, 2)
    assert np.array_equal(loaded.test.images.numpy(), expected)
    assert loaded.test.labels.tolist() == [0, 0, 1]
    values = loaded.train.images.numpy() / 255
    assert loaded.mean == pytest.approx(values.mean((0, 2, 3)), abs=1e-9)
    assert loaded.std == pytest.approx(values.std((0, 2, 3)), abs=1e-9)


def test_folder_with_all_three_splits(tmp_path):
    for split, count in {"train": 3, "val": 2, "test": 1}.items():
        draw_classes(tmp_path / split, {"a": count, "b": count})
    loaded = data.load(tmp_path)
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (6, 4, 2)


@pytest.mark.parametrize("below", ["", "train"])
def test_folder_without_test_holds_out_a_fifth_of_each_class(tmp_path, below):
    made = draw_classes(tmp_path / below, {"a": 10, "b": 5, "c": 2})
    loaded = data.load(tmp_path)
    assert torch.bincount(loaded.test.labels).tolist() == [2, 1, 1]
    assert torch.bincount(loaded.train.labels).tolist() == [8, 4, 1]
    seen = [x.numpy().tobytes() for s in (loaded.train, loaded.test) for x in s.images]
    assert sorted(seen) == sorted(x.transpose(2, 0, 1).tobytes() for x in made.values())
    assert torch.equal(loaded.test.images, data.load(tmp_path).test.images)


def test_grey_folder_has_one_channel_unless_one_picture_is_coloured(tmp_path):
    made = draw_classes(tmp_path, {"a": 2, "b": 2}, size=(10, 10))
    loaded = data.load(tmp_path)
    assert loaded.channels == 1
    expected = [made[k].tobytes() for k in made]
    images = [*loaded.train.images, *loaded.test.images]
    assert sorted(x.numpy().tobytes() for x in images) == sorted(expected)
    draw(tmp_path / "b" / "colour.png")
    assert data.load(tmp_path).channels == 3


def test_pictures_are_scaled_by_the_shorter_side_and_cropped_in_the_middle(tmp_path):
    draw_classes(tmp_path / "train", {"a": 1, "b": 1})
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 18:42] = 255  # the middle third (and what its smoothing reaches) is to be left
    for name in "ab":
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "test" / name / "wide.png")
    loaded = data.load(tmp_path, size=16)
    assert loaded.test.images.shape == (2, 3, 16, 16)
    assert loaded.test.images.min() == 255


def test_folder_size_is_by_default_the_shorter_side_of_the_first_image(tmp_path):
    draw(tmp_path / "a" / "0.png", size=(12, 30, 3))
    draw(tmp_path / "a" / "1.png")
    draw(tmp_path / "b" / "0.jpg", size=(300, 400, 3))
    draw(tmp_path / "b" / "1.jpg")
    assert data.load(tmp_path).size == 12
    (tmp_path / "a" / "0.png").unlink()
    draw(tmp_path / "a" / "0.png", size=(300, 400, 3))
    assert data.load(tmp_path).size == 224


def test_large_folder_is_read_lazily_with_the_same_result(tmp_path, monkeypatch):
    draw_classes(tmp_path / "train", {"a": 6, "b": 5})
    draw_classes(tmp_path / "test", {"a": 2, "b": 2})
    whole = data.load(tmp_path)
    monkeypatch.setattr(folders, "MEMORY_LIMIT", 0)
    lazy = data.load(tmp_path)
    assert isinstance(lazy.train, data.FolderSplit) and isinstance(whole.train, data.Split)
    assert (lazy.mean, lazy.std, lazy.size) == (whole.mean, whole.std, whole.size)
    for shuffle in (None, 5):
        pair = [
            list(d.train.batches(4, None if shuffle is None else rng(shuffle)))
            for d in (lazy, whole)
        ]
        for (x, y), (x2, y2) in zip(*pair, strict=True):
            assert torch.equal(x, x2) and torch.equal(y, y2)
    assert torch.equal(lazy.test.take(torch.tensor([2, 0])), whole.test.images[[2, 0]])
    assert lazy.test.take(slice(0, 0)).shape == (0, 3, 10, 10)
    with pytest.raises(InputError, match="batch by batch"):
        _ = lazy.train.images


def test_lazy_statistics_come_from_evenly_spaced_images(tmp_path, monkeypatch):
    draw_classes(tmp_path / "train", {"a": 5, "b": 5})
    draw_classes(tmp_path / "test", {"a": 1, "b": 1})
    whole = data.load(tmp_path)
    monkeypatch.setattr(folders, "MEMORY_LIMIT", 0)
    monkeypatch.setattr(folders, "STATISTICS_IMAGES", 5)
    values = whole.train.images[::2].numpy() / 255
    assert data.load(tmp_path).mean == pytest.approx(values.mean((0, 2, 3)), abs=1e-9)


def test_unreadable_pictures_are_named(tmp_path, monkeypatch):
    draw_classes(tmp_path, {"a": 5, "b": 5})
    victim = tmp_path / "b" / "003.png"
    whole = victim.read_bytes()
    for content in (b"no picture", b"", whole[: len(whole) // 2]):
        victim.write_bytes(content)
        with pytest.raises(InputError, match=r"b/003\.png cannot be read"):
            data.load(tmp_path)
    monkeypatch.setattr(folders, "MEMORY_LIMIT", 0)
    monkeypatch.setattr(folders, "STATISTICS_IMAGES", 1)
    lazy = data.load(tmp_path)
    with pytest.raises(InputError, match=r"b/003\.png cannot be read"):
        list(lazy.train.batches(2)) + list(lazy.test.batches(2))


def test_pictures_of_16_bits_are_refused(tmp_path):
    draw_classes(tmp_path, {"a": 2, "b": 2}, size=(10, 10))
    Image.fromarray(np.full((10, 10), 40_000, np.uint16)).save(tmp_path / "a" / "000.png")
    with pytest.raises(InputError, match=r"000\.png has more than 8 bits"):
        data.load(tmp_path)


def test_folder_refusals(tmp_path):
    def refused(folder: Path, message: str) -> None:
        with pytest.raises(InputError, match=message):
            data.load(folder)

    (tmp_path / "none").mkdir()
    refused(tmp_path / "none", "holds no class folders")
    draw_classes(tmp_path / "one", {"a": 3})
    refused(tmp_path / "one", "single class folder")
    draw_classes(tmp_path / "few", {"a": 3, "b": 1})
    refused(tmp_path / "few", r"few/b holds one image")
    draw_classes(tmp_path / "empty", {"a": 3, "b": 2})
    (tmp_path / "empty" / "c").mkdir()
    refused(tmp_path / "empty", r"class folder .*empty/c holds no images")
    draw_classes(tmp_path / "alone" / "test", {"a": 3, "b": 2})
    refused(tmp_path / "alone", "no train folder")
    draw_classes(tmp_path / "differ" / "train", {"a": 2, "b": 2})
    draw_classes(tmp_path / "differ" / "test", {"a": 2, "c": 2})
    refused(tmp_path / "differ", "only one of them has: b, c")


def test_tiny_imagenet_from_its_zip(tmp_path, monkeypatch):
    wnids, folder = ("n02", "n01", "n03"), tmp_path / "made" / "tiny-imagenet-200"
    for wnid in wnids:
        for i in range(2):
            draw(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", i, (64, 64, 3))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("0\t0\t9\t9")
    for i in range(4):
        draw(folder / "val" / "images" / f"val_{i}.JPEG", 10 + i, (64, 64, 3))
    lines = [f"val_{i}.JPEG\t{wnid}\t0\t0\t9\t9" for i, wnid in enumerate((*wnids, "n01"))]
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines))
    draw(folder / "test" / "images" / "test_0.JPEG", 20, (64, 64, 3))
    (folder / "words.txt").write_text("n01\tgoldfish, carp\nn02\tnewt\nn03\ttoad\n")
    root = tmp_path / "root"
    root.mkdir()
    with zipfile.ZipFile(root / "tiny-imagenet-200.zip", "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    md5 = hashlib.md5((root / "tiny-imagenet-200.zip").read_bytes()).hexdigest()
    official = download.ARCHIVES["tiny-imagenet"]
    monkeypatch.setitem(download.ARCHIVES, "tiny-imagenet", dataclasses.replace(official, md5=md5))

    loaded = data.load("tiny-imagenet", root=root)
    assert loaded.class_names == ("goldfish", "newt", "toad") and loaded.size == 64
    assert loaded.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert loaded.test.labels.tolist() == [1, 0, 2, 0] and loaded.val is None
    first = Image.open(folder / "val" / "images" / "val_0.JPEG")
    assert np.array_equal(loaded.test.images[0].numpy().transpose(1, 2, 0), np.asarray(first))
    assert data.load(root / "tiny-imagenet-200").class_names == loaded.class_names

    annotations = root / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    annotations.write_text("val_0.JPEG\tn99\t0")
    with pytest.raises(InputError, match="without a known class"):
        data.load("tiny-imagenet", root=root)


def test_imagenette_has_names_size_and_the_usual_statistics(tmp_path):
    for split in ("train", "val"):
        draw_classes(tmp_path / "imagenette2-320" / split, {"n02102040": 1, "n01440764": 1})
    loaded = data.load("imagenette", root=tmp_path, size=32)
    assert loaded.class_names == ("tench", "English springer")
    assert (loaded.mean, loaded.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert data.load("imagenette", root=tmp_path).size == 224


def test_imagenet100_is_a_folder_only(tmp_path):
    with pytest.raises(InputError, match=r"train/<class>/.*no official archive"):
        data.load("imagenet100", root=tmp_path, download=True)
    for split in ("train", "val"):
        draw_classes(tmp_path / "imagenet100" / split, {"n1": 1, "n2": 1})
    loaded = data.load("imagenet100", root=tmp_path, size=24)
    assert (loaded.classes, loaded.size, len(loaded.test)) == (2, 24, 2)


# --- downloads -------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Serves one file on 127.0.0.1; can break off, and can ignore or refuse ranges."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges = content, True
        self.cuts: list[int] = []  # after how many bytes each of the next replies breaks off
        self.asked: list[str | None] = []  # the Range of each request
        self.url = f"http://127.0.0.1:{self.server_port}/file.npz"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content, asked = self.server.content, self.headers.get("Range")
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if not self.server.ranges:
            asked, start = None, 0
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        length = self.server.cuts.pop(0) if self.server.cuts else len(content)
        self.wfile.write(content[start : start + length])

    def log_message(self, *args) -> None:
        pass


CONTENT = pixels(700_001).tobytes()
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server():
    made = Server(CONTENT)
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.mark.parametrize("checksum", [MD5, hashlib.sha256(CONTENT).hexdigest().upper()])
def test_download(server, tmp_path, checksum, capsys):
    path = tmp_path / "new" / "file.npz"
    data.fetch(server.url, path, checksum)
    assert path.read_bytes() == CONTENT and os.listdir(path.parent) == ["file.npz"]
    assert "file.npz" in capsys.readouterr().err  # the progress bar


def test_broken_download_goes_on_by_itself(server, tmp_path):
    server.cuts = [300_000, 200_000]
    data.fetch(server.url, tmp_path / "file.npz", MD5)
    assert (tmp_path / "file.npz").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=500000-"]


def test_interrupted_download_goes_on_in_the_next_run(server, tmp_path):
    server.cuts = [1000] * 5
    with pytest.raises(InputError, match=r"keeps breaking off.*file\.npz\.part"):
        data.fetch(server.url, tmp_path / "file.npz", MD5)
    assert os.listdir(tmp_path) == ["file.npz.part"]
    assert (tmp_path / "file.npz.part").read_bytes() == CONTENT[:5000]
    data.fetch(server.url, tmp_path / "file.npz", MD5)
    assert server.asked[-1] == "bytes=5000-"
    assert (tmp_path / "file.npz").read_bytes() == CONTENT


def test_download_from_a_server_without_ranges_starts_again(server, tmp_path):
    (tmp_path / "file.npz.part").write_bytes(b"x" * 99)
    server.ranges = False
    data.fetch(server.url, tmp_path / "file.npz", MD5)
    assert (tmp_path / "file.npz").read_bytes() == CONTENT


def test_part_that_is_whole_or_too_long(server, tmp_path):
    part = tmp_path / "file.npz.part"
    part.write_bytes(CONTENT)
    data.fetch(server.url, tmp_path / "file.npz", MD5)
    assert server.asked == [f"bytes={len(CONTENT)}-"]
    part.write_bytes(CONTENT + b"more")
    data.fetch(server.url, tmp_path / "file.npz", MD5)
    assert server.asked[-1] is None and (tmp_path / "file.npz").read_bytes() == CONTENT


def test_wrong_checksum_leaves_nothing_behind(server, tmp_path):
    with pytest.raises(InputError, match=f"MD5 is {MD5}, not {'0' * 32}"):
        data.fetch(server.url, tmp_path / "file.npz", "0" * 32)
    assert os.listdir(tmp_path) == []


def test_unreachable_server_and_missing_file(tmp_path, server):
    with pytest.raises(InputError, match="fetch the file by hand"):
        data.fetch("http://127.0.0.1:9/file.npz", tmp_path / "file.npz", MD5)
    (tmp_path / "below").write_text("a file")
    with pytest.raises(InputError, match="could not be downloaded"):
        data.fetch(server.url, tmp_path / "below" / "file.npz", MD5)


def test_load_with_download(server, tmp_path, monkeypatch):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **breast())
    server.content = buffer.getvalue()
    table = {"breastmnist": dict(data.medmnist_info()["breastmnist"])}
    table["breastmnist"] |= {
        "url": server.url,
        "MD5": hashlib.md5(server.content).hexdigest(),
    }
    monkeypatch.setattr(medmnist, "medmnist_info", lambda: table)
    assert len(data.load("breastmnist", root=tmp_path, download=True).train) == 546
    assert len(data.load("breastmnist", root=tmp_path, download=True).train) == 546
    assert server.asked == [None] and os.listdir(tmp_path) == ["breastmnist.npz"]


def test_load_downloads_and_unpacks_an_archive(server, tmp_path, monkeypatch):
    for split in ("train", "val"):
        draw_classes(tmp_path / "made" / "small" / split, {"a": 1, "b": 1})
    md5 = tar_of(tmp_path / "made" / "small", tmp_path / "file.npz")
    server.content = (tmp_path / "file.npz").read_bytes()
    monkeypatch.setitem(download.ARCHIVES, "imagenette", download.Archive(server.url, md5, "small"))
    loaded = data.load("imagenette", root=tmp_path / "root", size=10, download=True)
    assert len(loaded.train) == 2
    assert sorted(os.listdir(tmp_path / "root")) == ["file.npz", "small"]


def test_archives_cannot_write_elsewhere(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / "evil.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../evil.txt"), io.BytesIO())
    with pytest.raises(InputError, match=r"evil\.tar\.gz cannot be unpacked .*outside"):
        download._unpack(root / "evil.tar.gz", "good")
    with zipfile.ZipFile(root / "evil.zip", "w") as archive:
        archive.writestr("../evil.txt", "x")
        archive.writestr("good/a.txt", "y")
    download._unpack(root / "evil.zip", "good")
    assert not list(tmp_path.glob("evil*")) and not list(root.glob("evil.txt"))
    assert os.listdir(root / "good") == ["a.txt"]


def test_damaged_archive_leaves_no_folder(tmp_path):
    (tmp_path / "in" / "good").mkdir(parents=True)
    (tmp_path / "in" / "good" / "a.bin").write_bytes(CONTENT)
    tar_of(tmp_path / "in" / "good", tmp_path / "good.tgz")
    whole = (tmp_path / "good.tgz").read_bytes()
    (tmp_path / "good.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"good\.tgz cannot be unpacked"):
        download._unpack(tmp_path / "good.tgz", "good")
    assert sorted(os.listdir(tmp_path)) == ["good.tgz", "in"]


def test_a_path_with_the_name_of_a_data_set_is_no_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no folder digits; for the data set give its name"):
        data.load(Path("digits"))
