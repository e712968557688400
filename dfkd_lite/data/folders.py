"""Reads folders of images: the user's own, and subsets of ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..errors import InputError
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

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})

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

_Files = list[tuple[Path, int]]  # image files of one split, each with its label


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
    tiny = (folder / "val" / "val_annotations.txt").is_file()
    classes, splits = _tiny_splits(folder) if tiny else _folder_splits(folder)
    if tiny:
        nice_names = _tiny_names(folder)
    if len(classes) < 2:
        raise InputError(f"{folder} has a single class folder; a classifier needs at least two.")
    class_names = tuple((nice_names or {}).get(c, c) for c in classes)
    return _from_files(name, class_names, splits, size, statistics)


def _folder_splits(folder: Path) -> tuple[list[str], dict[str, _Files]]:
    there = [split for split in ("train", "val", "test") if (folder / split).is_dir()]
    if there and "train" not in there:
        raise InputError(f"{folder} has a test or val folder, but no train folder beside it.")
    if len(there) < 2:
        return _held_out(folder / "train" if there else folder)
    found = {split: _list_classes(folder / split) for split in there}
    classes = list(found["train"])
    for split, images in found.items():
        if differing := set(images) ^ set(classes):
            raise InputError(
                f"{folder / split} and {folder / 'train'} must have the same class folders; "
                f"only one of them has: {_few(sorted(differing))}."
            )
    if "test" not in found:
        found["test"] = found.pop("val")
    return classes, {
        split: [(path, label) for label, name in enumerate(classes) for path in images[name]]
        for split, images in found.items()
    }


def _held_out(folder: Path) -> tuple[list[str], dict[str, _Files]]:
    """Split off a fifth of each class (at least one image) as test; the draw never changes."""
    images, train, test = _list_classes(folder), _Files(), _Files()
    for label, (name, paths) in enumerate(images.items()):
        if len(paths) < 2:
            raise InputError(
                f"{folder / name} holds one image; at least two are needed, one of them to test."
            )
        drawn = set(np.random.RandomState(0).permutation(len(paths))[: max(1, len(paths) // 5)])
        for i, path in enumerate(paths):
            (test if i in drawn else train).append((path, label))
    return list(images), {"train": train, "test": test}


def _list_classes(folder: Path) -> dict[str, list[Path]]:
    """Return the class folders, sorted by name, each with its image files, sorted too."""
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise InputError(f"{folder} holds no class folders; put the images into <class>/*.png.")
    found = {}
    for path in classes:
        files = (f for f in path.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
        found[path.name] = sorted(f for f in files if not f.name.startswith("."))
        if not found[path.name]:
            raise InputError(
                f"The class folder {path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); "
                "fill or remove it."
            )
    return found


def _tiny_splits(folder: Path) -> tuple[list[str], dict[str, _Files]]:
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
    return list(images), {"train": train, "test": test}


def _tiny_names(folder: Path) -> dict[str, str]:
    file = folder / "words.txt"
    rows = [line.split("\t") for line in read_text(file).splitlines()] if file.is_file() else []
    return {row[0]: row[1].split(",")[0].strip() for row in rows if len(row) > 1}


def _from_files(
    name: str,
    class_names: tuple[str, ...],
    files: dict[str, _Files],
    size: int | None,
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> ImageData:
    everything = [path for split in files.values() for path, _ in split]
    headers = [kind_and_side(path) for path in _spread(everything, 64)]
    channels = 1 if all(mode in ("1", "L", "LA") for mode, _ in headers) else 3
    side = size or min(headers[0][1], SIZES[1])
    splits: dict[str, AnySplit] = {
        s: FolderSplit(tuple(p for p, _ in f), torch.tensor([n for _, n in f]), channels, side)
        for s, f in files.items()
    }
    if len(everything) * channels * side**2 <= MEMORY_LIMIT:
        splits = {s: _decode_all(d, s) for s, d in splits.items()}
    train = splits["train"]
    if statistics is None or channels != len(statistics[0]):
        some = torch.tensor(_spread(range(len(train)), STATISTICS_IMAGES))
        images = train.images if isinstance(train, Split) else train.take(some)
        statistics = pixel_statistics(images)
    val, test = splits.get("val"), splits["test"]
    return ImageData(name, class_names, channels, side, *statistics, train, val, test)


def _decode_all(split: AnySplit, name: str) -> Split:
    starts = range(0, len(split), 512)
    pieces = tqdm(starts, f"reading {name}", leave=False, delay=1)  # shown only after a second
    return Split(torch.cat([split.take(slice(i, i + 512)) for i in pieces]), split.labels)


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return at most ``count`` of ``items``, evenly spaced."""
    chosen = min(count, len(items))
    return [items[i * len(items) // chosen] for i in range(chosen)]


def _few(items: Sequence[str]) -> str:
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")
