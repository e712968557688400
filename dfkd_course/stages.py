"""Holds what questions of assignment 4 look at: maps of stages, and networks with known maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dfkd_lite import cam as package
from dfkd_lite.door import find_layers
from dfkd_lite.networks import WideResNet, capture, evaluating


def look(network: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Run a network; return each stage's features (B, P, H, W), logits (B, K), weights (K, P).

    The features come early to late, with the graph to the logits; the last layer has the weights.
    """
    layers = find_layers(network, (images.shape[1], images.shape[2], images.shape[3]))
    with evaluating(network), torch.enable_grad(), capture(network, layers.stages) as features:
        logits = network(images.clone().requires_grad_())
    weight = package.classifier_weight(network, layers).detach()
    return [features[name] for name in layers.stages], logits, weight


def stage_maps(network: nn.Module, images: Tensor, classes: Tensor) -> list[Tensor]:
    """Return a map (B, H, W) of the classes (B,) for each stage, early to late (questions 1 to 3).

    The last stage's map is Eq. 10, the earlier ones are Grad-CAM. The weights are constants, the
    features carry gradient; inside ``torch.no_grad()`` nothing does.
    """
    layers = find_layers(network, (images.shape[1], images.shape[2], images.shape[3]))
    with evaluating(network), torch.enable_grad(), capture(network, layers.stages) as features:
        logits = network(images.clone().requires_grad_())
        maps = package.stage_maps(features, logits, classes, layers, network)
    return maps if torch.is_grad_enabled() else [m.detach() for m in maps]


class Straight(nn.Module):
    """Turns images (B, 1, H, W) into logits by a linear map, so that all its maps have formulas.

    The logit of class c is ``gains[c]`` times the mean of the pixels that the second stage keeps:
    one in ``stride`` each way. Both channels hold the pixels, the second one doubled.
    """

    SHARES = (0.5, 0.25)

    def __init__(self, gains: Sequence[float], stride: int) -> None:
        super().__init__()
        self.gains, self.stride = torch.tensor(gains), stride
        self.stage1 = nn.Conv2d(1, 2, 1, bias=False)
        self.stage2 = nn.Conv2d(2, 2, 1, stride, bias=False)
        self.fc = nn.Linear(2, len(gains), bias=False)
        with torch.no_grad():
            self.stage1.weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
            self.stage2.weight.copy_(torch.eye(2).view(2, 2, 1, 1))
            self.fc.weight.copy_(self.gains[:, None] * torch.tensor(self.SHARES))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stage2(self.stage1(x)).mean((2, 3)))

    def weights(self, images: Tensor, classes: Tensor) -> list[Tensor]:
        """Return Grad-CAM's weights (B, 2) at both stages: a logit is a mean over kept places."""
        per_class = self.gains[classes][:, None] * torch.tensor(self.SHARES)
        plane = images[0, 0]
        return [
            per_class / plane.numel(),
            per_class / plane[:: self.stride, :: self.stride].numel(),
        ]

    def maps(self, images: Tensor, classes: Tensor) -> list[Tensor]:
        """Return Grad-CAM (with its ReLU) at the first stage, Eq. 10 at the last."""
        gain, plane = self.gains[classes][:, None, None], images[:, 0]
        return [
            (gain * plane / plane[0].numel()).relu(),
            gain * plane[:, :: self.stride, :: self.stride],
        ]


def small(depth: int, favourite: int, classes: int = 4, seed: int = 0) -> WideResNet:
    """Make an untrained WRN-``depth``-1 for grey images that names one class, whatever it sees.

    The bias of the last layer decides the class; maps do not depend on it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = WideResNet(depth, 1, classes, channels=1).eval()
    network.fc.bias.data[favourite] = 100.0
    return network
