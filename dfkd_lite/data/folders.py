"""Reads folders of images: the user's own, and subsets of ImageNet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..errors import InputError
from .classes import natural_order
from .download import read_text, unpacked
from .images import (
    MEMORY_LIMIT,
    SIZES,
    STATISTICS_IMAGES,
    AnySplit,
    FolderSplit,
    ImageData,
    Split,
    kind_and_side,
    pixel_statistics,
)

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm"}
)

HEADERS = 2_048  # files read to see whether all are grey

# ImageNet's usual mean and std. Two of its subsets use them, to avoid a pass over the files.
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

IMAGENETTE_NAMES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}

# Folders that operating systems and editors make; names that begin with a dot are left out too.
_NOT_DATA = frozenset(
    {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
)

# The words by which folders say what split they hold, and what they may carry beside the word.
_SPLIT_WORDS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_FILLERS = frozenset({"set", "data", "dataset", "split", "image", "images", "imgs", "img"})

_Files = list[tuple[Path, int]]  # image files of one split, each with its label
_ByClass = dict[str, list[Path]]  # image files of one split by class, the classes in order


@dataclass(frozen=True)
class _Layout:
    """Says what a folder holds: classes in order, files of each split, and where they were."""

    classes: list[str]
    splits: dict[str, _Files]
    origin: dict[str, str]
    passed_over: tuple[str, ...] = ()


def read_imagenette(root: Path, size: int | None, download: bool) -> ImageData:
    """Read Imagenette, ten easy classes of ImageNet."""
    folder = unpacked("imagenette", root, download)
    return read_folder(folder, "imagenette", size or 224, IMAGENETTE_NAMES, IMAGENET_STATISTICS)


def read_imagenet100(root: Path, size: int | None, download: bool) -> ImageData:
    """Read 100 classes of ImageNet, which the user has copied to ``root/imagenet100``."""
    folder = root / "imagenet100"
    if not (folder / "train").is_dir():
        raise InputError(
            f"imagenet100 needs the folder {folder} with train/<class>/*.JPEG and "
            "val/<class>/*.JPEG for its 100 classes; there is no official archive to download: "
            "copy these folders out of ImageNet (ILSVRC 2012)."
        )
    return read_folder(folder, "imagenet100", size or 224, statistics=IMAGENET_STATISTICS)


def read_tiny_imagenet(root: Path, size: int | None, download: bool) -> ImageData:
    """Read Tiny-ImageNet: 200 classes, 64 pixels."""
    folder = unpacked("tiny-imagenet", root, download)
    return read_folder(folder, "tiny-imagenet", size or 64)


def read_folder(
    folder: Path,
    name: str,
    size: int | None,
    nice_names: dict[str, str] | None = None,
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> ImageData:
    """Read class folders (or Tiny-ImageNet's layout); ``nice_names`` replace the folders' names."""
    try:
        tiny = (folder / "val" / "val_annotations.txt").is_file()
        layout = _tiny_layout(folder) if tiny else _layout(folder)
        if tiny:
            nice_names = _tiny_names(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error}); is it yours to read?") from None
    if len(layout.classes) < 2:
        raise InputError(f"{folder} has a single class folder; a classifier needs at least two.")
    class_names = tuple((nice_names or {}).get(c, c) for c in layout.classes)
    return _from_files(name, class_names, layout, size, statistics)


def _layout(folder: Path) -> _Layout:
    """Read the layouts that people have: splits of classes, classes of splits, classes alone."""
    named = _split_folders(folder)
    if named:
        return _of_splits(folder, named)
    classes = _subfolders(folder)
    if len(classes) == 1 and _subfolders(classes[0]) and not _images(classes[0], deep=False):
        return _layout(classes[0])  # a folder in a folder, as archives unpack
    if len(classes) > 1 and all(_holds_splits_only(path) for path in classes):
        return _of_classes(folder)
    return _held_out(_list_classes(folder), "")


def _split_folders(folder: Path) -> dict[str, list[Path]]:
    """Find the folders that say by their names that they hold a split, and hold class folders.

    A class may be called ``train``, too: it holds images, or is one of several with one folder.
    """
    inside = _subfolders(folder)
    said = {path: _split_of(path.name) for path in inside}
    holding = [path for path in inside if said[path] and _subfolders(path)]
    if len({said[path][0] for path in holding}) > 1:  # "cat_train", "dog_test" are classes
        holding = [path for path in holding if not said[path][0]]
    if len(holding) == 1 and (said[holding[0]][0] or len(_subfolders(holding[0])) == 1):
        holding = holding if len(inside) == 1 else []
    found: dict[str, list[Path]] = {}
    for path in holding:
        found.setdefault(said[path][1], []).append(path)
    flat = {said[path][1] for path in inside if said[path] and not said[path][0]}
    if not found and len(flat) > 1 and "train" in flat:
        raise InputError(
            f"{folder} has splits ({_few([path.name for path in inside])}) without class folders "
            "inside; put the images of each class into a folder of its own: train/<class>/*.png."
        )
    return found


def _split_of(name: str) -> tuple[str, ...]:
    """Read ``Train``, ``test_set`` or ``seg_train`` as (what stands before it, split); else ()."""
    words = re.findall(r"[^\W\d_]+", name.casefold())
    words = [word if word in _FILLERS else word.removesuffix("set") for word in words]
    words = [word for word in words if word not in _FILLERS]
    if not words or words[-1] not in _SPLIT_WORDS:
        return ()
    return " ".join(words[:-1]), _SPLIT_WORDS[words[-1]]


def _of_splits(folder: Path, named: dict[str, list[Path]]) -> _Layout:
    for split, paths in named.items():
        if len(paths) > 1:
            raise InputError(
                f"{folder} has more than one folder for {split}: {_few([p.name for p in paths])}; "
                "leave one."
            )
    if "train" not in named:
        raise InputError(f"{folder} has a test or val folder, but no train folder beside it.")
    order: list[str] = [split for split in ("train", "val", "test") if split in named]
    there = {split: named[split][0] for split in order}
    over = [path for path in _subfolders(folder) if path not in there.values()]
    passed_over = tuple(path.name for path in over if _images(path))
    found = {split: _list_classes(_unnested(path)) for split, path in there.items()}
    origin = {split: f"{path.name}/" for split, path in there.items()}
    if len(there) < 2:
        layout = _held_out(found["train"], f" of {origin['train']}")
        return replace(layout, passed_over=passed_over)
    classes = list(found["train"])
    for split, images in found.items():
        if differing := set(images) ^ set(classes):
            raise InputError(
                f"{there[split]} and {there['train']} must have the same class folders; "
                f"only one of them has: {_few(sorted(differing))}."
            )
    return _Layout(*_with_test(classes, found, origin), passed_over)


def _with_test(
    classes: list[str], found: dict[str, _ByClass], origin: dict[str, str]
) -> tuple[list[str], dict[str, _Files], dict[str, str]]:
    """Label the files of each split; ``val`` alone serves as test."""
    if "test" not in found:
        found["test"], origin["test"] = found.pop("val"), origin.pop("val")
    labelled = {
        split: [(path, label) for label, name in enumerate(classes) for path in images[name]]
        for split, images in found.items()
    }
    return classes, labelled, origin


def _holds_splits_only(folder: Path) -> bool:
    """Tell whether a class folder has its splits inside, and nothing else."""
    said = [_split_of(path.name) for path in _subfolders(folder)]
    splits = {split[1] for split in said if split}
    whole = all(said) and len(splits) == len(said) > 1 and "train" in splits
    return whole and not _images(folder, deep=False)


def _of_classes(folder: Path) -> _Layout:
    """Read ``<class>/<split>/*.png``."""
    found: dict[str, _ByClass] = {}
    classes = natural_order(path.name for path in _subfolders(folder))
    for name in classes:
        for path in _subfolders(folder / name):
            found.setdefault(_split_of(path.name)[1], {})[name] = _images(path)
    for split, images in found.items():
        empty = [name for name in classes if not images.get(name)]
        if empty:
            raise InputError(f"In {folder}, these classes have no {split} images: {_few(empty)}.")
    origin = {split: f"<class>/{split}/" for split in found}
    return _Layout(*_with_test(classes, found, origin))


def _held_out(images: _ByClass, where: str) -> _Layout:
    """Split off a fifth of each class (at least one image) as test; the draw never changes."""
    train, test = _Files(), _Files()
    for label, paths in enumerate(images.values()):
        if len(paths) < 2:
            raise InputError(
                f"{paths[0].parent} holds one image; at least two are needed, one of them to test."
            )
        drawn = set(np.random.RandomState(0).permutation(len(paths))[: max(1, len(paths) // 5)])
        for i, path in enumerate(paths):
            (test if i in drawn else train).append((path, label))
    origin = {"train": f"four fifths of each class{where}", "test": f"a fifth of each class{where}"}
    return _Layout(list(images), {"train": train, "test": test}, origin)


def _unnested(folder: Path) -> Path:
    """Go into a folder that only wraps the class folders, as in ``train/train/<class>``."""
    inside = _subfolders(folder)
    if len(inside) == 1 and len(_subfolders(inside[0])) > 1 and not _images(inside[0], deep=False):
        return inside[0]
    return folder


def _list_classes(folder: Path) -> _ByClass:
    """Return the class folders in natural order, each with its image files, sorted as text."""
    classes = {path.name: path for path in _subfolders(folder)}
    if not classes:
        raise InputError(f"{folder} holds no class folders; put the images into <class>/*.png.")
    found = {}
    for name in natural_order(classes):
        found[name] = _images(classes[name])
        if not found[name]:
            raise InputError(
                f"The class folder {classes[name]} holds no images "
                f"({', '.join(sorted(IMAGE_SUFFIXES))}); fill or remove it."
            )
    return found


def _subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder that may hold data, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and _may_hold(path.name))


def _images(folder: Path, deep: bool = True) -> list[Path]:
    """Return the image files in a folder (``deep``: at any depth), sorted."""
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(
        path
        for path in found
        if path.suffix.lower() in IMAGE_SUFFIXES
        and all(map(_may_hold, path.relative_to(folder).parts))
        and not path.is_dir()
    )


def _may_hold(name: str) -> bool:
    return not name.startswith(".") and name.casefold() not in _NOT_DATA


def _tiny_layout(folder: Path) -> _Layout:
    """List Tiny-ImageNet's files; val serves as test, as the labels of test are not published."""
    images, annotations = _list_classes(folder / "train"), folder / "val" / "val_annotations.txt"
    label_of, test = {name: label for label, name in enumerate(images)}, _Files()
    for line in read_text(annotations).splitlines():
        file, name = [*line.split("\t"), "", ""][:2]
        if name not in label_of:
            raise InputError(f"{annotations} has a line without a known class: {line[:60]!r}.")
        test.append((folder / "val" / "images" / file, label_of[name]))
    if not test:
        raise InputError(f"{annotations} is empty; unpack the archive again.")
    train = [(path, label_of[name]) for name, paths in images.items() for path in paths]
    origin = {"train": "train/", "test": "val/"}
    return _Layout(list(images), {"train": train, "test": test}, origin)


def _tiny_names(folder: Path) -> dict[str, str]:
    file = folder / "words.txt"
    rows = [line.split("\t") for line in read_text(file).splitlines()] if file.is_file() else []
    return {row[0]: row[1].split(",")[0].strip() for row in rows if len(row) > 1}


def _from_files(
    name: str,
    class_names: tuple[str, ...],
    layout: _Layout,
    size: int | None,
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> ImageData:
    everything = [path for split in layout.splits.values() for path, _ in split]
    headers = [kind_and_side(path) for path in _spread(everything, HEADERS)]
    channels = 1 if all(grey for grey, _ in headers) else 3
    side = size or min(headers[0][1], SIZES[1])
    splits: dict[str, AnySplit] = {}
    for split, files in layout.splits.items():
        paths, labels = tuple(path for path, _ in files), torch.tensor([n for _, n in files])
        splits[split] = FolderSplit(paths, labels, channels, side, class_names, sorted_names=True)
    if len(everything) * channels * side**2 <= MEMORY_LIMIT:
        splits = {s: _decode_all(d, s) for s, d in splits.items()}
    train = splits["train"]
    if statistics is None or channels != len(statistics[0]):
        some = torch.tensor(_spread(range(len(train)), STATISTICS_IMAGES))
        images = train.images if isinstance(train, Split) else train.take(some)
        statistics = pixel_statistics(images)
    val, test = splits.get("val"), splits["test"]
    return ImageData(
        name, class_names, channels, side, *statistics, train, val, test,
        layout.origin, layout.passed_over,
    )  # fmt: skip


def _decode_all(split: AnySplit, name: str) -> Split:
    starts = range(0, len(split), 512)
    pieces = tqdm(starts, f"reading {name}", leave=False, delay=1)  # shown only after a second
    images = torch.cat([split.take(slice(i, i + 512)) for i in pieces])
    return Split(images, split.labels, split.class_names, split.sorted_names)


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return at most ``count`` of ``items``, evenly spaced."""
    chosen = min(count, len(items))
    return [items[i * len(items) // chosen] for i in range(chosen)]


def _few(items: Sequence[str]) -> str:
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")
