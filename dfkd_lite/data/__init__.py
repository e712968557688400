"""Image data by name or by path, as 8-bit tensors with everything a network must know of them.

``load("digits")`` needs no files; ``load("pathmnist", size=64, download=True)`` fetches them;
``load("my/photos")`` reads a folder of class folders and ``load("mine.npz")`` an archive of
arrays. Every source gives the same `ImageData`. Files are looked for, and written, below one
folder only: ``root``, else the environment variable ``DFKD_DATA``, else ``data/downloads``.
"""

from __future__ import annotations

import ast
import hashlib
import http.client
import importlib.util
import os
import shutil
import struct
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from ..errors import InputError, check_range, choose
from ..networks import NetworkSpec

SIZES = (8, 224)  # smallest and largest side in pixels: the digits' own, and the paper's largest
MEDMNIST_SIZES = (28, 64, 128, 224)  # the sizes in which MedMNIST+ is published
MEMORY_LIMIT = 1_500 * 2**20  # bytes of pixels; Tiny-ImageNet stays below, Imagenette is above
STATISTICS_IMAGES = 2_048  # how many images give mean and deviation where all would be too slow
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
DECODE_THREADS = min(8, os.cpu_count() or 1)
# The usual statistics of ImageNet, used for its subsets so that they need no pass over the files.
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Archive:
    """An official archive: where it is, its checksum, and the folder that it unpacks to."""

    url: str
    md5: str
    folder: str

    @property
    def file(self) -> str:
        """The archive's file name."""
        return self.url.rsplit("/", 1)[-1]


# CIFAR in its binary version: the "python" archives are pickles, which are never opened here.
ARCHIVES = {
    "cifar10": Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-batches-bin",
    ),
    "cifar100": Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        "cifar-100-binary",
    ),
    "tiny-imagenet": Archive(
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "90528d7ca1a48142e341f4ef8d21d0de",
        "tiny-imagenet-200",
    ),
    "imagenette": Archive(  # the version of 320 px: enough for 224 px, a quarter of the full one
        "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
        "3df6f0d01a2c9592104656642f5e78a3",
        "imagenette2-320",
    ),
}

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


@dataclass(frozen=True)
class CifarFiles:
    """What an unpacked binary CIFAR archive holds; a record is labels, then 3 x 32 x 32 bytes."""

    train: tuple[str, ...]
    test: str
    names: str
    label_bytes: int  # CIFAR-100 has a coarse label first; the last one is the class
    classes: int
    records: int  # in each file of the train split
    test_records: int


CIFAR_FILES = {
    "cifar10": CifarFiles(
        train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test="test_batch.bin",
        names="batches.meta.txt",
        label_bytes=1,
        classes=10,
        records=10_000,
        test_records=10_000,
    ),
    "cifar100": CifarFiles(
        train=("train.bin",),
        test="test.bin",
        names="fine_label_names.txt",
        label_bytes=2,
        classes=100,
        records=50_000,
        test_records=10_000,
    ),
}


# --- Splits: what a loader hands out ---------------------------------------------------------


def _chunks(count: int, batch_size: int, rng: torch.Generator | None) -> list[Tensor | slice]:
    """Which images each batch holds: slices in order, index tensors where shuffled."""
    check_range("batch_size", batch_size, 1)
    if rng is None:
        return [slice(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
    return list(torch.randperm(count, generator=rng, device=rng.device).cpu().split(batch_size))


def _to_float(images: Tensor, device: torch.device | str) -> Tensor:
    """Move 8-bit images, then convert: a quarter of the bytes travel."""
    return images.to(device).to(torch.float32).div_(255)


@dataclass(frozen=True, eq=False)
class Split:
    """Images held as one tensor (in memory, or mapped from a file on disk).

    Attributes:
        images: uint8 (N, C, H, W), 0 to 255.
        labels: int64 (N,), 0 to classes - 1.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            shape = tuple(self.images.shape)
            raise InputError(
                f"Images must be uint8 of shape (N, C, H, W), not {self.images.dtype} of {shape}."
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            shape = tuple(self.labels.shape)
            raise InputError(
                f"Labels must be int64, one for each of the {len(self.images)} images, "
                f"not {self.labels.dtype} of shape {shape}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor | slice) -> Tensor:
        """The images at ``indices``: uint8 (n, C, H, W)."""
        return self.images[indices]

    def batches(
        self,
        batch_size: int,
        shuffle_rng: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through all images once, in order or as ``shuffle_rng`` says; the last may be short.

        Yields:
            Images float32 (B, C, H, W) in [0, 1] and labels int64 (B,), both on ``device``.
        """
        chunks = _chunks(len(self), batch_size, shuffle_rng)
        return ((_to_float(self.take(c), device), self.labels[c].to(device)) for c in chunks)


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """Images decoded from their files batch by batch: the lazy twin of `Split`.

    Attributes:
        paths: N image files.
        labels: int64 (N,).
        channels: 1 (grey) or 3 (RGB); every image is converted.
        size: side in pixels; the shorter side is resized to it and the middle is kept.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    channels: int
    size: int

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def images(self) -> Tensor:
        """Not available: these images are too many for memory."""
        raise InputError(
            "These images are read from disk batch by batch; use batches() or take() instead of "
            ".images."
        )

    def take(self, indices: Tensor | slice) -> Tensor:
        """Decode the images at ``indices``: uint8 (n, C, H, W)."""
        rows = torch.arange(len(self))[indices].tolist()
        with ThreadPoolExecutor(DECODE_THREADS) as pool:
            decoded = pool.map(lambda i: _decode(self.paths[i], self.channels, self.size), rows)
            shape = (0, self.channels, self.size, self.size)
            return torch.stack(list(decoded)) if rows else torch.empty(shape, dtype=torch.uint8)

    def batches(
        self,
        batch_size: int,
        shuffle_rng: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As `Split.batches`; the next batch is decoded while this one is in use."""
        return self._decode_ahead(_chunks(len(self), batch_size, shuffle_rng), device)

    def _decode_ahead(
        self, chunks: list[Tensor | slice], device: torch.device | str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self.take, chunks[0])
            for i, chunk in enumerate(chunks):
                images = coming.result()
                if i + 1 < len(chunks):
                    coming = ahead.submit(self.take, chunks[i + 1])
                yield _to_float(images, device), self.labels[chunk].to(device)


AnySplit = Split | FolderSplit


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set for image classification.

    Attributes:
        name: the name or path it was loaded by.
        class_names: one a class, in the order of the labels.
        channels, size: every image is (channels, size, size).
        mean, std: one number a channel, of pixels in [0, 1], from the train split (for ImageNet's
            subsets the usual constants); ``std`` is at least 1/255.
        train, val, test: the splits; ``val`` is None where the source has none.
    """

    name: str
    class_names: tuple[str, ...]
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: AnySplit
    val: AnySplit | None
    test: AnySplit

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def spec(self, network: str) -> NetworkSpec:
        """What it takes to rebuild ``network`` for this data."""
        return NetworkSpec(
            network=network,
            classes=self.classes,
            channels=self.channels,
            size=self.size,
            mean=self.mean,
            std=self.std,
            class_names=self.class_names,
        )


# --- Loading by name or path -----------------------------------------------------------------


def data_root(root: str | Path | None = None) -> Path:
    """The one folder in which files are looked for and written."""
    return Path(root or os.environ.get("DFKD_DATA") or Path("data") / "downloads").expanduser()


def names() -> tuple[str, ...]:
    """Every name that `load` knows; MedMNIST's only where the package medmnist is installed."""
    return (*_READERS, *(medmnist_info() if _medmnist_file() else ()))


def load(
    name_or_path: str | Path,
    root: str | Path | None = None,
    size: int | None = None,
    download: bool = False,
) -> ImageData:
    """Load a data set by its name (see `names`), a folder of class folders, or an ``.npz`` file.

    A folder holds ``<class>/*.png`` (of each class a fifth, drawn by a fixed rule, becomes the
    test split), or ``train/<class>/..`` with ``test/<class>/..``, ``val/<class>/..`` or both
    (a lone ``val`` serves as test). An ``.npz`` holds uint8 arrays ``train_images`` (N, H, W) or
    (N, H, W, C), ``train_labels``, ``test_images``, ``test_labels``, optionally ``val_*``, or
    ``x_train``, ``y_train``, ``x_test``, ``y_test``. Names win over folders of the same name.

    Args:
        root: where files lie and downloads go; see `data_root`.
        size: side in pixels, 8 to 224, bilinear where it is not the images' own; MedMNIST: 28
            (default), 64, 128 or 224. Defaults: digits 16, ImageNet's subsets 224, a folder the
            shorter side of its first image (at most 224), everything else its own.
        download: fetch what is missing. Without it the network is never used.

    Raises:
        InputError: unknown name, missing, damaged or unsuitable files, a size not on offer.
    """
    _check_size(size)
    known = name_or_path.lower() if isinstance(name_or_path, str) else ""
    if known in _READERS:
        return _READERS[known](data_root(root), size, download)
    if known in names():
        return _read_medmnist(known, data_root(root), size, download)
    return _read_path(Path(name_or_path).expanduser(), data_root(root), size)


def _read_path(path: Path, root: Path, size: int | None) -> ImageData:
    if path.is_dir():
        return _read_folder(path, str(path), size)
    if path.is_file():
        if path.suffix == ".npz":
            return _read_npz(path, str(path), root, size)
        raise InputError(f"{path} is neither a folder of class folders nor an .npz file.")
    if path.suffix == ".npz" or len(path.parts) > 1:
        raise InputError(f"There is no file or folder {path}; check the path.")
    raise _unknown(str(path))


def _unknown(name: str) -> InputError:
    """What to say of a name that `load` does not know."""
    try:
        if "mnist" in name.lower():
            medmnist_info()  # says how to get MedMNIST's names where they are not known
        choose("data set", name, names())
    except InputError as error:
        return InputError(f"{error} A folder or an .npz file is given by its path.")
    raise AssertionError(name)  # called for unknown names only


def _check_size(size: int | None) -> None:
    if size is None:
        return
    if isinstance(size, bool) or not isinstance(size, int):
        raise InputError(f"size must be a whole number of pixels, not {size!r}.")
    check_range("size", size, *SIZES)


def _resize(images: Tensor, size: int) -> Tensor:
    """Bilinear (antialiased where it shrinks), 8 bit in and out, in pieces to save memory."""
    if images.shape[-2:] == (size, size):
        return images
    out = torch.empty(*images.shape[:2], size, size, dtype=torch.uint8)
    for i in range(0, len(images), 1024):
        piece = images[i : i + 1024].float()
        resized = F.interpolate(piece, size=(size, size), mode="bilinear", antialias=True)
        out[i : i + 1024] = resized.round_().clamp_(0, 255).to(torch.uint8)
    return out


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of uint8 (N, C, H, W), exact: from 256 counts each."""
    channels = images.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.float64)
    for i in range(0, len(images), 1024):
        for c in range(channels):
            counts[c] += torch.bincount(images[i : i + 1024, c].flatten(), minlength=256)
    shares = counts / counts.sum(1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = shares @ levels
    variance = (shares * (levels - mean[:, None]) ** 2).sum(1)
    std = variance.sqrt().clamp_min(1 / 255)  # a constant channel must not divide by zero
    return tuple(mean.tolist()), tuple(std.tolist())


def _from_tensors(
    name: str, class_names: tuple[str, ...], train: Split, val: Split | None, test: Split
) -> ImageData:
    mean, std = _statistics(train.images)
    channels, size = train.images.shape[1], train.images.shape[-1]
    return ImageData(name, class_names, channels, size, mean, std, train, val, test)


# --- digits ----------------------------------------------------------------------------------


def _read_digits(root: Path, size: int | None, download: bool) -> ImageData:
    """The 1,797 digits of 8 x 8 pixels that come with scikit-learn: 1,297 train, 500 test.

    The split is stratified and always the same: scikit-learn's with ``random_state=0``. The 17
    grey levels are spread over 0 to 255 after enlarging, so that they are rounded once only.
    """
    from sklearn.datasets import load_digits  # imported late: it takes a second
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=500, stratify=labels, random_state=0
    )
    side = size or 16
    images = torch.from_numpy(pixels).view(-1, 1, 8, 8) * (255 / 16)
    images = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
    images = images.round_().to(torch.uint8)
    targets = torch.from_numpy(labels).long()
    splits = [Split(images[np.sort(rows)], targets[np.sort(rows)]) for rows in (train, test)]
    return _from_tensors("digits", tuple("0123456789"), splits[0], None, splits[1])


# --- .npz and MedMNIST -----------------------------------------------------------------------


@cache
def _medmnist_file() -> Path | None:
    found = importlib.util.find_spec("medmnist")
    folders = found.submodule_search_locations if found else None
    return Path(folders[0]) / "info.py" if folders else None


@cache
def medmnist_info() -> dict[str, dict[str, Any]]:
    """MedMNIST's own table: name -> task, labels, channels, and address and MD5 of each size.

    Importing ``medmnist`` creates ``~/.medmnist``. The table is one literal in the package's
    ``info.py``, so it is read from there as a literal, and none of the package's code runs.

    Raises:
        InputError: the package is not installed, or its table is no longer a literal.
    """
    file = _medmnist_file()
    if file is None:
        raise InputError(
            "The MedMNIST sets need their table: install it with pip install medmnist."
        )
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["INFO"]:
            table: dict[str, dict[str, Any]] = ast.literal_eval(node.value)
            return table
    raise InputError(f"{file} holds no table INFO; install medmnist 3.0.2.")


def _read_medmnist(name: str, root: Path, size: int | None, download: bool) -> ImageData:
    row, side = medmnist_info()[name], 28 if size is None else size
    if row["python_class"].endswith("3D"):
        raise InputError(f"{name} holds volumes; this package works on flat images only.")
    if row["task"].startswith("multi-label"):
        raise InputError(
            f"{name} gives an image several labels at once, while a classifier here is taught "
            "with one label an image; choose a set with one, such as pneumoniamnist."
        )
    if side not in MEDMNIST_SIZES:
        raise InputError(
            f"{name} comes in {', '.join(map(str, MEDMNIST_SIZES))} px, not in {side}; "
            "to have another size, load its .npz file by path with size=."
        )
    suffix = "" if side == 28 else f"_{side}"
    path = root / f"{name}{suffix}.npz"
    if not path.is_file():
        _get(f"{name} at {side} px", row["url" + suffix], row["MD5" + suffix], path, download)
    class_names = tuple(row["label"][str(i)] for i in range(len(row["label"])))
    data = _read_npz(path, name, root, None, class_names)
    found: dict[str, Any] = {"train": data.train, "val": data.val, "test": data.test}
    count = {split: 0 if found[split] is None else len(found[split]) for split in found}
    if (count, data.channels, data.size) != (row["n_samples"], row["n_channels"], side):
        raise InputError(
            f"{path} is not the file of {name} at {side} px: it holds {count} images of "
            f"{data.channels} x {data.size} x {data.size}, not {row['n_samples']} of "
            f"{row['n_channels']} x {side} x {side}; delete it and fetch the right one."
        )
    return data


# Split -> the keys of its images and labels in an .npz: as MedMNIST names them, as Keras does.
_MEDMNIST_KEYS = {s: (f"{s}_images", f"{s}_labels") for s in ("train", "val", "test")}
_KERAS_KEYS = {s: (f"x_{s}", f"y_{s}") for s in ("train", "val", "test")}


def _read_npz(
    path: Path,
    name: str,
    root: Path,
    size: int | None,
    class_names: tuple[str, ...] | None = None,
) -> ImageData:
    try:
        with zipfile.ZipFile(path) as file:
            arrays = [m for m in file.namelist() if m.endswith(".npy")]
            headers = {m.removesuffix(".npy"): _header(path, file, m) for m in arrays}
        keys = _npz_keys(path, headers)
        _check_headers(path, headers, keys)
        pixels = sum(int(np.prod(headers[k[0]][0])) for k in keys.values())
        mapped = pixels > MEMORY_LIMIT and size is None
        splits = {s: _npz_split(path, k, root if mapped else None) for s, k in keys.items()}
    except InputError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} is not an .npz file, or it is damaged or cut short ({error}); get it again."
        ) from None
    if size is not None:
        splits = {s: Split(_resize(d.images, size), d.labels) for s, d in splits.items()}
    class_names = _check_labels(path, {s: d.labels for s, d in splits.items()}, class_names)
    return _from_tensors(name, class_names, splits["train"], splits.get("val"), splits["test"])


def _header(path: Path, file: zipfile.ZipFile, member: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an array, without reading it: pickles are seen before anything loads."""
    with file.open(member) as stream:
        try:
            version = np.lib.format.read_magic(stream)
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
        except ValueError as error:
            raise InputError(f"In {path}, {member} is not an array ({error}).") from None
    if dtype.hasobject:
        raise InputError(
            f"In {path}, {member} is pickled, which could run code when it is opened, so it is "
            "refused; save plain number arrays with numpy.savez."
        )
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
    """Refuse arrays of another kind than `load` documents."""
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
    """Unpack one array of an .npz too large for memory to a file below ``root``, and map it."""
    with zipfile.ZipFile(path) as file:
        member = file.getinfo(f"{key}.npy")
        target = root / "unpacked" / f"{path.stem}-{key}-{member.CRC:08x}.npy"
        part = target.with_suffix(".part")
        try:
            if not target.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                with file.open(member) as source, open(part, "wb") as out:
                    _copy(source.read, out.write, f"unpacking {key}", member.file_size, 0)
                os.replace(part, target)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise InputError(
                f"{path} is too large for memory and cannot be unpacked to {target} ({error}); "
                "make room there, or choose another root."
            ) from None
    # "c": changes stay in memory and never reach the file; torch wants writable arrays
    array: np.ndarray = np.load(target, mmap_mode="c", allow_pickle=False)
    return array


def _check_labels(
    path: Path, labels: dict[str, Tensor], class_names: tuple[str, ...] | None
) -> tuple[str, ...]:
    """Class names (the numbers where none are given), after a look at every label."""
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


# --- CIFAR, in its binary form ---------------------------------------------------------------


def _read_cifar(name: str, root: Path, size: int | None, download: bool) -> ImageData:
    files, folder = CIFAR_FILES[name], _unpacked(name, root, download)
    parts = [_cifar_file(folder / file, files, files.records) for file in files.train]
    train = Split(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))
    test = _cifar_file(folder / files.test, files, files.test_records)
    class_names = tuple(_read_text(folder / files.names).split())
    if len(class_names) != files.classes:
        raise InputError(
            f"{folder / files.names} names {len(class_names)} classes, not {files.classes}; "
            f"delete {folder} and unpack {ARCHIVES[name].file} again."
        )
    if size is not None:
        train, test = (Split(_resize(s.images, size), s.labels) for s in (train, test))
    return _from_tensors(name, class_names, train, None, test)


def _cifar_file(path: Path, files: CifarFiles, records: int) -> Split:
    length = files.label_bytes + 3 * 32 * 32
    if not path.is_file() or path.stat().st_size != records * length:
        problem = f"has {path.stat().st_size:,} bytes" if path.is_file() else "is missing"
        raise InputError(
            f"{path} {problem}, where {records * length:,} bytes belong; delete {path.parent} "
            "and unpack the archive again."
        )
    rows = torch.from_numpy(np.fromfile(path, np.uint8)).view(records, length)
    labels = rows[:, files.label_bytes - 1].long()
    if labels.max() >= files.classes:
        raise InputError(
            f"{path} has the label {labels.max()}, beyond its {files.classes} classes."
        )
    return Split(rows[:, files.label_bytes :].reshape(-1, 3, 32, 32).contiguous(), labels)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); unpack its archive again.") from None


# --- Folders of images -----------------------------------------------------------------------


_Files = list[tuple[Path, int]]  # image files of one split, each with its label


def _read_imagenette(root: Path, size: int | None, download: bool) -> ImageData:
    folder = _unpacked("imagenette", root, download)
    return _read_folder(folder, "imagenette", size or 224, IMAGENETTE_NAMES, IMAGENET_STATISTICS)


def _read_imagenet100(root: Path, size: int | None, download: bool) -> ImageData:
    folder = root / "imagenet100"
    if not (folder / "train").is_dir():
        raise InputError(
            f"imagenet100 needs the folder {folder} with train/<class>/*.JPEG and "
            "val/<class>/*.JPEG for its 100 classes; there is no official archive to download: "
            "copy these folders out of ImageNet (ILSVRC 2012)."
        )
    return _read_folder(folder, "imagenet100", size or 224, statistics=IMAGENET_STATISTICS)


def _read_tiny_imagenet(root: Path, size: int | None, download: bool) -> ImageData:
    folder = _unpacked("tiny-imagenet", root, download)
    return _read_folder(folder, "tiny-imagenet", size or 64)


def _read_folder(
    folder: Path,
    name: str,
    size: int | None,
    nice_names: dict[str, str] | None = None,
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> ImageData:
    tiny = (folder / "val" / "val_annotations.txt").is_file()
    classes, splits = _tiny_splits(folder) if tiny else _folder_splits(folder)
    if tiny:
        nice_names = _tiny_names(folder)
    if len(classes) < 2:
        raise InputError(f"{folder} has a single class folder; a classifier needs at least two.")
    class_names = tuple((nice_names or {}).get(c, c) for c in classes)
    return _from_files(name, class_names, splits, size, statistics)


def _folder_splits(folder: Path) -> tuple[list[str], dict[str, _Files]]:
    if not (folder / "train").is_dir():
        if (folder / "test").is_dir() or (folder / "val").is_dir():
            raise InputError(f"{folder} has a test or val folder, but no train folder beside it.")
        return _held_out(folder)
    found = {
        s: _list_classes(folder / s) for s in ("train", "val", "test") if (folder / s).is_dir()
    }
    if len(found) == 1:
        return _held_out(folder / "train")
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
    """Keep a fifth of each class (at least one) for the test: a fixed draw, the same each time."""
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
    """Class folders in the order of their names, each with its image files in theirs."""
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
    """Tiny-ImageNet: its val split serves as test, since the labels of its test are unpublished."""
    images, annotations = _list_classes(folder / "train"), folder / "val" / "val_annotations.txt"
    label_of, test = {name: label for label, name in enumerate(images)}, _Files()
    for line in _read_text(annotations).splitlines():
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
    rows = [line.split("\t") for line in _read_text(file).splitlines()] if file.is_file() else []
    return {row[0]: row[1].split(",")[0].strip() for row in rows if len(row) > 1}


def _from_files(
    name: str,
    class_names: tuple[str, ...],
    files: dict[str, _Files],
    size: int | None,
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> ImageData:
    everything = [path for split in files.values() for path, _ in split]
    headers = [_header_of_image(path) for path in _spread(everything, 64)]
    channels = 1 if all(mode in ("1", "L", "LA") for mode, _ in headers) else 3
    side = size or min(headers[0][1], SIZES[1])
    splits: dict[str, AnySplit] = {
        s: FolderSplit(tuple(p for p, _ in f), torch.tensor([n for _, n in f]), channels, side)
        for s, f in files.items()
    }
    if len(everything) * channels * side**2 <= MEMORY_LIMIT:
        splits = {s: _decode_all(d, s) for s, d in splits.items()}
    if statistics is None or channels != len(statistics[0]):
        rows = torch.tensor(_spread(range(len(splits["train"])), STATISTICS_IMAGES))
        train = splits["train"]
        statistics = _statistics(train.images if isinstance(train, Split) else train.take(rows))
    return ImageData(
        name,
        class_names,
        channels,
        side,
        *statistics,
        train=splits["train"],
        val=splits.get("val"),
        test=splits["test"],
    )


def _decode_all(split: AnySplit, name: str) -> Split:
    starts = range(0, len(split), 512)
    pieces = tqdm(starts, f"reading {name}", leave=False, delay=1)  # seen only where it is slow
    return Split(torch.cat([split.take(slice(i, i + 512)) for i in pieces]), split.labels)


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of ``items``, evenly spaced."""
    chosen = min(count, len(items))
    return [items[i * len(items) // chosen] for i in range(chosen)]


# What Pillow raises for files that are damaged or no pictures at all.
_BAD_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


def _few(items: Sequence[str]) -> str:
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")


def _open(path: Path) -> Image.Image:
    """A picture opened for its header, or refused by name."""
    try:
        return Image.open(path)
    except (*_BAD_IMAGE, Image.DecompressionBombError) as error:
        raise InputError(f"The image {path} cannot be read ({error}); replace it.") from None


def _header_of_image(path: Path) -> tuple[str, int]:
    """Pillow's name for the kind of pixels, and the shorter side."""
    with _open(path) as image:
        return image.mode, min(image.size)


def _decode(path: Path, channels: int, size: int) -> Tensor:
    """One image file as uint8 (channels, size, size)."""
    with _open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise InputError(f"The image {path} has more than 8 bits a pixel; save it with 8.")
        try:
            picture = image.convert("L" if channels == 1 else "RGB")
        except _BAD_IMAGE as error:
            raise InputError(f"The image {path} cannot be read ({error}); replace it.") from None
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture)).view(size, size, channels).permute(2, 0, 1)


# --- Downloads and archives ------------------------------------------------------------------


def _get(what: str, url: str, md5: str, path: Path, download: bool) -> None:
    """Fetch ``path``, or say that it is missing and how to get it."""
    if not download:
        raise InputError(
            f"{what} needs the file {path}, which is not there: load it with download=True "
            f"(--download on the command line), or fetch {url} by hand and put it there."
        )
    fetch(url, path, md5)


def fetch(url: str, path: Path, checksum: str) -> None:
    """Download ``url`` to ``path``, going on where an earlier attempt stopped.

    What has arrived is kept in ``<path>.part`` until it is whole and its checksum is right.

    Args:
        checksum: hexadecimal MD5 (32 digits) or SHA-256 (64 digits).

    Raises:
        InputError: the server cannot be reached, the disk is full, the checksum is wrong.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = any(_receive(url, part) for _ in range(5))  # each attempt goes on from the last
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"{url} could not be downloaded to {path} ({error}); what has arrived is kept, so run "
            "it again to go on, or fetch the file by hand and put it there."
        ) from None
    if not whole:
        raise InputError(
            f"The download of {url} keeps breaking off; what has arrived is kept in {part}, so "
            "run it again to go on."
        )
    _check_sum(part, checksum, "it has been removed: run it again, or fetch it by hand")
    os.replace(part, path)


def _receive(url: str, part: Path) -> bool:
    """Append to ``part`` what is missing; whether it is whole now."""
    have = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "dfkd_lite"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        reply = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
    except urllib.error.HTTPError as error:
        if (
            error.code != 416
        ):  # "range not satisfiable": nothing is left to send, or too much is here
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return True
        part.unlink()
        return False
    with reply:
        resumed = reply.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        done = have if resumed else 0
        length = reply.headers.get("Content-Length")
        total = done + int(length) if length else None
        with open(part, "ab" if resumed else "wb") as out:
            try:
                _copy(reply.read, out.write, part.stem, total, done)
            except (http.client.IncompleteRead, ConnectionError, TimeoutError):
                return False
    return total is None or part.stat().st_size == total


def _copy(
    read: Callable[[int], bytes],
    write: Callable[[bytes], Any],
    title: str,
    total: int | None,
    done: int,
) -> None:
    """Copy a stream with a progress bar."""
    with tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=title) as bar:
        while block := read(2**18):
            write(block)
            bar.update(len(block))


def _check_sum(path: Path, checksum: str, advice: str) -> None:
    """Compare a file with its checksum; a wrong ``.part`` is removed, for it cannot be resumed."""
    kind = {32: "md5", 64: "sha256"}[len(checksum)]
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False))
    if found.hexdigest() == checksum.lower():
        return
    if path.suffix == ".part":
        path.unlink()
    raise InputError(
        f"{path} is damaged or another version: its {kind.upper()} is {found.hexdigest()}, not "
        f"{checksum}; {advice}."
    )


def _unpacked(name: str, root: Path, download: bool) -> Path:
    """The unpacked folder of an official archive; unpack or fetch the archive where needed."""
    archive = ARCHIVES[name]
    folder, file = root / archive.folder, root / archive.file
    if folder.is_dir():
        return folder
    if file.is_file():
        _check_sum(file, archive.md5, "delete it and get it again")
    else:
        _get(name, archive.url, archive.md5, file, download)
    _unpack(file, archive.folder)
    return folder


def _unpack(file: Path, folder: str) -> None:
    """Unpack ``folder`` beside its archive, whole or not at all; nothing lands elsewhere."""
    temporary = file.parent / f".{folder}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:  # extract() drops "..", drives and leading "/"
                for member in tqdm(archive.infolist(), f"unpacking {file.name}"):
                    archive.extract(member, temporary)
        else:
            with tarfile.open(file) as tar:
                for entry in tqdm(tar, f"unpacking {file.name}", unit=" files"):
                    tar.extract(entry, temporary, filter="data")
        os.replace(temporary / folder, file.parent / folder)
    except (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file} cannot be unpacked ({error}); delete it and get it again."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


_READERS: dict[str, Callable[[Path, int | None, bool], ImageData]] = {
    "digits": _read_digits,
    "cifar10": lambda root, size, download: _read_cifar("cifar10", root, size, download),
    "cifar100": lambda root, size, download: _read_cifar("cifar100", root, size, download),
    "tiny-imagenet": _read_tiny_imagenet,
    "imagenette": _read_imagenette,
    "imagenet100": _read_imagenet100,
}
