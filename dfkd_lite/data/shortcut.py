"""Plants a shortcut: a white square whose place tells the class, to see which network uses it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError, check_range


def plant_shortcut(images: Tensor, marks: Tensor, side: int = 3) -> Tensor:
    """Return copies of images with a white square of ``side`` pixels at the place of their mark.

    Places are numbered along the top row from left to right, then along the bottom row. If marks
    equal the labels, the square tells the class; with other marks it misleads.

    Args:
        images: uint8 (N, C, H, W).
        marks: (N,) int64, 0 or greater.
        side: pixels, from 1 to half of the images' shorter side.

    Raises:
        InputError: a side out of its range, or a mark for which the image has no place.
    """
    check_range("side", side, 1, min(images.shape[-2:]) // 2)
    height, width = images.shape[-2:]
    in_a_row = width // side
    if int(marks.max()) >= 2 * in_a_row:
        raise InputError(
            f"An image {width} px wide has places for {2 * in_a_row} squares of {side} px, not "
            f"for {int(marks.max()) + 1} classes: take a smaller side."
        )
    planted = images.clone()
    for mark in marks.unique().tolist():
        row, column = divmod(mark, in_a_row)
        top, left = row * (height - side), column * side
        chosen = (marks == mark).nonzero()[:, 0]
        planted[chosen, :, top : top + side, left : left + side] = 255
    return planted


def lying_marks(labels: Tensor, classes: int, rng: torch.Generator) -> Tensor:
    """Draw a wrong class for each label, all equally likely: (N,) int64."""
    return (labels + torch.randint(1, classes, labels.shape, generator=rng)) % classes
