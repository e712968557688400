"""Reads archives of arrays (``.npz``) with the array names of MedMNIST or of Keras."""

from __future__ import annotations

import math
import os
import shutil
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import InputError
from .images import MEMORY_LIMIT, SIZES, ImageData, Split, from_tensors

# The names of images and labels in an .npz, by split: MedMNIST's, and below them those of Keras.
_MEDMNIST_KEYS = {s: (f"{s}_images", f"{s}_labels") for s in ("train", "val", "test")}

_KERAS_KEYS = {s: (f"x_{s}", f"y_{s}") for s in ("train", "val", "test")}


def read_npz(
    path: Path,
    name: str,
    root: Path,
    size: int | None,
    class_names: tuple[str, ...] | None = None,
) -> ImageData:
    """Read an .npz; map it from disk if it is too large for memory and ``size`` is None."""
    try:
        with zipfile.ZipFile(path) as file:
            arrays = [m for m in file.namelist() if m.endswith(".npy")]
            headers = {m.removesuffix(".npy"): _header(path, file, m) for m in arrays}
        keys = _npz_keys(path, headers)
        _check_headers(path, headers, keys)
        pixels = sum(int(np.prod(headers[k[0]][0])) for k in keys.values())
        mapped = pixels > MEMORY_LIMIT and size is None
        splits = {s: _npz_split(path, k, root if mapped else None) for s, k in keys.items()}
        if class_names is None and "class_names" in headers:
            class_names = _names_in(path, *headers["class_names"])
            splits = {s: replace(d, class_names=class_names) for s, d in splits.items()}
    except InputError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} is not an .npz file, or it is damaged or cut short ({error}); get it again."
        ) from None
    class_names = _check_labels(path, {s: d.labels for s, d in splits.items()}, class_names)
    return from_tensors(name, class_names, splits, size)


def _header(path: Path, file: zipfile.ZipFile, member: str) -> tuple[tuple[int, ...], np.dtype]:
    """Read an array's shape and dtype from its header; refuse a pickle before it is loaded."""
    with file.open(member) as stream:
        try:
            version = np.lib.format.read_magic(stream)
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
            size = file.getinfo(member).file_size - stream.tell()
        except ValueError as error:
            raise InputError(f"In {path}, {member} is not an array ({error}).") from None
    if dtype.hasobject:
        raise InputError(
            f"In {path}, {member} is pickled, which could run code when it is opened, so it is "
            "refused; save plain number arrays with numpy.savez."
        )
    told = math.prod(shape) * dtype.itemsize  # a huge number here must not ask for memory
    if any(type(side) is not int or side < 0 for side in shape) or told != size:
        raise InputError(f"In {path}, {member} is damaged: its size is not what it says of itself.")
    return shape, dtype


def _npz_keys(path: Path, headers: dict[str, Any]) -> dict[str, tuple[str, str]]:
    for keys in (_MEDMNIST_KEYS, _KERAS_KEYS):
        found = {split: pair for split, pair in keys.items() if set(pair) <= set(headers)}
        if {"train", "test"} <= set(found):
            return found
    raise InputError(
        f"{path} holds {', '.join(sorted(headers)) or 'nothing'}; it needs train_images, "
        "train_labels, test_images and test_labels (or x_train, y_train, x_test and y_test)."
    )


def _check_headers(
    path: Path,
    headers: dict[str, tuple[tuple[int, ...], np.dtype]],
    keys: dict[str, tuple[str, str]],
) -> None:
    """Refuse arrays whose dtype or shape is not what `load` documents."""
    for images, labels in keys.values():
        shape, dtype = headers[images]
        if dtype != np.uint8:
            raise InputError(
                f"In {path}, {images} is {dtype}; images must be uint8, 0 to 255 "
                "(for 0 to 1: (255 * images).round().astype('uint8'))."
            )
        if len(shape) not in (3, 4) or (len(shape) == 4 and not 1 <= shape[3] <= 4):
            raise InputError(
                f"In {path}, {images} has shape {shape}; it must be (N, H, W), or (N, H, W, C) "
                "with C from 1 to 4."
            )
        if shape[1] != shape[2] or not SIZES[0] <= shape[1]:
            raise InputError(
                f"In {path}, {images} holds images of {shape[1]} x {shape[2]} pixels; they must "
                f"be square and at least {SIZES[0]} pixels wide."
            )
        if shape[1:] != headers[keys["train"][0]][0][1:]:
            raise InputError(f"In {path}, {images} and {keys['train'][0]} differ in image shape.")
        _check_label_header(path, labels, *headers[labels], count=shape[0])


def _check_label_header(
    path: Path, key: str, shape: tuple[int, ...], dtype: np.dtype, count: int
) -> None:
    if len(shape) == 2 and shape[1] > 1:
        raise InputError(
            f"In {path}, {key} has shape {shape}: several numbers an image, while one label an "
            "image is needed (for one-hot labels: labels.argmax(1))."
        )
    if dtype.kind not in "iu":
        raise InputError(f"In {path}, {key} is {dtype}; labels must be whole numbers.")
    if shape not in ((count,), (count, 1)) or count == 0:
        raise InputError(
            f"In {path}, {key} has shape {shape} for {count} images; one label an image is "
            "needed, and at least one image."
        )


def _names_in(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> tuple[str, ...]:
    """Read the archive's own names of its classes, in the order of the labels."""
    if len(shape) != 1 or dtype.kind != "U":
        raise InputError(
            f"In {path}, class_names is {dtype} with shape {shape}; it must be a row of texts, one "
            "a class: np.array(['cat', 'dog'])."
        )
    with np.load(path, allow_pickle=False) as file:
        names = tuple(map(str, file["class_names"]))
    if len(set(names)) < len(names):
        raise InputError(f"In {path}, class_names has a name twice: each class needs its own.")
    return names


def _npz_split(path: Path, keys: tuple[str, str], mapped_below: Path | None) -> Split:
    if mapped_below is None:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file[keys[0]], file[keys[1]]
    else:
        images, labels = (_map_array(path, key, mapped_below) for key in keys)
    pixels = torch.from_numpy(images)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    if mapped_below is None:
        pixels = pixels.contiguous()
    return Split(pixels, torch.from_numpy(labels.astype(np.int64).reshape(-1)))


def _map_array(path: Path, key: str, root: Path) -> np.ndarray:
    """Unpack one large array of an .npz to a file below ``root``, and map that file."""
    with zipfile.ZipFile(path) as file:
        member = file.getinfo(f"{key}.npy")
        target = root / "unpacked" / f"{path.stem}-{key}-{member.CRC:08x}.npy"
        part = target.with_suffix(".part")
        try:
            if not target.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                size, title = member.file_size, f"unpacking {key}"
                with (
                    file.open(member) as source,
                    tqdm.wrapattr(source, "read", size, desc=title) as told,
                    open(part, "wb") as out,
                ):
                    shutil.copyfileobj(told, out, 2**18)
                os.replace(part, target)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise InputError(
                f"{path} is too large for memory and cannot be unpacked to {target} ({error}); "
                "make room there, or choose another root."
            ) from None
    # "c" (copy on write): torch wants a writable array, and changes never reach the file
    array: np.ndarray = np.load(target, mmap_mode="c", allow_pickle=False)
    return array


def _check_labels(
    path: Path, labels: dict[str, Tensor], class_names: tuple[str, ...] | None
) -> tuple[str, ...]:
    """Check every label, and return the class names (numbers where none are given)."""
    found = labels["train"].unique()
    classes = len(class_names) if class_names else len(found)
    if class_names is None and not torch.equal(found, torch.arange(classes)):
        raise InputError(
            f"In {path}, the train labels must be 0, 1, 2, .. without gaps; they run from "
            f"{found.min()} to {found.max()} with {classes} different ones."
        )
    if classes < 2:
        raise InputError(f"{path} has a single class; a classifier needs at least two.")
    for split, values in labels.items():
        if values.min() < 0 or values.max() >= classes:
            raise InputError(
                f"In {path}, the {split} labels run from {values.min()} to {values.max()}, "
                f"but there are {classes} classes, 0 to {classes - 1}."
            )
    return class_names or tuple(map(str, range(classes)))
