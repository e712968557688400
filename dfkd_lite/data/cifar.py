"""Reads CIFAR-10 and CIFAR-100 in their binary form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from .download import ARCHIVES, read_text, unpacked
from .images import ImageData, Split, from_tensors


@dataclass(frozen=True)
class CifarFiles:
    """Describes an unpacked binary archive: records of labels, then 3 x 32 x 32 bytes of image."""

    train: tuple[str, ...]
    test: str
    names: str
    label_bytes: int  # of a record; CIFAR-100 has a coarse label first, the class label last
    classes: int
    records: int  # in each file of the train split
    test_records: int = 10_000


CIFAR_FILES = {
    "cifar10": CifarFiles(
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt",
        label_bytes=1, classes=10, records=10_000,
    ),
    "cifar100": CifarFiles(
        ("train.bin",), "test.bin", "fine_label_names.txt",
        label_bytes=2, classes=100, records=50_000,
    ),
}  # fmt: skip


def read_cifar(name: str, root: Path, size: int | None, download: bool) -> ImageData:
    """Read ``cifar10`` or ``cifar100``; unpack or fetch (``download``) the archive where needed."""
    files, folder = CIFAR_FILES[name], unpacked(name, root, download)
    parts = [_cifar_file(folder / file, files, files.records) for file in files.train]
    train = Split(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))
    test = _cifar_file(folder / files.test, files, files.test_records)
    class_names = tuple(read_text(folder / files.names).split())
    if len(class_names) != files.classes:
        raise InputError(
            f"{folder / files.names} names {len(class_names)} classes, not {files.classes}; "
            f"delete {folder} and unpack {ARCHIVES[name].file} again."
        )
    return from_tensors(name, class_names, {"train": train, "test": test}, size)


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
