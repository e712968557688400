"""Loads image data by name or by path, as 8-bit tensors with what a network must know of them.

``load("digits")`` needs no files; ``load("pathmnist", size=64, download=True)`` fetches them;
``load("my/photos")`` reads a folder of class folders and ``load("mine.npz")`` an archive of
arrays. Every source gives the same `ImageData`. The files of named sets are looked for in one
folder, and nothing is written outside it: ``root``, else the environment variable ``DFKD_DATA``,
else ``data/downloads``. (One exception: the package ``medmnist`` makes an empty ``~/.medmnist``.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..errors import InputError, choose
from .cifar import read_cifar
from .digits import read_digits
from .download import fetch
from .folders import read_folder, read_imagenet100, read_imagenette, read_tiny_imagenet
from .images import SIZES, AnySplit, FolderSplit, ImageData, Split, check_size
from .medmnist import medmnist_info, read_medmnist
from .npz import read_npz

__all__ = [
    "SIZES",
    "AnySplit",
    "FolderSplit",
    "ImageData",
    "Split",
    "data_root",
    "fetch",
    "load",
    "medmnist_info",
    "names",
]

#: The function that reads each named data set. Its arguments are the folder ``root``, the side in
#: pixels (None: the default), and whether files that are missing may be downloaded.
READERS: dict[str, Callable[[Path, int | None, bool], ImageData]] = {
    "digits": read_digits,
    "cifar10": lambda root, size, download: read_cifar("cifar10", root, size, download),
    "cifar100": lambda root, size, download: read_cifar("cifar100", root, size, download),
    "tiny-imagenet": read_tiny_imagenet,
    "imagenette": read_imagenette,
    "imagenet100": read_imagenet100,
}


def data_root(root: str | Path | None = None) -> Path:
    """Return the folder of named data sets: ``root``, else DFKD_DATA, else data/downloads."""
    return Path(root or os.environ.get("DFKD_DATA") or Path("data") / "downloads").expanduser()


def names() -> tuple[str, ...]:
    """Return every name that `load` knows: those of ``READERS``, and MedMNIST's."""
    return (*READERS, *medmnist_info())


def load(
    name_or_path: str | Path,
    root: str | Path | None = None,
    size: int | None = None,
    download: bool = False,
) -> ImageData:
    """Load a data set by its name (see `names`), a folder of class folders, or an ``.npz`` file.

    A folder holds ``<class>/*.png`` (of each class a fifth, drawn by a fixed rule, becomes the
    test split), or ``train/<class>/..`` with ``test/<class>/..``, ``val/<class>/..`` or both
    (``val`` alone serves as test); also ``Training``, ``valid``, ``test_set`` and the like, inside
    a further folder, or the splits inside the classes. Classes are in natural order ("2" before
    "10"); images are turned upright by their EXIF orientation, and laid on white where they are
    transparent. ``print`` of what is returned says which folder was taken for what.

    An ``.npz`` holds uint8 arrays ``train_images`` (N, H, W) or (N, H, W, C),
    ``train_labels``, ``test_images``, ``test_labels``, optionally ``val_*``, or
    ``x_train``, ``y_train``, ``x_test``, ``y_test``; and, if there are any, the names of its
    classes in ``class_names``, a row of texts. A string that is a name is read as a name,
    even where a folder is called the same; give the folder as a `Path`.

    Args:
        root: the folder of files and downloads; see `data_root`.
        size: side in pixels, 8 to 224; images of another side are resized (bilinear). MedMNIST
            has 28 (default), 64, 128 and 224. Defaults: digits 16, imagenette and imagenet100 224,
            a folder the shorter side of its first image (at most 224), everything else its own.
        download: fetch what is missing. Without it the network is never used.

    Raises:
        InputError: unknown name, missing, damaged or unsuitable files, a size not on offer.
    """
    check_size(size)
    known = name_or_path.lower() if isinstance(name_or_path, str) else ""
    if known in READERS:
        return READERS[known](data_root(root), size, download)
    if "mnist" in known and known.isalnum() and known in medmnist_info():
        return read_medmnist(known, data_root(root), size, download)
    return _read_path(Path(name_or_path).expanduser(), data_root(root), size)


def _read_path(path: Path, root: Path, size: int | None) -> ImageData:
    if path.is_dir():
        return read_folder(path, str(path), size)
    if path.is_file():
        if path.suffix.lower() == ".npz":
            return read_npz(path, str(path), root, size)
        raise InputError(f"{path} is neither a folder of class folders nor an .npz file.")
    if path.suffix.lower() == ".npz" or len(path.parts) > 1:
        raise InputError(f"There is no file or folder {path}; check the path.")
    try:
        choose("data set", str(path), names())
    except InputError as error:
        raise InputError(f"{error} A folder or an .npz file is given by its path.") from None
    raise InputError(f"There is no folder {path}; for the data set give its name as text.")
