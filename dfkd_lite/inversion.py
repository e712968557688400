"""Losses that pull images towards a teacher's data: L_BN and L_cls of Eq. 16, and image priors.

Built in chapter 3.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .devices import full
from .errors import InputError, check_range, choose
from .kd import jensen_shannon, kl_divergence, l1_logits
from .networks import batch_norms
from .parallel import pooled_statistics


class _BatchStatistics(torch.autograd.Function):
    """Mean and variance with a backward of one pass over x; autograd's own takes four."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        # d mean / dx = 1/n and d var / dx = 2 (x - mean) / n: together scale * x + offset.
        scale = 2 * grad_variance / count
        offset = grad_mean / count - scale * mean
        return torch.addcmul(offset[:, None, None], x, scale[:, None, None])


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance per channel of features (B, C, H, W): two tensors (C,)."""
    return _BatchStatistics.apply(x)


def statistics_distance(mean: Tensor, variance: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    """Return one layer's part of L_BN: the L2 norms of the differences, not squared, added."""
    assert bn.running_mean is not None and bn.running_var is not None  # by batch_norms
    return torch.dist(bn.running_var, variance) + torch.dist(bn.running_mean, mean)


class BatchNormLoss:
    """L_BN of Eq. 16 (Yin et al. 2020): the distance to the teacher's stored batch-norm statistics.

    It is a context manager. Inside, it watches the *input* of each batch-norm layer in each forward
    pass of ``teacher``. The hooks are removed when the context ends, also after an error.

    With ``momentum`` (FastDFKD: 0.9) it compares moving averages over the batches: then only their
    stream must look like the data, not each small batch. ``first`` multiplies the distance of the
    layer nearest to the pixels (DFQ: 5, DeepInversion: 10).

    Raises:
        InputError: the teacher has no batch-norm layer with running statistics.
    """

    def __init__(self, teacher: nn.Module, momentum: float = 0.0, first: float = 1.0) -> None:
        check_range("momentum of the batch statistics", momentum, 0, 0.9999)
        check_range("weight of the first layer's statistics", first, 0)
        self.layers = batch_norms(teacher)
        if not self.layers:
            raise InputError(
                "The teacher has no batch-norm layers with running statistics, so L_BN cannot be "
                "computed. Without it go dafl, zskt, dfad, and fssc or fastdfkd with bn_weight=0."
            )
        self.momentum, self.first = momentum, first
        self.average: dict[str, tuple[Tensor, Tensor]] = {}
        self._newest: dict[str, tuple[Tensor, Tensor]] = {}
        self._hooks = ExitStack()

    def __enter__(self) -> BatchNormLoss:
        for name, bn in self.layers.items():
            self._hooks.enter_context(bn.register_forward_pre_hook(partial(self._watch, name)))
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()
        self._newest.clear()

    def _watch(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._newest[name] = pooled_statistics(*batch_statistics(full(inputs[0])))

    def loss(self) -> Tensor:
        """Return the sum over the layers for the newest pass, with gradient to the images."""
        if not self._newest:
            raise InputError("L_BN has seen no images: run the teacher inside this context first.")
        terms = [
            statistics_distance(*self._blended(name), self.layers[name]) for name in self._newest
        ]
        if self.first != 1:
            terms[0] = self.first * terms[0]
        return torch.stack(terms).sum()

    def remember(self) -> None:
        """Update the moving averages with the newest batch; call it once per kept batch."""
        if self.momentum:
            blended = {name: self._blended(name) for name in self._newest}
            self.average = {name: (m.detach(), v.detach()) for name, (m, v) in blended.items()}

    def state_dict(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the moving averages, for a checkpoint."""
        return self.average

    def load_state_dict(self, state: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Restore the moving averages from :meth:`state_dict`."""
        for name, (means, variances) in state.items():
            device = next(self.layers[name].buffers()).device
            self.average[name] = means.to(device), variances.to(device)

    def _blended(self, name: str) -> tuple[Tensor, Tensor]:
        mean, variance = self._newest[name]
        if name not in self.average:
            return mean, variance
        old_mean, old_variance = self.average[name]
        keep = self.momentum
        return keep * old_mean + (1 - keep) * mean, keep * old_variance + (1 - keep) * variance


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return L_cls of Eq. 16: cross-entropy of teacher logits (B, K) and wanted labels (B,)."""
    return F.cross_entropy(full(logits), labels)


#: Distances between two networks' answers: two logits (B, K) -> (B,).
DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": partial(kl_divergence, temperature=1.0, reduce=False),  # Eq. 16
    "js": partial(jensen_shannon, temperature=3.0, reduce=False),  # ADI
    "l1": partial(l1_logits, reduce=False),  # DFAD
}


def adversarial_loss(
    student_logits: Tensor, teacher_logits: Tensor, agree_only: bool = True, divergence: str = "kl"
) -> Tensor:
    """Return -L_KD of Eq. 16 at temperature 1, from logits (B, K): low if they are far apart.

    With ``agree_only`` it counts only images that both networks put into the same class (FastDFKD's
    "decision adversarial" form), so none are sought across a class border. Mean over all B images.

    Raises:
        InputError: a ``divergence`` that :data:`DIVERGENCES` does not have.
    """
    distance = DIVERGENCES[choose("divergence", divergence, DIVERGENCES)]
    apart = distance(student_logits, teacher_logits)
    if agree_only:
        apart = apart * (student_logits.argmax(1) == teacher_logits.argmax(1))
    return -apart.mean()


def total_variation(images: Tensor) -> Tensor:
    """Sum the squared differences of neighbouring pixels; mean over images (B, C, H, W)."""
    right = (images[..., :, 1:] - images[..., :, :-1]).square().sum((1, 2, 3))
    below = (images[..., 1:, :] - images[..., :-1, :]).square().sum((1, 2, 3))
    return (right + below).mean()


def l2_prior(images: Tensor) -> Tensor:
    """Return the L2 norm of each image, averaged over the images (B, C, H, W): a scalar."""
    return images.flatten(1).norm(dim=1).mean()
