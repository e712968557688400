"""Reads the handwritten digits of scikit-learn, which need no file and no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .images import ImageData, Split, from_tensors


def read_digits(root: Path, size: int | None, download: bool) -> ImageData:
    """Read scikit-learn's 1,797 digits of 8 x 8 pixels, resized to 16 or ``size``.

    The split, 1,297 train and 500 test, is stratified and always the same (``random_state=0``). The
    17 grey levels are scaled to 0 to 255, then resized (bilinear), and rounded only at the end.
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
    rows = {"train": np.sort(train), "test": np.sort(test)}
    splits = {split: Split(images[chosen], targets[chosen]) for split, chosen in rows.items()}
    return from_tensors("digits", tuple("0123456789"), splits)
