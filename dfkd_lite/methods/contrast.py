"""Contrastive diversity (CMI): new images should be unlike each other and those made before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..devices import full, placed
from ..networks import batch_norms
from ..parallel import gathered, synchronise
from .base import Problem


class Contrast:
    """The head, the bank of features of earlier images, and the loss.

    ``config`` has ``contrast_temperature``, ``bank_size``, ``negatives`` and ``head``.
    """

    def __init__(self, problem: Problem, config: Any) -> None:
        self.problem, self.config = problem, config
        width = sum(bn.num_features for bn in batch_norms(problem.teacher).values())
        head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.head))
        self.head = synchronise(placed(head, problem.device))
        self.bank = torch.empty(0, width, device=problem.device)

    def loss(self, images: Tensor, whole: list[Tensor] | None = None) -> Tensor:
        """InfoNCE, a scalar, for images (B, C, H, W) in [0, 1]: a local view of each must find its
        global view among those of the batch and of the bank. ``whole``: the batch-norm inputs of
        the global view, where the teacher has seen it already."""
        rng = self.problem.rng
        keys = self.seen(global_view(images, rng)) if whole is None else pooled(whole)
        features = self.seen(local_view(images, rng)), keys, self._drawn()
        queries, keys, others = map(self.head, features)
        return info_nce(queries, keys, others, self.config.contrast_temperature)

    @torch.no_grad()
    def remember(self, images: Tensor) -> None:
        """Put both views of finished images into the bank; the oldest make room."""
        rng = self.problem.rng
        new = [gathered(self.seen(view(images, rng))) for view in (local_view, global_view)]
        self.bank = torch.cat([self.bank, *new])[-self.config.bank_size :]

    def seen(self, images: Tensor) -> Tensor:
        """What the teacher sees (B, d): the spatial means of all its batch-norms' inputs."""
        with batch_norm_inputs(self.problem.teacher) as inputs:
            self.problem.teacher(self.problem.normalise(images))
        return pooled(inputs)

    def _drawn(self) -> Tensor:
        count = min(self.config.negatives, len(self.bank))
        order = torch.randperm(len(self.bank), generator=self.problem.rng, device=self.bank.device)
        return self.bank[order[:count]]


def info_nce(queries: Tensor, keys: Tensor, others: Tensor, temperature: float) -> Tensor:
    """-log softmax of each query's similarity to its own key, mean over B (van den Oord et al.
    2018): queries and keys (B, d), others (N, d); all are scaled to the sphere first."""
    queries, keys, others = (F.normalize(full(x), dim=1) for x in (queries, keys, others))
    similar = queries @ torch.cat([keys, others]).T / temperature
    return F.cross_entropy(similar, torch.arange(len(queries), device=queries.device))


def pooled(maps: list[Tensor]) -> Tensor:
    """The spatial means of maps (B, C_l, H_l, W_l), side by side: (B, sum of C_l)."""
    return torch.cat([full(x).mean((2, 3)) for x in maps], dim=1)


@contextmanager
def batch_norm_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list that a forward pass inside fills with the inputs of all batch-norms."""
    inputs: list[Tensor] = []
    handles = [
        bn.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        for bn in batch_norms(model).values()
    ]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def global_view(images: Tensor, rng: torch.Generator) -> Tensor:
    """Each image shifted by up to an eighth of its side (4 px at 32), and perhaps mirrored."""
    return _view(images, rng, 1.0, 1.0, 0.25)


def local_view(images: Tensor, rng: torch.Generator) -> Tensor:
    """A random square of a quarter to all of each image's area, enlarged, and perhaps mirrored."""
    return _view(images, rng, 0.25, 1.0, 0.0)


def _view(
    images: Tensor, rng: torch.Generator, smallest: float, largest: float, beyond: float
) -> Tensor:
    """Random crops with gradient. Coordinates run from -1 to 1: a crop of half-side s is centred up
    to 1 - s + ``beyond`` from the middle; what lies outside is black."""

    def uniform(low: Tensor | float, high: Tensor | float) -> Tensor:
        drawn = torch.rand(len(images), generator=rng, device=images.device)
        return low + (high - low) * drawn

    side = uniform(smallest, largest).sqrt()
    room = 1 - side + beyond
    across, down = uniform(-room, room), uniform(-room, room)
    mirror = 1 - 2 * (uniform(0.0, 1.0) < 0.5).float()
    zero = torch.zeros_like(side)
    rows = [torch.stack([side * mirror, zero, across], 1), torch.stack([zero, side, down], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
