"""The networks by name, and what must be known of one to feed it: ``NetworkSpec``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from ..errors import InputError, check_range, choose
from .resnet import ResNet
from .vgg import VGG
from .wide_resnet import WideResNet

#: The names of the compared papers; any other wrn-d-k, such as wrn-10-1, can be built too.
NETWORKS = ("wrn-16-1", "wrn-16-2", "wrn-40-1", "wrn-40-2", "resnet-18", "resnet-34", "vgg-11")


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


def build(name: str, classes: int, channels: int = 3, size: int = 32) -> nn.Module:
    """A freshly initialised network by name: ``wrn-16-1``, ``resnet-18``, ``vgg-11``, ...

    Initial weights come from torch's global random state: seed it before. ``size`` in pixels is
    only checked against what the network can read.

    Raises:
        InputError: unknown name (the nearest is offered), or a number out of range.
    """
    check_range("classes", classes, 2)
    check_range("channels", channels, 1)
    check_range("size", size, 16 if name == "vgg-11" else 8)
    if wide := re.fullmatch(r"wrn-(\d{1,3})-(\d{1,3})", name):
        check_range("a WRN's widening factor", int(wide[2]), 1)
        return WideResNet(int(wide[1]), int(wide[2]), classes, channels)
    choose("network", name, NETWORKS)
    if name == "vgg-11":
        return VGG(classes, channels)
    return ResNet((2, 2, 2, 2) if name == "resnet-18" else (3, 4, 6, 3), classes, channels)
