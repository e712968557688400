"""Teachers and students: networks in their CIFAR form, and tools that read any network's layers."""

from .layers import Layers, batch_norms, capture, count_parameters, evaluating
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
    "NetworkSpec",
    "ResNet",
    "Statistics",
    "WideResNet",
    "batch_norms",
    "build",
    "capture",
    "count_parameters",
    "evaluating",
    "normalise",
]
