"""The error bound in numbers: both sides of Eqs. 18 to 22 for two networks and two generators.

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
    """Both sides of Eqs. 21 and 22 on a sample of z; ``C`` and ``delta`` are sampled maxima.

    ``lhs`` (B,) is ||S(G(z)) - T(G(z))|| for each z, ``rhs`` what Eq. 21 says it cannot exceed;
    ``lkd`` is the estimate of Eq. 18 and ``lkd_bound`` what Eq. 22 says it cannot exceed.
    """

    C: float
    delta: float
    lhs: Tensor
    rhs: float
    lkd: float
    lkd_bound: float


def generator_distance(generator: Network, generator_star: Network, z: Tensor) -> float:
    """The largest ||G(z) - G*(z)|| among the z given: a sampled delta(G, G*) of Eq. 19.

    The supremum over all z can only be larger. Modules are put in evaluation mode meanwhile: in
    training mode batch-norm makes an image depend on the other z of the batch.

    Args:
        generator: z (B, ...) -> images (B, C, H, W).
        generator_star: the same for G*.
        z: at least one.

    Raises:
        InputError: no z; images of different shapes.
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
    """Both sides of Eqs. 21 and 22 for a student, a teacher and two generators.

    With true Lipschitz constants (or upper bounds) the inequalities hold on every sample, since C
    and delta are the maxima over the same z. With sampled lower bounds they may fail.

    Args:
        student: images (B, C, H, W) as the generators make them -> logits (B, K); a function that
            normalises itself where the generators make pixels in [0, 1].
        teacher: the same for T.
        generator: z (B, ...) -> images.
        generator_star: the same for G*, the generator to compare with.
        z: at least one, drawn from rho.
        lipschitz_student: of S as given here, 0 or more (with its normalisation:
            ``network_bound(..., std=...)``).
        lipschitz_teacher: the same for T.

    Raises:
        InputError: no z; outputs of different shapes; a negative Lipschitz constant.
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
