"""Measure whether a network gives away who was in its training data: the simplest attack."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

from ..devices import exact
from ..errors import InputError, check_range


@dataclass(frozen=True)
class MembershipAuc:
    """The area under the attack's ROC curve, and the ends of its 95 % bootstrap interval."""

    auc: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.auc:.3f} (95 %: {self.low:.3f} to {self.high:.3f})"


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy (N,) of each image, on the CPU, from logits (N, K) and labels."""
    return F.cross_entropy(exact(logits), labels.cpu(), reduction="none")


def membership_auc(
    member_losses: Tensor, other_losses: Tensor, resamples: int = 500, seed: int = 0
) -> MembershipAuc:
    """Run the loss-threshold attack (Yeom et al. 2018): "a small loss means it was trained on".

    The area is the chance that a random member has a smaller loss than a random other image: 0.5 is
    guessing, 1 gives every member away. The bootstrap resamples both groups ``resamples`` times.

    Args:
        member_losses: (N,) of images that were trained on.
        other_losses: (M,) of images of the same kind that were not.
        resamples: the number of bootstrap samples.
        seed: the seed of the bootstrap.

    Raises:
        InputError: a group is empty, or a loss is not finite.
    """
    check_range("resamples", resamples, 1)
    for group in (member_losses, other_losses):
        if group.ndim != 1 or not len(group) or not group.isfinite().all():
            raise InputError("Give finite losses for both groups, one per image.")
    rng = torch.Generator().manual_seed(seed)
    areas = [
        _area(_resampled(member_losses, rng), _resampled(other_losses, rng))
        for _ in range(resamples)
    ]
    low, high = torch.tensor(areas).quantile(torch.tensor([0.025, 0.975])).tolist()
    return MembershipAuc(_area(member_losses, other_losses), low, high)


def _area(members: Tensor, others: Tensor) -> float:
    """Return the area from the ranks of the members' losses (Mann and Whitney); ties count half."""
    ranks = rankdata(torch.cat([members, others]).cpu().numpy())
    n, m = len(members), len(others)
    return float(n * m + n * (n + 1) / 2 - ranks[:n].sum()) / (n * m)


def _resampled(values: Tensor, rng: torch.Generator) -> Tensor:
    return values[torch.randint(len(values), (len(values),), generator=rng)]
