"""Teachers and students: the field's CIFAR-form networks, and layers found in anybody's."""

from .layers import Layers, batch_norms, capture, count_parameters, evaluating, find_layers
from .resnet import ResNet
from .spec import NetworkSpec, normalise
from .vgg import VGG
from .wide_resnet import WideResNet
from .zoo import NETWORKS, build

__all__ = [
    "NETWORKS",
    "VGG",
    "Layers",
    "NetworkSpec",
    "ResNet",
    "WideResNet",
    "batch_norms",
    "build",
    "capture",
    "count_parameters",
    "evaluating",
    "find_layers",
    "normalise",
]
