"""What must be known of a network to feed it: classes, size, and how its images are normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import InputError, check_range


@dataclass(frozen=True)
class NetworkSpec:
    """What a stranger must know to use a network's weights.

    ``network`` is a name for :func:`build` (or a label of your own), ``size`` the side of its
    square images in pixels, ``mean`` and ``std`` one number a channel for images in [0, 1].
    """

    network: str
    classes: int
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_range("classes", self.classes, 2)
        check_range("channels", self.channels, 1)
        check_range("size", self.size, 1)
        if not len(self.mean) == len(self.std) == self.channels:
            raise InputError(
                f"mean has {len(self.mean)} and std {len(self.std)} numbers for "
                f"{self.channels} channels: give one of each per channel."
            )
        if self.class_names and len(self.class_names) != self.classes:
            raise InputError(
                f"There are {len(self.class_names)} class names for {self.classes} classes: give "
                "one each, or none."
            )
        for value in self.std:
            check_range("std", value, 0, above=True)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.channels, self.size, self.size


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """``(images - mean) / std`` per channel, as networks expect their input.

    Args:
        images: float (..., C, H, W), usually in [0, 1].
        mean, std: C numbers each, ``std`` above zero.

    Raises:
        InputError: the number of channels differs, or a deviation is not above zero.
    """
    channels = images.shape[-3] if images.ndim >= 3 else 0
    if not channels == len(mean) == len(std):
        raise InputError(
            f"The images have {channels} channels, but there are {len(mean)} means and "
            f"{len(std)} standard deviations; give one of each for every channel."
        )
    if min(std) <= 0:
        raise InputError(f"A standard deviation must be above 0, but one is {min(std)}.")
    return (images - images.new_tensor(mean).view(-1, 1, 1)) / images.new_tensor(std).view(-1, 1, 1)
