"""Contrastive diversity (CMI): new images should differ from each other and from earlier ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..devices import full, placed
from ..networks import batch_norms
from .base import Problem


class Contrast:
    """The contrastive loss, its head and optimiser, and the bank of features of earlier images.

    ``config`` has ``contrast_temperature``, ``bank_size``, ``negatives``, ``head``, ``shift`` and
    ``flip``. The bank stores pairs: the teacher's features of an image's local and global view.
    """

    def __init__(self, problem: Problem, config: Any, lr: float) -> None:
        self.problem, self.config = problem, config
        blank = torch.zeros(2, *problem.spec.image_shape, device=problem.device)
        with torch.no_grad():
            width = self.seen(blank).shape[1]
        head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.head))
        self.head = placed(head, problem.device)
        self.optimiser = torch.optim.Adam(self.head.parameters(), lr)
        self.bank = torch.empty(0, 2, width, device=problem.device)
        self.newest = self.bank  # the pairs of the images that the loss saw last

    def global_view(self, images: Tensor) -> Tensor:
        """Shift each image by up to ``shift`` pixels, and with ``flip`` mirror it half the time."""
        return self.problem.augmented(images, self.config.shift, self.config.flip)

    def loss(self, images: Tensor, whole: list[Tensor] | None = None) -> Tensor:
        """Return InfoNCE, a scalar, for images (B, C, H, W) in [0, 1]: the local view of each must
        find its global view among those of the batch and of the bank, and so must those in the
        bank. ``whole``: the batch-norm inputs of the global view, if the teacher has seen it."""
        local = self.seen(local_view(images, self.problem.rng, self.config.flip))
        whole_seen = self.seen(self.global_view(images)) if whole is None else pooled(whole)
        self.newest = torch.stack([local, whole_seen], 1).detach()
        old = self._drawn()
        queries = self.head(torch.cat([local, old[:, 0]]))
        keys = self.head(torch.cat([whole_seen, old[:, 1]])).detach()
        each = info_nce(queries, keys, self.config.contrast_temperature)
        new, banked = each.split([len(local), len(old)])
        return new.mean() + banked.mean() if len(old) else new.mean()

    def remember(self, pairs: Tensor) -> None:
        """Put pairs of features (B, 2, d) into the bank; they replace the oldest."""
        self.bank = torch.cat([self.bank, pairs])[-self.config.bank_size :]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps besides the head's weights."""
        return {"optimiser": self.optimiser.state_dict(), "bank": self.bank}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from :meth:`state_dict`."""
        self.optimiser.load_state_dict(state["optimiser"])
        self.bank = state["bank"].to(self.problem.device)

    def seen(self, images: Tensor) -> Tensor:
        """Return the teacher's features (B, d): spatial means of the inputs of all batch-norms."""
        with batch_norm_inputs(self.problem.teacher) as inputs:
            self.problem.teacher(self.problem.normalise(images))
        return pooled(inputs)

    def _drawn(self) -> Tensor:
        count = min(self.config.negatives, len(self.bank))
        order = torch.randperm(len(self.bank), generator=self.problem.rng, device=self.bank.device)
        return self.bank[order[:count]]


def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Return -log softmax of each query's similarity to its own key among all keys, (N,). Queries
    and keys (N, d) are first scaled to norm 1 (van den Oord et al. 2018)."""
    queries, keys = (F.normalize(full(x), dim=1) for x in (queries, keys))
    own = torch.arange(len(queries), device=queries.device)
    return F.cross_entropy(queries @ keys.T / temperature, own, reduction="none")


def pooled(maps: list[Tensor]) -> Tensor:
    """Join the spatial means of maps (B, C_l, H_l, W_l) side by side: (B, sum of C_l)."""
    return torch.cat([full(x).mean((2, 3)) for x in maps], dim=1)


@contextmanager
def batch_norm_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Give a list to which each forward pass in the block adds the inputs of all batch-norms."""
    inputs: list[Tensor] = []
    with ExitStack() as hooks:
        for bn in batch_norms(model).values():
            hooks.enter_context(bn.register_forward_pre_hook(lambda _, x: inputs.append(x[0])))
        yield inputs


def local_view(images: Tensor, rng: torch.Generator, flip: bool) -> Tensor:
    """Cut a random square of 1/4 to all of each image's area, enlarge it, and with ``flip`` mirror
    it half the time; with gradient to the images (B, C, H, W)."""

    def uniform(low: Tensor | float, high: Tensor | float) -> Tensor:
        drawn = torch.rand(len(images), generator=rng, device=images.device)
        return low + (high - low) * drawn

    side = uniform(0.25, 1.0).sqrt()  # coordinates run from -1 to 1
    across, down = uniform(side - 1, 1 - side), uniform(side - 1, 1 - side)
    mirror = 1 - 2 * (uniform(0.0, 1.0) < 0.5).float() if flip else torch.ones_like(side)
    zero = torch.zeros_like(side)
    rows = [torch.stack([side * mirror, zero, across], 1), torch.stack([zero, side, down], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
