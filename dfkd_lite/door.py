"""How anybody's network is run, where its stages are, and what is looked at before training.

Built in chapter 10.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .devices import seeded
from .errors import InputError
from .networks import Layers, evaluating
from .networks.layers import unwrapped

_POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)

_SAME = ("View", "Reshape", "Squeeze", "Unsqueeze", "Clone", "Alias")  # nodes that change no number


def blank(model: nn.Module, image_shape: tuple[int, int, int]) -> Tensor:
    """Make two black images (2, C, H, W) with the device and dtype of the model's weights."""
    first = next(model.parameters(), torch.empty(0))
    return torch.zeros(2, *image_shape, device=first.device, dtype=first.dtype)


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


class LogitsOf(nn.Module):
    """A network that answers with a tuple, a dict or an object, of which ``part`` has the logits.

    ``part`` is an index, a key or an attribute's name: images (B, C, H, W) -> logits (B, K).
    """

    def __init__(self, model: nn.Module, part: int | str) -> None:
        super().__init__()
        self.model, self.part = model, part

    def forward(self, x: Tensor) -> Tensor:
        output: Any = self.model(x)
        if isinstance(output, Tensor):  # as networks with auxiliary heads answer in evaluation mode
            return output
        try:
            if isinstance(self.part, str) and hasattr(output, self.part):
                return getattr(output, self.part)
            return output[self.part]
        except (KeyError, IndexError, TypeError):
            raise InputError(
                f"The network's answer, a {type(output).__name__}, has no part {self.part!r}."
            ) from None


def check_gradients() -> None:
    """Refuse to go on where torch.no_grad or torch.inference_mode is in force."""
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        raise InputError(
            "Gradients are switched off here (torch.no_grad or torch.inference_mode), and "
            "distillation needs them: call it outside."
        )


def check_single(name: str, model: nn.Module) -> None:
    """Refuse weights of another type than images have, torch's default one (float32 unless it was
    changed): one rule for distil, predict and export."""
    wanted = torch.get_default_dtype()
    for key, value in model.state_dict().items():
        if value.is_floating_point() and value.dtype != wanted:
            raise InputError(
                f"{name} has {value.dtype} numbers in '{key}', and images are {wanted}: "
                f"convert it first, with network.to({wanted})."
            )


def check_pair(
    teacher: nn.Module, student: nn.Module, image_shape: tuple[int, int, int], classes: int
) -> bool:
    """Refuse networks of which one cannot learn from the other on images (C, H, W).

    Returns:
        Whether both can read images with channels last. A network that cannot is put back into
        torch's own layout, with a warning.

    Raises:
        InputError: no or foreign weights, images that cannot be read, answers of other classes,
            answers that are probabilities, or a student of which nothing learns.
    """
    fits = []
    for role, network in (("teacher", teacher), ("student", student)):
        first = next(network.parameters(), None)
        if first is None:
            raise InputError(f"The {role} has no weights: give a network that has some.")
        check_single(f"The {role}", network)
        rng = torch.Generator().manual_seed(0)
        images = torch.randn(2, *image_shape, generator=rng).to(first.device)
        fits.append(_takes_channels_last(network, images, role))
        logits = answer(network, images.requires_grad_(), role)
        if logits.shape != (2, classes):
            shape = "x".join(map(str, image_shape))
            raise InputError(
                f"The {role} answers two {shape} images with {tuple(logits.shape)}, not "
                f"(2, {classes}) logits: teacher, student and data must have the same "
                f"{classes} classes."
            )
        if _are_probabilities(logits):
            raise InputError(
                f"The {role} answers with probabilities, not with logits: leave out the softmax "
                "or sigmoid at its end."
            )
    if not any(p.requires_grad for p in student.parameters()):
        raise InputError("The student is frozen: call student.requires_grad_(True) first.")
    with seeded(0), torch.no_grad():  # auxiliary heads answer in training mode only
        one_tensor(copy.deepcopy(student).train()(images), "student that learns")
    return all(fits)


@torch.no_grad()
def _takes_channels_last(network: nn.Module, images: Tensor, role: str) -> bool:
    try:
        answer(network, images.to(memory_format=torch.channels_last), role)
        return True
    except InputError:
        for parameter in network.parameters():  # .to() would keep the strides of one channel
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        answer(network, images, role)  # fails for another reason: that one is told
    warnings.warn(
        f"The {role} cannot compute with channels last, the faster layout: it runs without.",
        stacklevel=4,
    )
    return False


def _are_probabilities(logits: Tensor) -> bool:
    """Whether they sum to one, or a sigmoid made them; log-probabilities are sound logits."""
    values, node = logits.detach(), logits.grad_fn
    if (values >= 0).all() and torch.allclose(values.sum(1), torch.ones_like(values[:, 0])):
        return True
    while node is not None and any(name in type(node).__name__ for name in _SAME):
        node = node.next_functions[0][0]
    return type(node).__name__.startswith(("Sigmoid", "Softmax"))


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
