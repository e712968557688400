"""Data as people have them: layouts, orders of names, kinds of image files, classes compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dfkd_lite import InputError, NetworkSpec, evaluate, load
from dfkd_lite.cli import main as cli
from dfkd_lite.data.classes import natural_order
from dfkd_lite.measure.evaluate import accuracy, predict
from dfkd_lite.storage.weights import load_network, save_network


def paint(path: Path, level: int, side: int = 8) -> None:
    """Save one grey image of a single level; the level tells where an image came from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side), level, np.uint8)).save(path)


def paint_classes(folder: Path, first: int, names=("cat", "dog"), count: int = 2) -> None:
    """Paint ``count`` images a class: class k has the level ``first + k``."""
    for k, name in enumerate(names):
        for i in range(count):
            paint(folder / name / f"{i}.png", first + k)


def levels(split) -> dict[int, int]:
    """Give the label of each level in a split of single-level images."""
    return dict(zip(split.images[:, 0, 0, 0].tolist(), split.labels.tolist(), strict=True))


# --- layouts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Test"), ("training", "testing"), ("TRAIN", "VAL"), ("train", "valid"),
        ("Training", "Validation"), ("train_set", "test_set"), ("seg_train", "seg_test"),
        ("trainset", "testset"), ("Train Images", "Test Images"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("below", ["", "photos", "photos/photos"])
def test_two_splits_by_the_names_that_people_give_them(tmp_path, names, below):
    for number, name in enumerate(names):
        paint_classes(tmp_path / below / name, 10 * number)
    data = load(tmp_path)
    assert data.class_names == ("cat", "dog") and data.val is None
    assert levels(data.train) == {0: 0, 1: 1}
    assert levels(data.test) == {10: 0, 11: 1}
    assert f"train 4 ({names[0]}/), test 4 ({names[1]}/)" in str(data)


@pytest.mark.parametrize("held", ["val", "valid", "validation", "Validation", "VALID"])
def test_three_splits(tmp_path, held):
    for number, name in enumerate(("train", held, "Test")):
        paint_classes(tmp_path / name, 10 * number, count=number + 1)
    data = load(tmp_path)
    assert (levels(data.val), levels(data.test)) == ({10: 0, 11: 1}, {20: 0, 21: 1})
    shape = "images of 1 x 8 x 8"
    assert str(data).splitlines() == [
        f"{tmp_path}: train 2 (train/), val 4 ({held}/), test 6 (Test/) {shape}",
        "2 classes, 1 training images each: first 'cat', last 'dog'",
    ]


def test_splits_nested_in_themselves_and_folders_passed_over(tmp_path):
    paint_classes(tmp_path / "seg_train" / "seg_train", 0)
    paint_classes(tmp_path / "seg_test" / "seg_test", 10)
    paint(tmp_path / "seg_pred" / "seg_pred" / "1.png", 99)
    data = load(tmp_path)
    assert levels(data.train) == {0: 0, 1: 1} and levels(data.test) == {10: 0, 11: 1}
    assert "passed over: seg_pred" in str(data)


def test_splits_inside_the_classes(tmp_path):
    for k, name in enumerate(("cat", "dog")):
        paint(tmp_path / name / "Train" / "0.png", k)
        paint(tmp_path / name / "test" / "0.png", 10 + k)
    data = load(tmp_path)
    assert levels(data.train) == {0: 0, 1: 1} and levels(data.test) == {10: 0, 11: 1}
    assert "train 2 (<class>/train/), test 2 (<class>/test/)" in str(data)


def test_a_test_folder_without_labels_is_passed_over_and_said(tmp_path):
    paint_classes(tmp_path / "train", 0, count=5)
    paint(tmp_path / "test" / "1.png", 99)
    data = load(tmp_path)
    assert (len(data.train), len(data.test)) == (8, 2) and 99 not in levels(data.test)
    assert "test 2 (a fifth of each class of train/)" in str(data)
    assert "passed over: test" in str(data)


def test_a_class_may_be_called_train(tmp_path):
    paint_classes(tmp_path / "flat", 0, ("bus", "train"))
    assert load(tmp_path / "flat").class_names == ("bus", "train")
    paint_classes(tmp_path / "deep", 0, ("bus/images", "train/images"))
    assert load(tmp_path / "deep").class_names == ("bus", "train")
    paint_classes(tmp_path / "words", 0, ("cat_train", "dog_test"))
    assert load(tmp_path / "words").class_names == ("cat_train", "dog_test")


def test_layouts_that_cannot_be_told_are_refused(tmp_path):
    paint_classes(tmp_path / "two" / "val", 0)
    paint_classes(tmp_path / "two" / "valid", 0)
    paint_classes(tmp_path / "two" / "train", 0)
    with pytest.raises(InputError, match="more than one folder for val: val, valid"):
        load(tmp_path / "two")
    for name in ("Train", "Test"):
        paint(tmp_path / "flat" / name / "0.png", 0)
        paint(tmp_path / "flat" / name / "1.png", 0)
    with pytest.raises(InputError, match="without class folders"):
        load(tmp_path / "flat")
    paint_classes(tmp_path / "alone" / "Testing", 0)
    with pytest.raises(InputError, match="no train folder"):
        load(tmp_path / "alone")


def test_what_systems_and_editors_leave_is_not_data(tmp_path):
    for number, name in enumerate(("train", "test")):
        paint_classes(tmp_path / "photos" / name, 10 * number)
    for place in ("", "photos", "photos/train", "photos/train/cat", "photos/test/dog"):
        for junk in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
            paint(tmp_path / place / junk / "0-checkpoint.png", 99)
        (tmp_path / place / "._0.png").write_bytes(b"\0\5\26\7")
        (tmp_path / place / "Thumbs.db").write_bytes(b"\0")
        (tmp_path / place / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "photos" / "train" / "cat" / "folder.png").mkdir()
    data = load(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (4, 4)
    assert levels(data.train) == {0: 0, 1: 1} and levels(data.test) == {10: 0, 11: 1}


# --- order of names ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        [str(i) for i in range(12)], [f"{i:02d}" for i in range(12)], ["-1", "0", "1"],
        [f"class{i}" for i in range(1, 13)], ["0.5", "1.5", "10.5"], ["a2b1", "a2b10", "a10b1"],
        ["B", "a", "b"], ["n01440764", "n02102040", "n03888257"],
    ],
)  # fmt: skip
def test_names_in_natural_order(names):
    assert natural_order(names[::-1]) == names


def test_class_folders_by_number_have_the_labels_of_the_same_npz(tmp_path):
    names = [str(i) for i in range(12)]
    paint_classes(tmp_path / "photos", 0, names, count=5)
    assert levels(load(tmp_path / "photos").train) == {i: i for i in range(12)}
    images = np.arange(12, dtype=np.uint8).repeat(64).reshape(12, 8, 8)
    arrays = {"train_images": images, "train_labels": np.arange(12)}
    arrays |= {"test_images": images, "test_labels": np.arange(12)}
    np.savez(tmp_path / "a.npz", **arrays)
    (tmp_path / "a.npz").rename(tmp_path / "A.NPZ")
    assert levels(load(tmp_path / "A.NPZ").train) == {i: i for i in range(12)}


# --- kinds of image files ----------------------------------------------------------------------

UPRIGHT = np.zeros((16, 24), np.uint8)
UPRIGHT[:8, :8], UPRIGHT[:8, 8:16], UPRIGHT[8:, :8] = 80, 160, 240

# What a camera stores of the upright image, written out from the EXIF standard's table.
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: UPRIGHT.T[::-1],
    7: UPRIGHT.T[::-1, ::-1],
    8: UPRIGHT.T[:, ::-1],
}


def read_one(folder: Path, name: str, image: Image.Image, **options) -> np.ndarray:
    """Read an image in a folder of class folders, as (8, 8) or (8, 8, 3)."""
    for path in ("train/a/0.png", "train/b/0.png", "test/b/0.png"):
        paint(folder / path, 0)
    (folder / "test" / "a").mkdir(parents=True)
    image.save(folder / "test" / "a" / name, **options)
    return load(folder, size=8).test.images[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff", "a.webp"])
def test_images_are_turned_upright(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    lossless = {"a.jpg": {"quality": 100}, "a.webp": {"lossless": True}}
    found = read_one(tmp_path, name, stored, exif=exif, **lossless.get(name, {}))
    middle = Image.fromarray(UPRIGHT[:, 4:20]).resize((8, 8), Image.Resampling.BILINEAR)
    assert np.abs(found[..., 0].astype(int) - np.asarray(middle, int)).max() <= 4


RED = (200, 30, 60)


def of_palette() -> Image.Image:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([9, 9, 9, *RED])
    return image


@pytest.mark.parametrize(
    ("image", "options", "value"),
    [
        (Image.new("RGBA", (8, 8), (*RED, 255)), {}, RED),
        (Image.new("RGBA", (8, 8), (*RED, 0)), {}, (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (*RED, 51)), {}, (244, 210, 216)),
        (Image.new("LA", (8, 8), (100, 255)), {}, (100,)),
        (Image.new("LA", (8, 8), (100, 0)), {}, (255,)),
        (Image.new("RGB", (8, 8), RED), {"transparency": RED}, (255, 255, 255)),
        (of_palette(), {}, RED),
        (of_palette(), {"transparency": 1}, (255, 255, 255)),
        (of_palette(), {"transparency": 0}, RED),
        (Image.new("1", (8, 8), 1), {}, (255,)),
        (Image.new("L", (8, 8), 7), {}, (7,)),
    ],
)
def test_modes_of_png(tmp_path, image, options, value):
    found = read_one(tmp_path, "a.png", image, **options)
    assert found.reshape(64, -1).tolist() == [list(value)] * 64


def test_cmyk_is_read_as_its_colours(tmp_path):
    found = read_one(tmp_path, "a.jpg", Image.new("RGB", (8, 8), RED).convert("CMYK"), quality=100)
    assert np.abs(found.astype(int) - RED).max() <= 3


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_leaves_the_image(tmp_path):
    image = Image.fromarray(UPRIGHT[:, 4:20])
    found = read_one(tmp_path, "a.jpg", image, quality=100, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert np.abs(found[0, 0, 0].astype(int) - 80) <= 3


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_eight_bits_are_refused(tmp_path, mode):
    with pytest.raises(InputError, match="more than 8 bits"):
        read_one(tmp_path, "a.tiff", Image.new(mode, (8, 8), 300))


# --- classes of network and data ---------------------------------------------------------------


class Reader(nn.Module):
    """Answers with the class that an image's level, taken modulo 10, names."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.order = nn.Parameter(torch.tensor(order, dtype=torch.float32), requires_grad=False)

    def forward(self, x):
        level = (x[:, :1, 0, 0] * 255).round() % 10
        return (level == self.order).float()


def spec(*names: str) -> NetworkSpec:
    return NetworkSpec("wrn-10-1", len(names), 1, 8, (0.0,), (1.0,), names)


def folders(tmp_path: Path, *names: str):
    paint_classes(tmp_path, 0, names, count=5)
    return load(tmp_path)


def test_the_same_classes_in_another_order_are_mapped_by_name(tmp_path):
    data = folders(tmp_path, "cat", "dog", "wolf")  # levels 0, 1, 2
    network = Reader([2, 0, 1])  # its outputs are wolf, cat, dog
    logits, labels = predict(network, data.test, spec("Wolf", "cat", "dog"))
    assert labels.tolist() == [1, 2, 0] and accuracy(logits, labels) == 1
    report = evaluate(network, data.test, spec("Wolf", "cat", "dog"))
    assert report["confusion"] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert data.test.labels.tolist() == [0, 1, 2]  # as they were
    fitting = data.aligned(("Wolf", "cat", "dog"))
    assert fitting.class_names == ("Wolf", "cat", "dog")
    assert levels(fitting.train) == {0: 1, 1: 2, 2: 0}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "dog"), "unknown to the network: wolf; missing in the data: cat"),
        (("wolf", "dog", "cat"), "missing in the data: cat"),
        (("0", "1"), "unknown to the network: dog, wolf"),
        (("dog", "wolves"), "unknown to the network: wolf; missing in the data: wolves"),
    ],
)
def test_other_classes_are_refused(tmp_path, names, message):
    data = folders(tmp_path, "dog", "wolf")
    with pytest.raises(InputError, match=message):
        predict(Reader(list(range(len(names)))), data.test, spec(*names))
    with pytest.raises(InputError, match="other classes"):
        data.aligned(names)


def test_numbers_of_a_source_fit_any_names(tmp_path):
    """The labels of an .npz are numbers of their own; those of folders are places in a list."""
    images = np.arange(3, dtype=np.uint8).repeat(64).reshape(3, 8, 8)
    arrays = {"train_images": images, "train_labels": np.arange(3)}
    np.savez(tmp_path / "a.npz", **arrays, test_images=images, test_labels=np.arange(3))
    data = load(tmp_path / "a.npz")
    for names in (("wolf", "cat", "dog"), ("0", "1", "2"), ()):
        told = NetworkSpec("wrn-10-1", 3, 1, 8, (0.0,), (1.0,), names)
        assert predict(Reader([0, 1, 2]), data.test, told)[1].tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="other classes"):
        predict(Reader([0, 1, 2]), folders(tmp_path / "f", "0", "1", "2").test, spec(*"cdw"))


def named(path: Path, names: object) -> Path:
    images = np.arange(3, dtype=np.uint8).repeat(64).reshape(3, 8, 8)
    arrays = {f"{s}_{k}": v for s in ("train", "test")
              for k, v in (("images", images), ("labels", np.arange(3)))}  # fmt: skip
    np.savez(path, **arrays, class_names=np.array(names))
    return path


def test_an_npz_may_name_its_classes(tmp_path):
    data = load(named(tmp_path / "a.npz", ["wolf", "cat", "dog"]))
    assert data.class_names == ("wolf", "cat", "dog")
    assert "first 'wolf', last 'dog'" in str(data)
    told = NetworkSpec("wrn-10-1", 3, 1, 8, (0.0,), (1.0,), ("cat", "dog", "wolf"))
    assert predict(Reader([2, 0, 1]), data.test, told)[1].tolist() == [2, 0, 1]
    with pytest.raises(InputError, match="other classes"):
        predict(Reader([0, 1, 2]), data.test, replace(told, class_names=("cat", "dog", "fox")))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([1, 2, 3], "a row of texts"), ([["a", "b", "c"]], "a row of texts"),
        (["a", "b", "a"], "a name twice"), (["a", "b"], "but there are 2 classes"),
    ],
)  # fmt: skip
def test_names_in_an_npz_that_cannot_be_are_refused(tmp_path, names, said):
    with pytest.raises(InputError, match=said):
        load(named(tmp_path / "a.npz", names))


def test_folders_with_leading_zeros_are_the_numbers(tmp_path):
    data = folders(tmp_path, *(f"{i:02d}" for i in range(10)), "10", "11")
    same = data.aligned(tuple(str(i) for i in range(12)))
    assert same is data


def test_names_travel_in_the_file_and_the_command_compares_them(tmp_path, capsys):
    from dfkd_lite import build

    torch.manual_seed(0)
    network = build("wrn-10-1", 2, 1, 8)
    save_network(tmp_path / "n.safetensors", network, spec("dog", "cat"))
    assert load_network(tmp_path / "n.safetensors")[1].class_names == ("dog", "cat")
    folders(tmp_path / "same", "cat", "dog")
    folders(tmp_path / "other", "dog", "wolf")
    command = ["evaluate", "--network", str(tmp_path / "n.safetensors"), "--device", "cpu"]
    assert cli.main([*command, "--data", str(tmp_path / "other")]) == 2
    error = capsys.readouterr().err
    assert "unknown to the network: wolf" in error and "missing in the data: cat" in error
    assert cli.main([*command, "--data", str(tmp_path / "same")]) == 0
    said = capsys.readouterr().out.splitlines()
    where = "four fifths of each class), test 2 (a fifth of each class"
    assert said[0] == f"{tmp_path / 'same'}: train 8 ({where}) images of 1 x 8 x 8"
    assert said[1] == "2 classes, 4 training images each: first 'cat', last 'dog'"
    assert "exchanged by name" in said[2]
