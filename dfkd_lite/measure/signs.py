"""Signs of trouble that need no data, only teacher, student and synthetic images.

Each is a number to watch over the episodes. None of them knows the test accuracy; chapter 8
measures what they say about it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..devices import exact
from ..kd import kl_divergence
from ..networks import evaluating
from .evaluate import agreement


def effective_classes(logits: Tensor) -> float:
    """Return exp(entropy) of the mean softmax of logits (B, K): 1 (one class) to K (all alike)."""
    mean = exact(logits).softmax(1).mean(0)
    return torch.special.entr(mean).sum().exp().item()


def diversity(images: Tensor) -> float:
    """Return the root mean squared distance per pixel of two random images of (B, C, H, W).

    It is in units of the images' values; 0 if all are the same. No pairs are formed, because the
    mean squared difference of two draws is twice the variance over the batch.
    """
    return (2 * exact(images).var(0, correction=1).mean()).sqrt().item()


@torch.no_grad()
def data_free_signs(
    teacher: nn.Module, student: nn.Module, images: Tensor, normalised: Tensor
) -> dict[str, float]:
    """Return what synthetic ``images`` (B, C, H, W) in [0, 1] tell about a run.

    ``normalised`` are the same images as the networks read them.

    Returns:
        ``agreement`` of student and teacher in [0, 1]; ``kl`` of teacher to student at temperature
        1 (nats); ``confidence``, the mean of the teacher's largest probability;
        ``effective_classes`` of the teacher; ``diversity`` of the images.
    """
    with evaluating(teacher), evaluating(student):
        wanted, given = teacher(normalised), student(normalised)
    return {
        "agreement": agreement(given, wanted),
        "kl": kl_divergence(given, wanted, temperature=1.0).item(),
        "confidence": wanted.softmax(1).amax(1).mean().item(),
        "effective_classes": effective_classes(wanted),
        "diversity": diversity(images),
    }
