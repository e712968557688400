"""Find the stages and the classifier of any network by name, and read its features."""

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
    """Names of a network's stages and classifier, as ``model.named_modules()`` spells them.

    ``stages`` go from early to late. ``classifier`` is the final ``nn.Linear``. ``averaged`` is
    true if the classifier reads the plain mean over positions of the last stage: then Eq. 10 holds.
    """

    stages: tuple[str, ...]
    classifier: str
    averaged: bool = False


def find_layers(model: nn.Module, image_shape: tuple[int, int, int]) -> Layers:
    """Find the stages and the last linear layer of a convolutional classifier.

    The function runs the network on blank images of shape ``image_shape`` (C, H, W) and looks only
    at what runs, so it reads our networks, torchvision's, timm's and your own alike. For each
    resolution it takes the outermost module whose output has this resolution; if there are several,
    the last. It skips pooling layers, and 1x1 maps if there are larger ones.

    Raises:
        InputError: the network cannot read the images, or has no feature maps or no linear layer;
            in the second case, name them yourself with ``Layers(...)``.
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
            found.pop(size, None)  # so that the new entry goes to the end: order of finishing
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
        InputError: the model cannot read the images; ``role`` names the model in the message.
    """
    try:
        with evaluating(model):
            return model(images)
    except InputError:  # from a network of ours, whose own message is clearer
        raise
    except (RuntimeError, ValueError) as error:
        shape = "x".join(map(str, images.shape[1:]))
        raise InputError(f"The {role} cannot read {shape} images: {error}") from error


@torch.no_grad()
def _reads_averages(model: nn.Module, layers: Layers, image_shape: tuple[int, int, int]) -> bool:
    """Tell whether the logits are the classifier's output for the last stage's spatial means."""
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

    ``features[name]`` is the newest output of that module (B, C, H, W), still part of the graph.
    The hooks are removed when the block ends, also after an error.

    Raises:
        InputError: the model has no module of that name; the message offers the nearest name.
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
    """Put ``model`` into evaluation mode for the block, then restore the mode of each module.

    A plain function has no mode and stays as it is.
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
    """Return by name the batch-norm layers with running statistics, in order of definition."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    }


def count_parameters(model: nn.Module) -> int:
    """Count the numbers in all parameters of ``model``, without batch-norm's running statistics."""
    return sum(parameter.numel() for parameter in model.parameters())


def _keep(features: dict[str, Tensor], name: str, _: nn.Module, __: object, out: Tensor) -> None:
    features[name] = out


def blank(model: nn.Module, image_shape: tuple[int, int, int]) -> Tensor:
    """Make two black images (2, C, H, W) with the device and dtype of the model's weights."""
    first = next(model.parameters(), torch.empty(0))
    return torch.zeros(2, *image_shape, device=first.device, dtype=first.dtype)
