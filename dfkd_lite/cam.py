"""Class activation maps, which show where a network looks (Eqs. 10 to 14); all are differentiable.

Built in chapter 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .door import one_tensor
from .errors import InputError, choose
from .networks import Layers, capture, evaluating
from .networks.layers import at, unwrapped


@dataclass(frozen=True)
class CamConfig:
    """Settings of the maps of all stages where Eq. 10 does not apply: all but the last."""

    weights: str = "gradient"  # the mean gradient, as in Grad-CAM; "gradient-x-activation": Eq. 13
    relu: bool = True  # Eq. 14 has a ReLU, Eq. 11 has none

    def __post_init__(self) -> None:
        choose("kind of CAM weights", self.weights, ("gradient", "gradient-x-activation"))


def cam(features: Tensor, classifier_weight: Tensor, classes: Tensor) -> Tensor:
    """Return the maps of Eq. 10 (Zhou et al. 2016), sum_p w_p^c f_p, for features that are pooled.

    features (B, P, H, W), classifier_weight (K, P), classes (B,) int64 -> maps (B, H, W).
    """
    return torch.einsum("bp,bphw->bhw", classifier_weight[classes], features)


def channel_weights(features: Tensor, gradients: Tensor, kind: str = "gradient") -> Tensor:
    """Return the channels' weights alpha_p^c (B, P), means over positions, from two (B, P, H, W).

    ``gradient`` averages the gradient d y^c / d f (Selvaraju et al. 2017, Eq. 12).
    ``gradient-x-activation`` averages the gradient times the activation (Eq. 13 as printed).
    """
    if kind == "gradient-x-activation":
        gradients = gradients * features
    return gradients.mean((2, 3))


def weighted_map(features: Tensor, weights: Tensor, relu: bool = True) -> Tensor:
    """Return Eq. 14 (Eq. 11 with ``relu=False``): (B, P, H, W) and (B, P) -> maps (B, H, W)."""
    maps = torch.einsum("bp,bphw->bhw", weights, features)
    return maps.relu() if relu else maps


def stage_maps(
    features: dict[str, Tensor],
    logits: Tensor,
    classes: Tensor,
    layers: Layers,
    model: nn.Module,
    config: CamConfig | None = None,
    second_order: bool = False,
) -> list[Tensor]:
    """Make one map (B, H_l, W_l) for each stage of ``layers``, from one captured forward pass.

    If ``layers.averaged``, the last stage gets Eq. 10. All other stages get Grad-CAM of the logits
    (B, K) of ``classes`` (B,). With ``second_order`` the weights (alpha and w) carry gradient;
    without, they are constants, and only the features carry it.
    """
    config = config or CamConfig()
    last = layers.stages[-1]
    plain = layers.averaged
    weight = classifier_weight(model, layers) if plain or layers.classifier else logits[:0]
    graded = [features[name] for name in (layers.stages[:-1] if plain else layers.stages)]
    maps = []
    if graded:
        scores = logits.gather(1, classes[:, None]).sum()
        gradients = torch.autograd.grad(
            scores, graded, retain_graph=True, create_graph=second_order
        )
        for f, g in zip(graded, gradients, strict=True):
            alpha = channel_weights(f if second_order else f.detach(), g, config.weights)
            maps.append(weighted_map(f, alpha, config.relu))
    if plain:
        maps.append(cam(features[last], weight if second_order else weight.detach(), classes))
    return maps


def classifier_weight(model: nn.Module, layers: Layers) -> Tensor:
    """Return the weight (K, P) of the classifier; refuse a layer of another kind."""
    linear = dict(unwrapped(model).named_modules()).get(layers.classifier)
    if isinstance(linear, nn.Conv2d) and linear.kernel_size == (1, 1):
        return linear.weight.flatten(1)
    if not isinstance(linear, nn.Linear):
        raise InputError(
            f"'{layers.classifier}' is not a linear layer or 1x1 convolution: name the last one."
        )
    return linear.weight


@contextmanager
def graded_capture(model: nn.Module, layers: Layers) -> Iterator[dict[str, Tensor]]:
    """Capture the stages of a frozen network, with gradients that start at the first stage.

    What comes before the first stage is not in the graph, so Grad-CAM has no backward pass there.
    Stages on parallel branches start gradients of their own.
    """

    with (
        at(model, layers.stages[0], Tensor.detach),
        capture(model, layers.stages, graded=True) as features,
    ):
        yield features


def explain(
    model: nn.Module,
    images: Tensor,
    layers: Layers,
    classes: Tensor | None = None,
    config: CamConfig | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Return logits (B, K) and the stages' maps (B, H_l, W_l) of *normalised* images (B, C, H, W).

    ``classes`` (B,), int64, are the predicted ones by default. The model runs in evaluation mode.
    The results are detached, and no gradient stays behind.
    """
    model = unwrapped(model)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        evaluating(model),
        graded_capture(model, layers) as features,
    ):
        logits = one_tensor(model(images))
        classes = logits.argmax(1) if classes is None else classes
        maps = stage_maps(features, logits, classes, layers, model, config)
    return logits.detach(), [m.detach() for m in maps]


def upsample(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resize maps (B, h, w) to ``size`` bilinearly: for overlays, and to compare two networks."""
    size = (size, size) if isinstance(size, int) else size
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
