"""Both sides of Eqs. 18 to 22, the error bound, for two networks and two generators.

Built in chapter 9.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import kd
from .errors import InputError, check_range
from .networks import evaluating
from .spectral import Network


@dataclass(frozen=True)
class BoundTerms:
    """Both sides of Eqs. 21 and 22 on a sample of z; ``C`` and ``delta`` are maxima over it.

    ``lhs`` (B,) is ||S(G(z)) - T(G(z))|| for each z, and ``rhs`` its upper bound by Eq. 21. ``lkd``
    is the estimate of Eq. 18, and ``lkd_bound`` its upper bound by Eq. 22.
    """

    C: float
    delta: float
    lhs: Tensor
    rhs: float
    lkd: float
    lkd_bound: float


def generator_distance(generator: Network, generator_star: Network, z: Tensor) -> float:
    """Return the largest ||G(z) - G*(z)|| over z (B, ...): a sampled delta(G, G*) of Eq. 19.

    The supremum over all z can only be larger. Modules run in evaluation mode: in training mode,
    batch-norm would make an image depend on the other z of the batch.

    Raises:
        InputError: there is no z, or the images (B, C, H, W) have different shapes.
    """
    return _image_distance(_run(generator, z), _run(generator_star, z))


def bound_terms(
    student: Network,
    teacher: Network,
    generator: Network,
    generator_star: Network,
    z: Tensor,
    lipschitz_student: float,
    lipschitz_teacher: float,
) -> BoundTerms:
    """Return both sides of Eqs. 21 and 22 for a student, a teacher and two generators.

    With true Lipschitz constants (or upper bounds) the inequalities hold on every sample, because C
    and delta are maxima over the same z. With sampled lower bounds they may fail.

    Args:
        student, teacher: images (B, C, H, W) as the generators make them -> logits (B, K). For
            pixels in [0, 1] give functions that normalise.
        generator, generator_star: z (B, ...) -> images; G*, the second, is compared with G.
        z: at least one, drawn from rho.
        lipschitz_student, lipschitz_teacher: the constants of S and T as given here, 0 or more;
            with normalisation, ``network_bound(..., std=...)``.

    Raises:
        InputError: there is no z, outputs have different shapes, or a constant is negative.
    """
    check_range("lipschitz_student", lipschitz_student, low=0)
    check_range("lipschitz_teacher", lipschitz_teacher, low=0)
    images, images_star = _run(generator, z), _run(generator_star, z)
    delta = _image_distance(images, images_star)
    star = kd.squared_distance(_run(student, images_star), _run(teacher, images_star), reduce=False)
    squared = kd.squared_distance(_run(student, images), _run(teacher, images), reduce=False)
    largest = star.max().sqrt().item()  # Eq. 20
    rhs = largest + (lipschitz_student + lipschitz_teacher) * delta
    return BoundTerms(largest, delta, squared.sqrt(), rhs, squared.mean().item(), rhs**2)


def _image_distance(images: Tensor, images_star: Tensor) -> float:
    if images.shape != images_star.shape or len(images) == 0:
        raise InputError(
            f"The generators made {tuple(images.shape)} and {tuple(images_star.shape)} from the "
            "same z: give at least one z and two generators of equal image size and channels."
        )
    return (images - images_star).flatten(1).norm(dim=1).max().item()


@torch.no_grad()
def _run(network: Network, batch: Tensor) -> Tensor:
    with evaluating(network):
        return network(batch)
