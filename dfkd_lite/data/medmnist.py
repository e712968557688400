"""Reads MedMNIST and MedMNIST+, sets of small medical images, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError
from .download import find_or_fetch
from .images import ImageData
from .npz import read_npz


def medmnist_info() -> dict[str, dict[str, Any]]:
    """Return MedMNIST's own table: name -> task, labels, channels, address and MD5 of each size.

    Raises:
        InputError: the package ``medmnist`` is not installed.
    """
    try:
        from medmnist import INFO  # imported late: it takes three seconds, and makes ~/.medmnist
    except ImportError:
        raise InputError(
            "The MedMNIST sets need their table: install it with pip install medmnist."
        ) from None
    table: dict[str, dict[str, Any]] = INFO
    return table


def read_medmnist(name: str, root: Path, size: int | None, download: bool) -> ImageData:
    """Read a set of MedMNIST by its name, and compare its image counts and shape with the table."""
    # The package's own classes cannot continue a download, nor map a file too large for memory.
    row, side = medmnist_info()[name], 28 if size is None else size
    if row["python_class"].endswith("3D"):
        raise InputError(f"{name} holds volumes; this package works on flat images only.")
    if row["task"].startswith("multi-label"):
        raise InputError(
            f"{name} gives an image several labels at once, while a classifier here is taught "
            "with one label an image; choose a set with one, such as pneumoniamnist."
        )
    from medmnist.dataset import MedMNIST2D

    if side not in MedMNIST2D.available_sizes:
        raise InputError(
            f"{name} comes in {', '.join(map(str, MedMNIST2D.available_sizes))} px, not in {side}; "
            "to have another size, load its .npz file by path with size=."
        )
    suffix = "" if side == 28 else f"_{side}"
    path = root / f"{name}{suffix}.npz"
    if not path.is_file():
        find_or_fetch(
            f"{name} at {side} px", row["url" + suffix], row["MD5" + suffix], path, download
        )
    class_names = tuple(row["label"][str(i)] for i in range(len(row["label"])))
    data = read_npz(path, name, root, None, class_names)
    count = {split: len(getattr(data, split) or ()) for split in ("train", "val", "test")}
    if (count, data.channels, data.size) != (row["n_samples"], row["n_channels"], side):
        raise InputError(
            f"{path} is not the file of {name} at {side} px: it holds {count} images of "
            f"{data.channels} x {data.size} x {data.size}, not {row['n_samples']} of "
            f"{row['n_channels']} x {side} x {side}; delete it and fetch the right one."
        )
    return data
