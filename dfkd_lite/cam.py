"""Class activation maps: where a network looks (Eqs. 10 to 14). Differentiable throughout.

Built in chapter 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError, choose
from .networks import Layers, capture, evaluating


@dataclass(frozen=True)
class CamConfig:
    """How the maps are made where Eq. 10 does not apply: at all stages but the last."""

    weights: str = "gradient"  # mean gradient: Grad-CAM proper; "gradient-x-activation": Eq. 13
    relu: bool = True  # Eq. 14 has a ReLU, Eq. 11 has none

    def __post_init__(self) -> None:
        choose("kind of CAM weights", self.weights, ("gradient", "gradient-x-activation"))


def cam(features: Tensor, classifier_weight: Tensor, classes: Tensor) -> Tensor:
    """Eq. 10 (Zhou et al. 2016): sum_p w_p^c f_p, for features that are pooled and classified.

    features (B, P, H, W), classifier_weight (K, P), classes (B,) int64 -> maps (B, H, W).
    """
    return torch.einsum("bp,bphw->bhw", classifier_weight[classes], features)


def channel_weights(features: Tensor, gradients: Tensor, kind: str = "gradient") -> Tensor:
    """alpha_p^c, both (B, P, H, W) -> (B, P): means over positions.

    ``gradient`` averages d y^c / d f (Selvaraju et al. 2017, Eq. 12);
    ``gradient-x-activation`` averages the gradient times the activation (Eq. 13 as printed).
    """
    if kind == "gradient-x-activation":
        gradients = gradients * features
    return gradients.mean((2, 3))


def weighted_map(features: Tensor, weights: Tensor, relu: bool = True) -> Tensor:
    """Eq. 14 (Eq. 11 with ``relu=False``): (B, P, H, W) and (B, P) -> maps (B, H, W)."""
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
    """One map (B, H_l, W_l) for each stage of ``layers``, from one captured forward pass.

    The last stage gets Eq. 10 where it holds (``layers.averaged``); all others get Grad-CAM of the
    logit of ``classes``. With ``second_order`` the weights (alpha and w) carry
    gradient; without it they are constants, and only the features do.
    """
    config = config or CamConfig()
    last = layers.stages[-1]
    weight, plain = classifier_weight(model, layers), layers.averaged
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
    """The weight (K, P) of the final linear layer."""
    linear = dict(model.named_modules()).get(layers.classifier)
    if not isinstance(linear, nn.Linear):
        raise InputError(f"'{layers.classifier}' is not a linear layer of the network.")
    return linear.weight


@contextmanager
def graded_capture(model: nn.Module, layers: Layers) -> Iterator[dict[str, Tensor]]:
    """``capture`` for a frozen network: gradients start at the first stage, not at the image.

    Nothing before the first stage is put in the graph, so that Grad-CAM of a frozen teacher costs
    no backward pass through it.
    """

    def start(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return output.detach().requires_grad_()

    modules = dict(model.named_modules())
    first = modules[choose("module", layers.stages[0], modules)]
    with first.register_forward_hook(start), capture(model, layers.stages) as features:
        yield features


def explain(
    model: nn.Module,
    images: Tensor,
    layers: Layers,
    classes: Tensor | None = None,
    config: CamConfig | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Logits (B, K) and each stage's maps (B, H_l, W_l) for *normalised* images (B, C, H, W).

    ``classes`` (B,) defaults to the predicted ones. The model is evaluated in eval mode; the
    results are detached and no gradient is left behind.
    """
    with evaluating(model), torch.enable_grad(), graded_capture(model, layers) as features:
        logits = model(images)
        classes = logits.argmax(1) if classes is None else classes
        maps = stage_maps(features, logits, classes, layers, model, config)
    return logits.detach(), [m.detach() for m in maps]


def upsample(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Maps (B, h, w) resized bilinearly to ``size``: for overlays, and to compare two networks."""
    size = (size, size) if isinstance(size, int) else size
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
