"""Lipschitz bounds and slopes of networks, which Eqs. 20 to 22 need: how much distances can grow.

All norms are Euclidean, over all pixels of an image or all logits. Do not confuse three numbers: a
layer's *exact* norm, a network's *upper* bound (the product of its layers' norms), and a *sampled
lower* bound (the slope at the steepest of some images).

Built in chapter 9.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from .door import answer, blank
from .errors import InputError, check_range
from .networks import VGG, ResNet, WideResNet, evaluating
from .networks.resnet import BasicBlock
from .networks.wide_resnet import PreActivationBlock
from .spectral import (
    Network,
    average_pool_norm,
    batch_norm_norm,
    check_finite_slopes,
    conv_norm,
    fixed_directions,
    gram_of,
    largest_eigenvalue,
    linear_norm,
    max_pool_norm,
)

# ----------------------------------------------------------- upper bounds: the product of layers


@dataclass(frozen=True)
class LayerBound:
    """The Lipschitz constant of one step: exact for a layer, an upper bound for a residual block.

    ``parts`` of a residual block are the layers of its branch and of its shortcut, in the order of
    the network; a layer has none.
    """

    name: str
    kind: str
    norm: float
    parts: tuple[LayerBound, ...] = ()


@dataclass(frozen=True)
class LayerBounds:
    """An upper bound on a network's Lipschitz constant, and its factors.

    ``factors`` are the steps from image to logits; ``bound`` is the product of their norms.
    """

    bound: float
    factors: tuple[LayerBound, ...]

    @property
    def layers(self) -> tuple[LayerBound, ...]:
        """All layers (name, kind, norm), with the parts of residual blocks in their place."""
        return tuple(layer for factor in self.factors for layer in _leaves(factor))


def network_bound(
    model: nn.Module, image_shape: tuple[int, int, int], std: Sequence[float] = ()
) -> LayerBounds:
    """Bound a network's Lipschitz constant, in evaluation mode, by the exact norms of its layers.

    The norms of successive steps multiply; those of a residual branch and its shortcut add. A
    convolution and the batch-norm after it count as one linear map, which gives a tighter bound.

    Args:
        model: a ``WideResNet``, ``ResNet`` or ``VGG`` of this package, or an ``nn.Sequential`` of
            convolutions, batch-norms, poolings, linear layers, ReLU, dropout and flatten.
        image_shape: (C, H, W); the norms of convolutions and poolings depend on it.
        std: the C standard deviations by which images are divided before the network. With them the
            bound is from pixels in [0, 1] to logits, as in Eq. 21; without, from normalised images.

    Raises:
        InputError: the network has a module without a rule (the message names it), cannot read the
            images, or holds NaN or infinite weights.
    """
    factors = [_normalisation(std, image_shape[0])] if len(std) else []
    with evaluating(model):
        steps = _steps("", model)
        factors += _factors(steps, _sizes(model, image_shape))
    return LayerBounds(math.prod(factor.norm for factor in factors), tuple(factors))


@dataclass(frozen=True)
class _Sum:
    """Two chains of steps with the same input, whose outputs are added."""

    name: str
    branch: list[_Step]
    shortcut: list[_Step]


_Step = tuple[str, nn.Module] | _Sum
_Sizes = dict[nn.Module, tuple[tuple[int, int], tuple[int, int]]]  # (H, W) in and out

# Compared by forward, not by class: a subclass with a forward of its own has other steps.
_CHAINS = {kind.forward for kind in (nn.Sequential, WideResNet, ResNet, VGG)}
_NO_GROWTH = (nn.ReLU, nn.Flatten, nn.Dropout, nn.Dropout2d, nn.Identity)
_BATCH_NORMS: Any = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.BatchNorm1d)
_AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)


def _steps(name: str, module: nn.Module) -> list[_Step]:
    """List the steps of a module in order: containers are unfolded, residual blocks become sums."""
    within = f"{name}." if name else ""
    if type(module).forward in _CHAINS:  # their children are in the order of the forward
        steps: list[_Step] = []
        for key, child in module._modules.items():  # named_children() skips repeats
            steps += _steps(within + key, child) if child is not None else []
        return steps
    if isinstance(module, PreActivationBlock):
        activated: list[_Step] = [_step(module, within, key) for key in ("bn1", "relu1")]
        branch = [_step(module, within, key) for key in ("conv1", "bn2", "relu2", "conv2")]
        if module.shortcut is None:
            return [_Sum(name, [*activated, *branch], [])]
        return [*activated, _Sum(name, branch, [_step(module, within, "shortcut")])]
    if isinstance(module, BasicBlock):
        keys = ("conv1", "bn1", "relu1", "conv2", "bn2")
        branch = [_step(module, within, key) for key in keys]
        shortcut = _steps(f"{within}shortcut", module.shortcut)
        return [_Sum(name, branch, shortcut), _step(module, within, "relu2")]
    return [(name or type(module).__name__, module)]


def _step(block: nn.Module, within: str, key: str) -> _Step:
    return within + key, block.get_submodule(key)


def _factors(steps: list[_Step], sizes: _Sizes) -> list[LayerBound]:
    """Return the Lipschitz constants of a chain of steps."""
    factors, queue = [], list(steps)
    while queue:
        step = queue.pop(0)
        if isinstance(step, _Sum):
            factors.append(_residual(step, sizes))
            continue
        name, module = step
        following = queue[0][1] if queue and isinstance(queue[0], tuple) else None
        if isinstance(module, nn.Conv2d) and isinstance(following, _BATCH_NORMS[:2]):
            queue.pop(0)
            batch_norm_norm(following)  # called only for its checks
            plain = module
            if is_parametrized(module, "weight"):
                plain = remove_parametrizations(copy.deepcopy(module), "weight")  # type: ignore
            norm = conv_norm(fuse_conv_bn_eval(plain, following), sizes[module][0])
            factors.append(LayerBound(name, "convolution + batch-norm", norm))
        else:
            factors.append(_layer(name, module, sizes))
    return factors


def _residual(step: _Sum, sizes: _Sizes) -> LayerBound:
    branch, shortcut = _factors(step.branch, sizes), _factors(step.shortcut, sizes)
    norm = math.prod(part.norm for part in branch) + math.prod(part.norm for part in shortcut)
    return LayerBound(step.name, "residual block", norm, (*branch, *shortcut))


def _layer(name: str, module: nn.Module, sizes: _Sizes) -> LayerBound:
    if isinstance(module, nn.Conv2d):
        return LayerBound(name, "convolution", conv_norm(module, sizes[module][0]))
    if isinstance(module, nn.Linear):
        return LayerBound(name, "linear", linear_norm(module.weight))
    if isinstance(module, _BATCH_NORMS):
        return LayerBound(name, "batch-norm", batch_norm_norm(module))
    if isinstance(module, nn.MaxPool2d):
        return LayerBound(name, "max-pooling", max_pool_norm(module, *sizes[module]))
    if isinstance(module, _AVERAGES):
        return LayerBound(name, "average pooling", average_pool_norm(module, sizes[module][0]))
    if isinstance(module, _NO_GROWTH):
        return LayerBound(name, type(module).__name__, 1.0)
    raise InputError(
        f"There is no Lipschitz rule for '{name}', a {type(module).__name__}: network_bound reads "
        "this package's WideResNet, ResNet and VGG and nn.Sequential of common layers; for other "
        "networks use local_lipschitz, a lower bound."
    )


def _normalisation(std: Sequence[float], channels: int) -> LayerBound:
    if len(std) != channels:
        raise InputError(f"std has {len(std)} numbers for {channels} channels: give {channels}.")
    for value in std:
        check_range("std", value, low=0, above=True)
    return LayerBound("normalise", "normalisation", 1 / min(std))


def _leaves(layer: LayerBound) -> Iterator[LayerBound]:
    if not layer.parts:
        yield layer
    for part in layer.parts:
        yield from _leaves(part)


def _sizes(model: nn.Module, image_shape: tuple[int, int, int]) -> _Sizes:
    """Find the sizes in and out of every convolution and pooling by running black images."""
    sizes: _Sizes = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        found = (tuple(inputs[0].shape[-2:]), tuple(output.shape[-2:]))
        if sizes.setdefault(module, found) != found:
            raise InputError(
                f"One {type(module).__name__} is used at two image sizes, {sizes[module][0]} and "
                f"{found[0]}: network_bound needs a layer of its own for each."
            )

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.MaxPool2d, *_AVERAGES)):
                hooks.enter_context(module.register_forward_hook(note))
        answer(model, blank(model, image_shape))
    return sizes


# ------------------------------------------------------ lower bounds: the slope at chosen images


def local_lipschitz(model: Network, images: Tensor, iterations: int = 50) -> Tensor:
    """Return the spectral norm of the network's Jacobian at each image, (B,): the slope there.

    Lanczos iterations (see :func:`conv_norm`) run on the side of the logits: J^T is a
    vector-Jacobian product, and J the vector-Jacobian product of J^T. With K logits, K iterations
    give the exact norm up to rounding; fewer, a lower bound. All calls start from the same vectors.

    Args:
        model: images (B, C, H, W) -> (B, ...). A module is put into evaluation mode meanwhile; a
            plain function must not mix the images of a batch.
        images: where to measure, as the network reads them (normalised, or in [0, 1] for a function
            that normalises). The result has their units, dtype and device.
        iterations: the largest number of steps.

    Raises:
        InputError: no images, fewer than 1 iteration, or outputs or slopes that are not finite.
    """
    check_range("iterations", iterations, low=1)
    if len(images) == 0:
        raise InputError("There are no images to measure the slope at.")
    with evaluating(model), torch.no_grad():
        outputs, pull_back, *_ = torch.func.vjp(model, images)
        check_finite_slopes(outputs)
        width = outputs[0].numel()
        start = fixed_directions(len(images), width).to(outputs)

        def transposed(rows: Tensor) -> Tensor:  # (B, K) -> J^T of each row (B, C, H, W)
            return pull_back(rows.view_as(outputs))[0]

        steps, tol = min(iterations, width), 10 * torch.finfo(outputs.dtype).eps
        squared, _ = largest_eigenvalue(gram_of(transposed), start, steps, tol)
    return squared.clamp_min(0).sqrt()
