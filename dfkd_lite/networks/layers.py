"""Find the stages and the classifier of any network, and read its features.

A feature map is the output of one *call* of a module. A place names it: ``stage1``, or ``relu#3``
for the third call in a pass where the module runs more than once. It is read as the next layer
reads it, so after an in-place operation on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..door import answer, blank, frozen, unwrapped
from ..errors import InputError, choose

_POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True)
class Layers:
    """Places of a network's stages, and its classifier, as ``model.named_modules()`` spells them.

    ``stages`` go from early to late; ``name#2`` is the second call of a module that runs more than
    once. ``classifier`` is the final ``nn.Linear`` or 1x1 ``nn.Conv2d``; empty if there is none.
    ``averaged`` is true if the logits are the classifier's output for the plain means over
    positions of the last stage: then Eq. 10 holds.
    """

    stages: tuple[str, ...]
    classifier: str = ""
    averaged: bool = False


@dataclass(frozen=True)
class _Output:
    """What one call of a module put out, in a pass of images (B, C, H, W)."""

    name: str
    call: int
    module: nn.Module
    value: Tensor
    ratio: float  # H / W of the images

    @property
    def is_map(self) -> bool:
        """Whether it is (B, C, h, w), not (B, h, w, C): h / w is as in the images."""
        if self.value.dim() != 4 or type(self.module) in (nn.Linear, nn.LayerNorm):
            return False
        _, a, b, c = self.value.shape
        nearer = abs(b / c - self.ratio) <= abs(a / b - self.ratio)
        return nearer and abs(b - c * self.ratio) <= 1  # sides are rounded

    @property
    def is_tokens(self) -> bool:
        """Whether a layer with weights made (B, N, C) or (B, h, w, C), with several positions."""
        several = self.value.dim() > 2 and prod(self.value.shape[1:-1]) > 1
        return several and not self.is_map and any(True for _ in self.module.parameters())


def find_layers(model: nn.Module, image_shape: tuple[int, int, int]) -> Layers:
    """Find the stages and the classifier of a convolutional network.

    The function runs the network on two random images of shape ``image_shape`` (C, H, W) and looks
    only at what runs, so it reads our networks, torchvision's, timm's and your own alike. A map
    counts if it depends on the images, and the logits on it, before the classifier. For each
    resolution it takes the outermost module's; if there are several, the last. It skips pooling
    layers, 1x1 maps if there are larger ones, and maps no larger than a later stage.

    Raises:
        InputError: the network cannot read the images, does not answer with a tensor, or has no
            feature maps or ends in tokens; in the last cases, name them with ``Layers(...)``.
    """
    outputs, calls, logits = _outputs(unwrapped(model), image_shape)
    heads = [made for made in outputs if _classifies(made.module, logits.shape[-1])]
    body = outputs[: outputs.index(heads[-1])] if heads else outputs
    found: dict[torch.Size, _Output] = {}
    for made in body:
        if isinstance(made.module, _POOLINGS) or not made.is_map:
            continue
        size, depth = made.value.shape[2:], made.name.count(".")
        if size not in found or depth <= found[size].name.count("."):
            found.pop(size, None)  # so that the new entry goes to the end: order of finishing
            found[size] = made
    larger = [made for size, made in found.items() if prod(size) > 1] or list(found.values())
    stages: list[_Output] = []
    for made in reversed(larger):
        if not stages or made.value[0, 0].numel() > stages[0].value[0, 0].numel():
            stages.insert(0, made)
    if not stages or logits.dim() != 2:
        _refuse("has no feature maps (B, C, H, W) to find on the way to logits (B, K)")
    if tokens := [m.name for m in body[body.index(stages[-1]) :] if m.is_tokens]:
        _refuse(f"ends in tokens or channels-last maps ('{tokens[-1]}'), not in maps (B, C, H, W)")
    places = tuple(m.name + f"#{m.call}" * (calls[m.name] > 1) for m in stages)
    averaged = bool(heads) and _reads_averages(heads[-1].module, stages[-1].value, logits)
    return Layers(places, heads[-1].name if heads else "", averaged)


def _refuse(why: str) -> None:
    raise InputError(
        f"The network {why}: if there are such maps, name them by Layers(stages, classifier)."
    )


def _outputs(
    model: nn.Module, image_shape: tuple[int, int, int]
) -> tuple[list[_Output], Counter[str], Tensor]:
    """Run the network; return what lies between images and logits, all calls, and the logits."""
    made: list[_Output] = []
    calls: Counter[str] = Counter()
    ratio = image_shape[1] / image_shape[2]

    def note(name: str, module: nn.Module, _: object, value: object) -> None:
        calls[name] += 1
        if isinstance(value, Tensor) and value.requires_grad:
            made.append(_Output(name, calls[name], module, value, ratio))

    with torch.inference_mode(False), torch.enable_grad(), frozen(model), ExitStack() as hooks:
        images = blank(model, image_shape)
        images.copy_(torch.rand(images.shape, generator=torch.Generator().manual_seed(0)))
        for name, module in model.named_modules():
            if name:
                hooks.enter_context(module.register_forward_hook(partial(note, name)))
        logits = answer(model, images.requires_grad_().clone())
        if not logits.requires_grad:
            raise InputError(
                "The network's answers have no gradient to the images: its forward switches "
                "gradients off (torch.no_grad, detach); without that it can be read."
            )
        values = [output.value for output in made]
        reached = torch.autograd.grad(logits.sum(), values, allow_unused=True) if made else ()
    used = [output for output, g in zip(made, reached, strict=True) if g is not None]
    return used, calls, logits


def _classifies(module: nn.Module, classes: int) -> bool:
    if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1:
        return module.out_channels == classes
    return isinstance(module, nn.Linear) and module.out_features == classes


@torch.no_grad()
def _reads_averages(classifier: Any, features: Tensor, logits: Tensor) -> bool:
    """Tell whether the logits are the classifier's output for the last stage's spatial means."""
    means, weight = features.mean((2, 3)), classifier.weight.flatten(1)
    if means.shape[1] != weight.shape[1]:
        return False
    expected = F.linear(means, weight, classifier.bias)
    return bool(torch.allclose(expected, logits, rtol=1e-3, atol=1e-4 * float(logits.abs().max())))


@contextmanager
def at(model: nn.Module, place: str, act: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call ``act`` with each output of a place (see :class:`Layers`); its result replaces it.

    Raises:
        InputError: the model has no module of that name; the message offers the nearest name.
    """
    model = unwrapped(model)
    modules = dict(model.named_modules())
    name, _, call = place.partition("#")
    module = modules[choose("module", name, modules)]
    calls: Counter[str] = Counter()

    def hook(_: nn.Module, __: object, output: Tensor) -> Tensor | None:
        calls[name] += 1
        return act(output) if not call or calls[name] == int(call) else None

    with ExitStack() as hooks:
        if call:  # counted within a pass
            hooks.enter_context(model.register_forward_pre_hook(lambda *_: calls.clear()))
        hooks.enter_context(module.register_forward_hook(hook))
        yield


@contextmanager
def capture(
    model: nn.Module, names: Sequence[str], graded: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the named places: ``with capture(model, names) as features``.

    ``features[name]`` is the newest output there (B, C, H, W), still part of the graph. With
    ``graded``, gradients start at an output that has none, as in a frozen network. The hooks are
    removed when the block ends, also after an error.

    Raises:
        InputError: the model has no module of that name; the message offers the nearest name.
    """
    features: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> Tensor | None:
        started = graded and torch.is_grad_enabled() and not output.requires_grad
        if started:  # a copy, because in-place operations may not change a leaf
            output = output.detach().requires_grad_().clone()
        features[name] = output
        return output if started else None

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(at(model, name, partial(keep, name)))
        yield features


def count_parameters(model: nn.Module) -> int:
    """Count the numbers in all parameters of ``model``, without batch-norm's running statistics."""
    return sum(parameter.numel() for parameter in model.parameters())
