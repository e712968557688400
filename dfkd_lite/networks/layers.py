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
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, choose

Network = TypeVar("Network", bound=Callable[..., Any])  # a module, or a function of a batch
_POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
#: Where wrappers keep the network: torch.compile; DataParallel, its kin, and averaged models.
_WRAPPED = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "AveragedModel": "module",
            "DistributedDataParallel": "module", "FullyShardedDataParallel": "module"}  # fmt: skip


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
        if self.value.dim() != 4 or isinstance(self.module, (nn.Linear, nn.LayerNorm)):
            return False
        _, a, b, c = self.value.shape
        return abs(b / c - self.ratio) <= abs(a / b - self.ratio)

    @property
    def is_tokens(self) -> bool:
        """Whether a layer with weights made (B, N, C) or (B, h, w, C), with several positions."""
        learnt = next(self.module.parameters(), None) is not None
        several = self.value.dim() > 2 and prod(self.value.shape[1:-1]) > 1
        return learnt and several and not self.is_map

    @property
    def size(self) -> tuple[int, int]:
        return self.value.shape[2], self.value.shape[3]


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
    found: dict[tuple[int, int], _Output] = {}
    for made in body:
        if isinstance(made.module, _POOLINGS) or not made.is_map:
            continue
        if (old := found.get(made.size)) is None or made.name.count(".") <= old.name.count("."):
            found.pop(made.size, None)  # so that the new entry goes to the end: order of finishing
            found[made.size] = made
    larger = [made for size, made in found.items() if size != (1, 1)] or list(found.values())
    stages: list[_Output] = []
    for made in reversed(larger):
        if not stages or prod(made.size) > prod(stages[0].size):
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
    if isinstance(module, nn.Linear):
        return module.out_features == classes
    plain = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    return plain and module.out_channels == classes


@torch.no_grad()
def _reads_averages(classifier: Any, features: Tensor, logits: Tensor) -> bool:
    """Tell whether the logits are the classifier's output for the last stage's spatial means."""
    means, weight = features.mean((2, 3)), classifier.weight.flatten(1)
    if means.shape[1] != weight.shape[1]:
        return False
    expected = F.linear(means, weight, classifier.bias)
    return bool(torch.allclose(expected, logits, rtol=1e-3, atol=1e-4 * float(logits.abs().max())))


def answer(model: nn.Module, images: Tensor, role: str = "network") -> Tensor:
    """Run ``model`` on images (B, C, H, W) in evaluation mode.

    Raises:
        InputError: the model cannot read the images, or answers with something other than a
            tensor; ``role`` names the model in the message.
    """
    try:
        with evaluating(model):
            return one_tensor(model(images), role)
    except InputError:  # from a network of ours, whose own message is clearer
        raise
    except Exception as error:  # whatever a foreign network raises
        shape = "x".join(map(str, images.shape[1:]))
        raise InputError(f"The {role} cannot read {shape} images: {error}") from error


def one_tensor(output: Any, role: str = "network") -> Tensor:
    """Return a network's output if it is a tensor; else refuse it and offer ``LogitsOf``."""
    if isinstance(output, Tensor):
        return output
    part = repr(next(iter(output))) if isinstance(output, dict) and output else "0"
    raise InputError(
        f"The {role} answers with a {type(output).__name__}, not with logits (B, K): say which "
        f"part of it they are, as in LogitsOf(network, {part})."
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """Take a network out of torch.compile, DataParallel and their kin, which only add prefixes."""
    while (inner := _WRAPPED.get(type(model).__name__)) is not None:
        model = getattr(model, inner)
    return model


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


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Set eval mode and stop gradients to the weights for the block; restore both after it."""
    wanted = [p for p in network.parameters() if p.requires_grad]
    with evaluating(network):
        for parameter in wanted:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in wanted:
                parameter.requires_grad_(True)


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


def batch_norms(model: nn.Module) -> dict[str, Any]:
    """Return by name the batch-norm layers of maps with running statistics, in order of definition.

    They are known by their statistics: nn.BatchNorm2d, nn.SyncBatchNorm, frozen ones of any maker.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "running_mean", None), Tensor)
        and isinstance(getattr(module, "running_var", None), Tensor)
        and not isinstance(module, (nn.BatchNorm1d, nn.BatchNorm3d))
    }


def count_parameters(model: nn.Module) -> int:
    """Count the numbers in all parameters of ``model``, without batch-norm's running statistics."""
    return sum(parameter.numel() for parameter in model.parameters())


def blank(model: nn.Module, image_shape: tuple[int, int, int]) -> Tensor:
    """Make two black images (2, C, H, W) with the device and dtype of the model's weights."""
    first = next(model.parameters(), torch.empty(0))
    return torch.zeros(2, *image_shape, device=first.device, dtype=first.dtype)
