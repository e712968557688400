"""Signs of trouble that need no data: what can be seen of a run from teacher, student, generator.

Each is a number to watch over the episodes. None of them knows the test accuracy; what they say
about it is measured in chapter 8.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..kd import kl_divergence
from ..networks import evaluating
from .evaluate import agreement


def effective_classes(logits: Tensor) -> float:
    """exp(entropy) of the mean softmax of logits (B, K): from 1 (one class) to K (all alike)."""
    mean = logits.detach().double().softmax(1).mean(0)
    return torch.special.entr(mean).sum().exp().item()


def diversity(images: Tensor) -> float:
    """Root mean squared distance of two images (B, C, H, W) drawn at random, per pixel.

    In units of the images' values; 0 where all are the same. Twice the variance over the batch is
    the mean squared difference of two draws, so no pair is formed.
    """
    return (2 * images.detach().double().var(0, correction=1).mean()).sqrt().item()


@torch.no_grad()
def data_free_signs(
    teacher: nn.Module, student: nn.Module, images: Tensor, normalised: Tensor
) -> dict[str, float]:
    """What synthetic ``images`` (B, C, H, W) in [0, 1], and ``normalised`` ones, tell about a run.

    Returns:
        ``agreement`` of student and teacher in [0, 1]; ``kl`` of teacher to student at
        temperature 1 (nats); ``confidence``, the teacher's mean largest probability;
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
