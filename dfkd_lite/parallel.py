"""Spreads one run over processes: each batch is split, and each mean is taken over all of it.

``accelerate launch -m dfkd_lite run ...`` starts them (gloo on the CPU, NCCL on GPUs). All draw the
same random numbers. Each works on its part of each batch and averages gradients, batch-norm
statistics and losses with the others, so that the run equals that of one process with the same
total batch, up to rounding. In a single process nothing here does anything.

Built in chapter 13.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .devices import full
from .errors import InputError

M = TypeVar("M", bound=nn.Module)


def start(device: str = "auto") -> None:
    """Join the other processes, if this one was started as one of several; it needs accelerate."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        return
    try:
        from accelerate import PartialState
    except ImportError:
        raise InputError(
            "Several processes need the package accelerate: pip install accelerate."
        ) from None
    # one day, because the others wait while the first process trains a teacher
    PartialState(cpu=device == "cpu", timeout=timedelta(days=1))


def count() -> int:
    """Count the processes that work on this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Give the number of this process; 0 is the one that measures, writes and reports."""
    return dist.get_rank() if dist.is_initialized() else 0


def wait() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        dist.barrier()


def mine(batch: Tensor) -> Tensor:
    """Take this process's part of a batch that all have drawn alike: (B, ...) -> (B / n, ...).

    Raises:
        InputError: the batch cannot be split evenly.
    """
    check_split(len(batch))
    return batch.chunk(count())[rank()]


def check_split(batch_size: int) -> None:
    """Refuse a batch size that is not a multiple of the number of processes."""
    if batch_size % count():
        raise InputError(
            f"A batch of {batch_size} cannot be split among {count()} processes: give batch sizes "
            f"that are multiples of {count()}."
        )


def gathered(batch: Tensor) -> Tensor:
    """Join the parts of all processes in order, as the inverse of :func:`mine`; no gradient."""
    if count() == 1:
        return batch
    parts = [torch.empty_like(batch, memory_format=torch.contiguous_format) for _ in range(count())]
    dist.all_gather(parts, batch.detach().contiguous())
    return torch.cat(parts)


def mean(x: Tensor) -> Tensor:
    """Average ``x`` over the processes, with gradient (of any order) to each one's own."""
    return x if count() == 1 else _Mean.apply(x)


class _Mean(torch.autograd.Function):
    """Averages over the processes: the numbers forward, their gradients backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total / count()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Mean.apply(gradient)


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Give all processes the mean of their gradients, in one message."""
    if count() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= count()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def pooled_statistics(mean_: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Work out mean and biased variance (C,) of the whole batch from those of each part."""
    if count() == 1:
        return mean_, variance
    both = mean(mean_)
    return both, mean(variance + (mean_ - both).square())


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """Normalises with the statistics of the whole batch in training, on any device.

    torch's own needs a GPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or count() == 1:
            return super().forward(x)
        local = torch.var_mean(full(x), dim=(0, 2, 3), correction=0)
        average, variance = pooled_statistics(local[1], local[0])
        self._remember(average.detach(), variance.detach(), x.numel() // x.shape[1] * count())
        scale = torch.rsqrt(variance + self.eps) * (self.weight if self.affine else 1)
        offset = (self.bias if self.affine else 0) - average * scale
        return (x * scale[:, None, None] + offset[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _remember(self, average: Tensor, variance: Tensor, size: int) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        step = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(average, step)
        self.running_var.lerp_(variance * (size / (size - 1)), step)


def synchronise(network: M) -> M:
    """Make every batch-norm of ``network`` use the whole batch, if there are several processes.

    The network is changed in place; its names and weights stay.

    Raises:
        InputError: the network has a batch-norm of another kind, whose statistics cannot be shared.
    """
    if count() > 1:
        for name, module in network.named_modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = SynchronisedBatchNorm2d
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise InputError(
                    f"'{name}' is a {type(module).__name__}, whose statistics several processes "
                    "cannot share: use one process, or a network with nn.BatchNorm2d."
                )
    return network
