"""MedMNIST and MedMNIST+: small medical images, by name."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import InputError
from .download import find_or_fetch
from .images import ImageData
from .npz import read_npz

MEDMNIST_SIZES = (28, 64, 128, 224)  # the sizes in which MedMNIST+ is published


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


def medmnist_is_there() -> bool:
    """Whether the package with MedMNIST's table is installed."""
    return _medmnist_file() is not None


def read_medmnist(name: str, root: Path, size: int | None, download: bool) -> ImageData:
    """Read a set of MedMNIST by its name, and compare its numbers with MedMNIST's table."""
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
        find_or_fetch(
            f"{name} at {side} px", row["url" + suffix], row["MD5" + suffix], path, download
        )
    class_names = tuple(row["label"][str(i)] for i in range(len(row["label"])))
    data = read_npz(path, name, root, None, class_names)
    found: dict[str, Any] = {"train": data.train, "val": data.val, "test": data.test}
    count = {split: 0 if found[split] is None else len(found[split]) for split in found}
    if (count, data.channels, data.size) != (row["n_samples"], row["n_channels"], side):
        raise InputError(
            f"{path} is not the file of {name} at {side} px: it holds {count} images of "
            f"{data.channels} x {data.size} x {data.size}, not {row['n_samples']} of "
            f"{row['n_channels']} x {side} x {side}; delete it and fetch the right one."
        )
    return data
