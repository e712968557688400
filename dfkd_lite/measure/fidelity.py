"""Compare synthetic images with real ones: how like them they are, how many kinds they cover.

This needs real images, so it is for those who compare methods. With only a teacher, use ``signs``.
Images are compared by the teacher's features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..data import AnySplit
from ..devices import exact, full
from ..errors import InputError, check_range
from ..networks import Layers, capture, evaluating

BATCH = 64  # images of each kind that are compared at once
DRAWS = 50  # batches over which the measures are averaged
IMAGES = 1000  # of each kind, at most, from which the batches are drawn
NEIGHBOURS = 5  # Naeem et al. 2020


def fidelity(real: Tensor, made: Tensor, neighbours: int = NEIGHBOURS) -> dict[str, float]:
    """Return four shares for features real (N, d) and made (M, d), from balls around them.

    The ball around a point reaches to its ``neighbours``-th nearest neighbour of the same kind.

    Returns:
        ``precision``: made points in any real ball; ``recall``: real points in any made ball (both
        Kynkaanniemi et al. 2019); ``density``: the mean number of real balls around a made point,
        divided by ``neighbours``, which can exceed 1; ``coverage``: real balls that hold a made
        point (both Naeem et al. 2020).

    Raises:
        InputError: a kind has no more points than ``neighbours``, or the features do not fit.
    """
    check_range("neighbours", neighbours, 1)
    if real.ndim != 2 or made.ndim != 2 or real.shape[1] != made.shape[1]:
        raise InputError(
            f"Features must be (N, d) and (M, d), not {(*real.shape,)} and {(*made.shape,)}."
        )
    if min(len(real), len(made)) <= neighbours:
        raise InputError(
            f"{len(real)} real and {len(made)} synthetic images are too few for {neighbours} "
            "neighbours: give more images or ask for fewer neighbours."
        )
    real, made = exact(real), exact(made)
    apart = torch.cdist(real, made)  # (N, M)
    in_real = apart <= _radii(real, neighbours)[:, None]
    in_made = apart <= _radii(made, neighbours)[None]
    return {
        "precision": in_real.any(0).double().mean().item(),
        "recall": in_made.any(1).double().mean().item(),
        "density": in_real.sum(0).double().mean().item() / neighbours,
        "coverage": in_real.any(1).double().mean().item(),
    }


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """Return the distance of each point to its k-th nearest other."""
    apart = torch.cdist(points, points).fill_diagonal_(0)  # itself comes first
    return apart.kthvalue(neighbours + 1, dim=1).values


def image_report(
    teacher: nn.Module,
    layers: Layers,
    real: AnySplit,
    made: Tensor,
    normalise: Callable[[Tensor], Tensor],
    seed: int = 0,
) -> dict[str, float]:
    """Return :func:`fidelity` of synthetic images (M, C, H, W) in [0, 1] to those of ``real``.

    It is a mean over :data:`DRAWS` draws of :data:`BATCH` images of each kind. The number is fixed
    because more images cover more: so a small pool can be compared with all images of a method. The
    features are the teacher's last stage, averaged over positions. With fewer images it is empty.
    """
    if min(len(made), len(real)) < BATCH:
        return {}
    rng = torch.Generator().manual_seed(seed)
    images, _ = next(real.batches(min(IMAGES, len(real)), rng, made.device))
    kinds = [
        _features(teacher, layers, normalise(x)).cpu() for x in (images, _drawn(made, IMAGES, rng))
    ]
    reports = []
    for _ in range(DRAWS):
        theirs, ours = (_drawn(kind, BATCH, rng) for kind in kinds)
        reports.append(fidelity(theirs, ours))
    return {name: sum(r[name] for r in reports) / DRAWS for name in reports[0]}


def _drawn(rows: Tensor, count: int, rng: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=rng)[:count].to(rows.device)]


@torch.no_grad()
def _features(model: nn.Module, layers: Layers, images: Tensor) -> Tensor:
    last, found = layers.stages[-1], []
    with evaluating(model), capture(model, [last]) as features:
        for batch in images.split(128):
            model(batch)
            found.append(full(features[last]).mean((2, 3)))
    return torch.cat(found)
