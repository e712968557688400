"""Distances between student and teacher logits: the losses of Eq. 1, the distance of Eq. 18.

Every function takes two float tensors of logits (B, K). With ``reduce`` it returns the mean over
the batch, a scalar; without, one value per image, (B,).

Built in chapter 2.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .devices import full
from .errors import InputError, check_range


def kl_divergence(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 20.0, reduce: bool = True
) -> Tensor:
    """Return the L_KD of Eq. 1: tau^2 * KL(softmax(T / tau) || softmax(S / tau)), in nats.

    It is 0 or more, up to rounding. The ``temperature`` tau is above 0; the method trains at 20.
    The factor tau^2 keeps the size of the gradient when tau rises (Hinton, Vinyals and Dean, 2015).
    At high tau the value tends to the squared distance of the centred logits over 2 K (see Eq. 18).

    Raises:
        InputError: the shapes differ or are not (B, K), or the temperature is 0 or less.
    """
    student, teacher = _log_answers(student_logits, teacher_logits, temperature)
    per_image = _kl(teacher, student) * temperature**2
    return per_image.mean() if reduce else per_image


def jensen_shannon(
    logits_a: Tensor, logits_b: Tensor, temperature: float = 1.0, reduce: bool = True
) -> Tensor:
    """Return the symmetric Jensen-Shannon divergence of two softmax outputs: 0 to ln 2 nats.

    The logits are divided by ``temperature``, above 0, before the softmax. There is no factor
    tau^2, because the value would then have no upper limit.

    Raises:
        InputError: the shapes differ or are not (B, K), or the temperature is 0 or less.
    """
    log_a, log_b = _log_answers(logits_a, logits_b, temperature)
    # logarithm of the mean of both distributions; stable, since it adds in the log domain
    log_middle = torch.logaddexp(log_a, log_b) - math.log(2)
    per_image = (_kl(log_a, log_middle) + _kl(log_b, log_middle)) / 2
    return per_image.mean() if reduce else per_image


def mse_logits(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the mean squared difference of two logits over batch and classes, a scalar (Eq. 1).

    Raises:
        InputError: the shapes differ or are not (B, K).
    """
    student_logits, teacher_logits = _checked_pair(student_logits, teacher_logits)
    return F.mse_loss(student_logits, teacher_logits)


def l1_logits(student_logits: Tensor, teacher_logits: Tensor, reduce: bool = True) -> Tensor:
    """Return the absolute difference of two logits, averaged over the classes.

    Raises:
        InputError: the shapes differ or are not (B, K).
    """
    student_logits, teacher_logits = _checked_pair(student_logits, teacher_logits)
    per_image = (student_logits - teacher_logits).abs().mean(1)
    return per_image.mean() if reduce else per_image


def squared_distance(student_logits: Tensor, teacher_logits: Tensor, reduce: bool = True) -> Tensor:
    """Return ||S(x) - T(x)||^2, summed over the classes; its mean over the batch estimates Eq. 18.

    If x = G(z) and z is drawn from rho, this mean is the Monte-Carlo estimate of the integral.

    Raises:
        InputError: the shapes differ or are not (B, K).
    """
    student_logits, teacher_logits = _checked_pair(student_logits, teacher_logits)
    per_image = (student_logits - teacher_logits).square().sum(dim=1)
    return per_image.mean() if reduce else per_image


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) of each row, from the logarithms of p and q."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def _log_answers(a: Tensor, b: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the logarithms of two softmax outputs at ``temperature``, each (B, K)."""
    a, b = _checked_pair(a, b)
    check_range("temperature", temperature, low=0, above=True)
    return F.log_softmax(a / temperature, dim=1), F.log_softmax(b / temperature, dim=1)


def _checked_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Refuse logits that do not fit each other, and return both in at least float32."""
    if a.ndim != 2 or a.shape != b.shape or a.numel() == 0:
        raise InputError(
            f"Two non-empty logit tensors of the same shape (batch, classes) are needed, not "
            f"{tuple(a.shape)} and {tuple(b.shape)}; give both networks the same images and the "
            "same number of classes."
        )
    return full(a), full(b)
