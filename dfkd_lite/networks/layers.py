"""Finding a classifier's stages and its last linear layer by name, and reading features there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, choose

Network = TypeVar("Network", bound=Callable[..., Any])  # a module, or a function of a batch
_POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True)
class Layers:
    """Module names, as ``model.named_modules()`` spells them.

    ``stages`` run from early to late; ``classifier`` is the final ``nn.Linear``. ``averaged`` says
    that it reads the plain mean over positions of the last stage, so that Eq. 10 holds there.
    """

    stages: tuple[str, ...]
    classifier: str
    averaged: bool = False


def find_layers(model: nn.Module, image_shape: tuple[int, int, int]) -> Layers:
    """Find the stages and the last linear layer of any convolutional classifier.

    At each resolution the stage is the outermost module that puts out maps of that size, the last
    of them where there are several (poolings are passed over, and 1x1 maps while there are larger
    ones). Only what runs is looked at, so that our networks, torchvision's, timm's and your own
    are read alike. ``image_shape`` is (C, H, W).

    Raises:
        InputError: no feature maps or no linear layer; name them yourself with ``Layers(...)``.
    """
    found: dict[tuple[int, int], str] = {}
    linear = ""
    names = {module: name for name, module in model.named_modules() if name}

    def note(module: nn.Module, _: object, output: object) -> None:
        nonlocal linear
        if isinstance(module, nn.Linear):
            linear = names[module]
        if isinstance(module, _POOLINGS) or not isinstance(output, Tensor) or output.dim() != 4:
            return
        size, name = (output.shape[2], output.shape[3]), names[module]
        if size not in found or name.count(".") <= found[size].count("."):
            found.pop(size, None)  # popped first, so that the order is that of finishing
            found[size] = name

    with ExitStack() as hooks:
        for module in names:
            hooks.enter_context(module.register_forward_hook(note))
        answer(model, blank(model, image_shape))
    maps = {size: name for size, name in found.items() if size != (1, 1)} or found
    if not maps or not linear:
        missing = "feature maps (B, C, H, W)" if not maps else "nn.Linear layer"
        raise InputError(f"The network has no {missing} to find: give Layers(stages, classifier).")
    layers = Layers(tuple(maps.values()), linear)
    return replace(layers, averaged=_reads_averages(model, layers, image_shape))


@torch.no_grad()
def answer(model: nn.Module, images: Tensor, role: str = "network") -> Any:
    """Run ``model`` on images (B, C, H, W) in evaluation mode, without gradients.

    Raises:
        InputError: the model cannot read them; the message calls the model by its ``role``.
    """
    try:
        with evaluating(model):
            return model(images)
    except InputError:  # one of our networks, which says itself what it needs
        raise
    except (RuntimeError, ValueError) as error:
        shape = "x".join(map(str, images.shape[1:]))
        raise InputError(f"The {role} cannot read {shape} images: {error}") from error


@torch.no_grad()
def _reads_averages(model: nn.Module, layers: Layers, image_shape: tuple[int, int, int]) -> bool:
    """Whether the logits are the classifier's of the last stage's means, seen on random images."""
    images = blank(model, image_shape)
    images.copy_(torch.rand(images.shape, generator=torch.Generator().manual_seed(0)))
    classifier = model.get_submodule(layers.classifier)
    with evaluating(model), capture(model, layers.stages[-1:]) as features:
        logits = model(images)
    means = features[layers.stages[-1]].mean((2, 3))
    if not isinstance(classifier, nn.Linear) or means.shape[1] != classifier.in_features:
        return False
    expected = F.linear(means, classifier.weight, classifier.bias)
    return bool(torch.allclose(expected, logits, rtol=1e-3, atol=1e-4 * float(logits.abs().max())))


@contextmanager
def capture(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the named modules: ``with capture(model, names) as features``.

    ``features[name]`` is that module's newest output (B, C, H, W), attached to the graph. The
    hooks are removed when the block ends, whatever happens in it.

    Raises:
        InputError: the model has no module of that name (the nearest name is offered).
    """
    modules = dict(model.named_modules())
    features: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name in names:
            module = modules[choose("module", name, modules)]
            hooks.enter_context(module.register_forward_hook(partial(_keep, features, name)))
        yield features


@contextmanager
def evaluating(model: Network) -> Iterator[Network]:
    """Put ``model`` in evaluation mode for the block, and each module back in its own after it.

    A function that is no module has no mode and is left as it is.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [(module, module.training) for module in modules]
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


def batch_norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """The batch-norm layers by name that keep running statistics, in the order of definition."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    }


def count_parameters(model: nn.Module) -> int:
    """Number of trainable numbers in ``model`` (batch-norm's running statistics are not)."""
    return sum(parameter.numel() for parameter in model.parameters())


def _keep(features: dict[str, Tensor], name: str, _: nn.Module, __: object, out: Tensor) -> None:
    features[name] = out


def blank(model: nn.Module, image_shape: tuple[int, int, int]) -> Tensor:
    """Make two black images (2, C, H, W) of the device and dtype of the model's weights."""
    first = next(model.parameters(), torch.empty(0))
    return torch.zeros(2, *image_shape, device=first.device, dtype=first.dtype)
