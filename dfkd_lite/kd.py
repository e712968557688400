"""How far a student's logits are from a teacher's: the losses of Eq. 1 and the distance of Eq. 18.

Every function takes two logit tensors of shape (B, K). The losses that are averages say over what:
over the batch only (each image counts once) or over batch and classes.

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
    """tau^2 * KL(softmax(T / tau) || softmax(S / tau)) in nats: the L_KD of Eq. 1.

    The factor tau^2 keeps the gradient's size when the temperature rises (Hinton, Vinyals and Dean,
    2015). At high temperature the value tends to the squared distance of the centred logits over
    2 K, which links it to Eq. 18.

    Args:
        student_logits: (B, K) floats.
        teacher_logits: (B, K) floats.
        temperature: tau, above 0. The method trains at 20.
        reduce: mean over the batch, or one value per image.

    Returns:
        A scalar, or (B,) with ``reduce=False``; 0 or more, up to rounding.

    Raises:
        InputError: shapes that differ or are not (B, K); a temperature of 0 or less.
    """
    student_logits, teacher_logits = _checked_pair(student_logits, teacher_logits)
    check_range("temperature", temperature, low=0, above=True)
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    per_image = _kl(teacher, student) * temperature**2
    return per_image.mean() if reduce else per_image


def jensen_shannon(
    logits_a: Tensor, logits_b: Tensor, temperature: float = 1.0, reduce: bool = True
) -> Tensor:
    """Jensen-Shannon divergence of two softmax outputs, in nats: symmetric, between 0 and ln 2.

    No factor tau^2 here: the value would then have no upper limit.

    Args:
        logits_a: (B, K) floats.
        logits_b: (B, K) floats.
        temperature: above 0; the logits are divided by it before the softmax.
        reduce: mean over the batch, or one value per image.

    Returns:
        A scalar, or (B,) with ``reduce=False``.

    Raises:
        InputError: shapes that differ or are not (B, K); a temperature of 0 or less.
    """
    logits_a, logits_b = _checked_pair(logits_a, logits_b)
    check_range("temperature", temperature, low=0, above=True)
    log_a = F.log_softmax(logits_a / temperature, dim=1)
    log_b = F.log_softmax(logits_b / temperature, dim=1)
    # The logarithm of the mean of the two distributions, without leaving the logarithms.
    log_middle = torch.logaddexp(log_a, log_b) - math.log(2)
    per_image = (_kl(log_a, log_middle) + _kl(log_b, log_middle)) / 2
    return per_image.mean() if reduce else per_image


def mse_logits(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean over batch and classes of the squared difference of two (B, K) logits: a scalar (Eq. 1).

    Raises:
        InputError: shapes that differ or are not (B, K).
    """
    student_logits, teacher_logits = _checked_pair(student_logits, teacher_logits)
    return F.mse_loss(student_logits, teacher_logits)


def l1_logits(student_logits: Tensor, teacher_logits: Tensor, reduce: bool = True) -> Tensor:
    """Mean over batch and classes of the absolute difference of two (B, K) logits: a scalar; with
    ``reduce=False`` over the classes only: (B,).

    Raises:
        InputError: shapes that differ or are not (B, K).
    """
    student_logits, teacher_logits = _checked_pair(student_logits, teacher_logits)
    per_image = (student_logits - teacher_logits).abs().mean(1)
    return per_image.mean() if reduce else per_image


def squared_distance(student_logits: Tensor, teacher_logits: Tensor, reduce: bool = True) -> Tensor:
    """||S(x) - T(x)||^2, summed over the classes; its mean over the batch estimates Eq. 18.

    With x = G(z) and z drawn from rho, the batch mean is the Monte-Carlo estimate of the integral.

    Args:
        student_logits: (B, K) floats.
        teacher_logits: (B, K) floats.
        reduce: mean over the batch, or one value per image.

    Returns:
        A scalar, or (B,) with ``reduce=False``.

    Raises:
        InputError: shapes that differ or are not (B, K).
    """
    student_logits, teacher_logits = _checked_pair(student_logits, teacher_logits)
    per_image = (student_logits - teacher_logits).square().sum(dim=1)
    return per_image.mean() if reduce else per_image


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) per row, from logarithms."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def _checked_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.ndim != 2 or a.shape != b.shape or a.numel() == 0:
        raise InputError(
            f"Two non-empty logit tensors of the same shape (batch, classes) are needed, not "
            f"{tuple(a.shape)} and {tuple(b.shape)}; give both networks the same images and the "
            "same number of classes."
        )
    return full(a), full(b)
