"""How anybody's network is run, and what is looked at before it teaches or learns.

Built in chapter 10.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .errors import InputError

Network = TypeVar("Network", bound=Callable[..., Any])  # a module, or a function of a batch
#: Where wrappers keep the network: torch.compile; DataParallel, its kin, and averaged models.
_WRAPPED = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "AveragedModel": "module",
            "DistributedDataParallel": "module", "FullyShardedDataParallel": "module"}  # fmt: skip
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


def unwrapped(model: nn.Module) -> nn.Module:
    """Take a network out of torch.compile, DataParallel and their kin, which only add prefixes."""
    while (inner := _WRAPPED.get(type(model).__name__)) is not None:
        model = getattr(model, inner)
    return model


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
        try:
            if isinstance(self.part, str) and hasattr(output, self.part):
                return getattr(output, self.part)
            return output[self.part]
        except (KeyError, IndexError, TypeError):
            raise InputError(
                f"The network's answer, a {type(output).__name__}, has no part {self.part!r}."
            ) from None


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
