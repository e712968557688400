"""What must be known to feed a network: its classes, its image size, and the normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from ..errors import InputError, check_range


@dataclass(frozen=True)
class NetworkSpec:
    """What somebody must know to use a network's weights.

    ``network`` is a name for :func:`build`, or a label of your own. ``size`` is the side of the
    square images in pixels. ``mean`` and ``std`` have one number per channel, for images in [0, 1].

    Raises:
        InputError: a number is out of range, or the lengths do not fit the channels or classes.
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
        if max(*self.mean, *self.std) > 1:
            mean, std = (tuple(round(v / 255, 4) for v in of) for of in (self.mean, self.std))
            raise InputError(
                "mean and std are for images in [0, 1], but one is above 1. In units of 0 to 255? "
                f"Divide by 255: mean={mean}, std={std}."
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of one image."""
        return self.channels, self.size, self.size


class Statistics(Protocol):
    """Any object with the mean and standard deviation of each channel of images in [0, 1]."""

    @property
    def mean(self) -> Sequence[float]: ...

    @property
    def std(self) -> Sequence[float]: ...


def normalise(images: Tensor, of: Statistics) -> Tensor:
    """Return ``(images - mean) / std`` per channel, the input that networks expect.

    Args:
        images: float (..., C, H, W), usually in [0, 1].
        of: a :class:`NetworkSpec` or a data set; ``mean`` and ``std`` have C numbers each.

    Raises:
        InputError: the number of channels differs, or a standard deviation is not above zero.
    """
    channels = images.shape[-3] if images.ndim >= 3 else 0
    if not channels == len(of.mean) == len(of.std):
        raise InputError(
            f"The images have {channels} channels, but there are {len(of.mean)} means and "
            f"{len(of.std)} standard deviations; give one of each for every channel."
        )
    if min(of.std) <= 0:
        raise InputError(f"A standard deviation must be above 0, but one is {min(of.std)}.")
    mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (of.mean, of.std))
    return (images - mean) / std


class FromPixels(nn.Module):
    """A network together with its normalisation: images (B, C, H, W) in [0, 1] -> logits (B, K).

    With it nobody can forget the normalisation, the most common reason for wrong answers.
    """

    def __init__(self, model: nn.Module, spec: Statistics) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, spec.mean, spec.std

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(normalise(pixels, self))
