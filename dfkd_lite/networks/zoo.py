"""Build networks by name."""

from __future__ import annotations

import re

from torch import nn

from ..errors import check_range, choose
from .resnet import ResNet
from .vgg import VGG
from .wide_resnet import WideResNet

#: Networks of the papers we compare with. Any other wrn-d-k, such as wrn-10-1, can be built too.
NETWORKS = ("wrn-16-1", "wrn-16-2", "wrn-40-1", "wrn-40-2", "resnet-18", "resnet-34", "vgg-11")


def build(name: str, classes: int, channels: int = 3, size: int = 32) -> nn.Module:
    """Build a network by its name (``wrn-16-1``, ``resnet-18``, ``vgg-11``, ...), not yet trained.

    The initial weights come from torch's global random state, so seed that first. ``size``, in
    pixels, is only checked: is it large enough for the network?

    Raises:
        InputError: the name is unknown (the nearest is offered), or a number is out of range.
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
