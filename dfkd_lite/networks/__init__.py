"""Teachers and students: networks in their CIFAR form, and tools that read any network's layers."""

from ..door import LogitsOf, batch_norms, evaluating
from .layers import Layers, capture, count_parameters, find_layers
from .resnet import ResNet
from .spec import FromPixels, NetworkSpec, Statistics, normalise
from .vgg import VGG
from .wide_resnet import WideResNet
from .zoo import NETWORKS, build

__all__ = [
    "NETWORKS",
    "VGG",
    "FromPixels",
    "Layers",
    "LogitsOf",
    "NetworkSpec",
    "ResNet",
    "Statistics",
    "WideResNet",
    "batch_norms",
    "build",
    "capture",
    "count_parameters",
    "evaluating",
    "find_layers",
    "normalise",
]
