"""What is looked at before a network is used: signs that it cannot be what it is given for.

Built in chapter 10.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from .errors import InputError
from .networks import NetworkSpec
from .networks.layers import answer

_SAME = ("View", "Reshape", "Squeeze", "Unsqueeze", "Clone", "Alias")  # nodes that change no number


def check_gradients() -> None:
    """Refuse to go on where torch.no_grad or torch.inference_mode is in force."""
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        raise InputError(
            "Gradients are switched off here (torch.no_grad or torch.inference_mode), and "
            "distillation needs them: call it outside."
        )


def check_single(name: str, model: nn.Module) -> None:
    """Refuse weights in other than single precision: one rule for distil, predict and export."""
    for key, value in model.state_dict().items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise InputError(
                f"{name} has {value.dtype} numbers in '{key}', and images are torch.float32: "
                "convert it first, with network.float()."
            )


def check_pair(teacher: nn.Module, student: nn.Module, spec: NetworkSpec) -> bool:
    """Refuse networks that cannot learn from each other on images of ``spec``.

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
        images = torch.randn(2, *spec.image_shape, generator=rng).to(first.device)
        fits.append(_takes_channels_last(network, images, role))
        logits = answer(network, images.requires_grad_(), role)
        if logits.shape != (2, spec.classes):
            shape = "x".join(map(str, spec.image_shape))
            raise InputError(
                f"The {role} answers two {shape} images with {tuple(logits.shape)}, not "
                f"(2, {spec.classes}) logits: teacher, student and data must have the same "
                f"{spec.classes} classes."
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
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
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
