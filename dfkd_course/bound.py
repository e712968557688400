"""Checks assignment 5: how tight is the bound (Eqs. 18 to 22)?"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_lab.trained import trained_student, trained_teacher
from dfkd_lite.data import load
from dfkd_lite.lipschitz import LayerBounds, network_bound
from dfkd_lite.networks import FromPixels, WideResNet
from dfkd_lite.presets import preset

from .checking import Question, Wrong, drawn, expect, require
from .norms import (  # noqa: F401 (masters and students find all questions here)
    compare_conv_norm,
    compare_large,
    compare_matrix,
    compare_transposed,
    drawn_conv,
    exact_norm,
    matrix_with,
    q1,
    q2,
    q3,
    transposed,
)

# ---------------------------------------------------------------------- 4. batch-norms and chains


class Residual(NamedTuple):
    """Holds a residual block: two chains with the same input, whose outputs are added.

    Both hold numbers, and blocks like this one; ``shortcut`` is empty where the input is added as
    it is.
    """

    branch: Sequence[float | Residual]
    shortcut: Sequence[float | Residual] = []  # one list for all: nobody changes it


#: A layer's Lipschitz constant, or a block.
Step = float | Residual


@Question
def q4(
    batch_norm_norm: Callable[[nn.BatchNorm2d], float],
    chain_norm: Callable[[Sequence[Step]], float],
) -> None:
    """Check the constants of a batch-norm and of chains of layers."""
    gamma, variance = torch.tensor([0.5, -3.0, 2.0, 1.0]), torch.tensor([0.04, 0.3, 4.0, 0.25])
    compare_batch_norm(batch_norm_norm, gamma, variance, eps=0.1)
    compare_chain(chain_norm, [2.0, 0.5, 3.0])
    compare_chain(chain_norm, [2.0, Residual([0.5, 3.0]), 4.0])
    compare_chain(chain_norm, [2.0, Residual([0.5, 3.0], [1.5, 0.2]), 4.0])


def compare_batch_norm(
    answer: Callable[[nn.BatchNorm2d], float], gamma: Tensor, variance: Tensor, eps: float
) -> None:
    """Compare the constant of a batch-norm with these weights and stored variances (C,)."""
    bn = nn.BatchNorm2d(len(gamma), eps=eps).requires_grad_(False)
    bn.weight.copy_(gamma)
    bn.running_var.copy_(variance)  # type: ignore[union-attr]
    each = gamma.abs() / (variance + eps).sqrt()
    expect(
        answer(bn.eval()),
        each.max(),
        "the Lipschitz constant of a batch-norm",
        {
            "no root of the variance": (gamma.abs() / (variance + eps)).max(),
            "no ε": (gamma.abs() / variance.sqrt()).max(),
            "ε outside of the root": (gamma.abs() / (variance.sqrt() + eps)).max(),
            "γ and not |γ|": (gamma / (variance + eps).sqrt()).max(),
            "the mean over the channels": each.mean(),
            "the product of the channels": each.prod(),
            "one number for each channel": each,
            "|γ| alone, as in training mode, where a batch has the variance 1 after division": (
                gamma.abs().max()
            ),
            "the largest |γ| over the smallest root, of different channels": (
                gamma.abs().max() / (variance + eps).sqrt().min()
            ),
        },
    )


def compare_chain(answer: Callable[[Sequence[Step]], float], steps: Sequence[Step]) -> None:
    """Compare the constant of a chain of numbers and blocks."""
    known: dict[str, Tensor | float] = {
        "the sum of the constants for their product": _chain(steps, sum, lambda b, s: b + s),
        "a block's branch alone, without the 1 (or what the shortcut has)": (
            _chain(steps, math.prod, lambda branch, shortcut: branch)
        ),
        "branch and shortcut multiplied: they are added": (
            _chain(steps, math.prod, lambda branch, shortcut: branch * shortcut)
        ),
        "the larger of branch and shortcut": _chain(steps, math.prod, max),
        "1 for every shortcut, also for one that has layers": (
            _chain(steps, math.prod, lambda branch, shortcut: branch + 1)
        ),
        "0 for a shortcut without layers: that one is the identity": (
            _chain(steps, math.prod, lambda b, s: b + s * (s != 1))
        ),
        "the largest constant of the chain": _chain(steps, max, lambda b, s: b + s),
    }
    expect(answer(list(steps)), chain_norm(steps), f"the constant of {_said(steps)}", known)


def chain_norm(steps: Sequence[Step]) -> float:
    """Answer question 4, for comparison: the Lipschitz constant of a chain."""
    return _chain(steps, math.prod, lambda branch, shortcut: branch + shortcut)


def _chain(
    steps: Sequence[Step],
    follow: Callable[[list[float]], float],
    join: Callable[[float, float], float],
) -> float:
    """Combine the constants of a chain by ``follow``, and those of a block by ``join``."""
    found = [
        join(_chain(step.branch, follow, join), _chain(step.shortcut, follow, join))
        if isinstance(step, Residual)
        else step
        for step in steps
    ]
    return float(follow(found)) if found else 1.0


def _said(steps: Sequence[Step]) -> str:
    """Write a chain as a message shows it."""
    said = [
        f"Residual({_said(step.branch)}, {_said(step.shortcut)})"
        if isinstance(step, Residual)
        else f"{step:.3g}"
        for step in steps
    ]
    return f"[{', '.join(said)}]"


def steps_of(bounds: LayerBounds) -> list[Step]:
    """Turn what the package has found of a network's layers into a chain."""
    return [
        Residual(
            [part.norm for part in factor.parts if "shortcut" not in part.name],
            [part.norm for part in factor.parts if "shortcut" in part.name],
        )
        if factor.parts
        else factor.norm
        for factor in bounds.factors
    ]


def _bounds(
    network: nn.Module, shape: tuple[int, int, int], std: Sequence[float] = ()
) -> LayerBounds:
    """Compute the package's bound on one thread: two slow each other down on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return network_bound(network, shape, std)
    finally:
        torch.set_num_threads(threads)


def compare_network(answer: Callable[[Sequence[Step]], float]) -> None:
    """Compare the bound of a residual network's layers with the package's bound."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bounds = _bounds(WideResNet(10, 1, channels=1).eval(), (1, 8, 8))
    expect(answer(steps_of(bounds)), bounds.bound, "the bound of a WRN-10-1")


# --------------------------------------------------------------------- 5. both sides of Eq. 21


def small_network(shape: tuple[int, int, int], classes: int, seed: int) -> nn.Module:
    """Make a network with a batch-norm that has seen images, left in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(shape[0], 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
            nn.Linear(4 * shape[1] * shape[2], classes),
        )  # fmt: skip
        network(2 * torch.randn(16, *shape) + 1)
    return network.train()


def linear(matrix: Tensor) -> nn.Module:
    """Make the network x -> matrix x, for images (B, C, H, W) or vectors (B, D)."""
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    layer.weight.data = matrix.detach().clone()
    return nn.Sequential(nn.Flatten(), layer)


@torch.no_grad()
def left_side(student: nn.Module, teacher: nn.Module, images: Tensor) -> Tensor:
    """Answer question 5, first part, for the second: the left side of Eq. 21 of each image (B,)."""
    return (student.eval()(images) - teacher.eval()(images)).norm(dim=1)


@torch.no_grad()
def right_side(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    images_star: Tensor,
    lip_student: float,
    lip_teacher: float,
) -> float:
    """Answer question 5, second part, to look at question 6's: the right side of Eq. 21."""
    C = left_side(student, teacher, images_star).max()
    delta = (images - images_star).flatten(1).norm(dim=1).max()
    return (C + (lip_student + lip_teacher) * delta).item()


def _case(
    shape: tuple[int, int, int], classes: int, batch: int, seed: int
) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """Make a student, a teacher, images of G and of G*; C and δ belong to different images."""
    student, teacher = (small_network(shape, classes, seed + i) for i in (2, 3))
    images_star = drawn(batch, *shape, seed=seed)
    far = left_side(student, teacher, images_star).argmax()
    scale = torch.linspace(0.5, 1.5, batch).index_fill(0, far, 0.2).view(-1, 1, 1, 1)
    images = images_star + scale * drawn(batch, *shape, seed=seed + 1)
    return student.train(), teacher.train(), images, images_star


@Question
def q5(left_side: Callable[..., Tensor], right_side: Callable[..., float]) -> None:
    """Check both sides of Eq. 21."""
    compare_left(left_side, (2, 4, 5), classes=3, batch=6, seed=10)
    compare_right(right_side, (2, 4, 5), classes=3, batch=6, seed=20)


def compare_left(
    answer: Callable[..., Tensor], shape: tuple[int, int, int], classes: int, batch: int, seed: int
) -> None:
    """Compare ‖S(G(z)) − T(G(z))‖ of each image."""
    student, teacher, images, _ = _case(shape, classes, batch, seed)
    with torch.no_grad():
        training = copy.deepcopy(student)(images) - copy.deepcopy(teacher)(images)
        got = answer(copy.deepcopy(student), copy.deepcopy(teacher), images.clone())
        wanted = left_side(student, teacher, images)
        difference = student(images) - teacher(images)
    expect(
        got,
        wanted,
        "the left side of Eq. 21",
        {
            "networks in training mode, where the images of a batch change each other's logits": (
                training.norm(dim=1)
            ),
            "one norm over the whole batch": difference.norm(),
            "one norm for each class, not for each image": difference.norm(dim=0),
            "the mean over the batch": wanted.mean(),
            "the largest alone": wanted.max(),
            "the squared norms": wanted.square(),
            "the sum of the absolute differences": difference.abs().sum(dim=1),
        },
    )


def compare_right(
    answer: Callable[..., float], shape: tuple[int, int, int], classes: int, batch: int, seed: int
) -> None:
    """Compare C + (‖S‖ + ‖T‖) δ, with made-up Lipschitz constants."""
    student, teacher, images, images_star = _case(shape, classes, batch, seed)
    s, t = 1.7, 0.6
    with torch.no_grad():
        training = copy.deepcopy(student)(images_star) - copy.deepcopy(teacher)(images_star)
        got = answer(
            copy.deepcopy(student), copy.deepcopy(teacher), images.clone(), images_star.clone(),
            s, t,
        )  # fmt: skip
    each = left_side(student, teacher, images_star)
    moved = images - images_star
    apart = moved.flatten(1).norm(dim=1)
    C, delta = each.max(), apart.max()
    known: dict[str, Tensor | float] = {
        "the mean of ‖S(G*(z)) − T(G*(z))‖, which some z exceed": each.mean() + (s + t) * delta,
        "the mean of ‖G(z) − G*(z)‖, which some z exceed": C + (s + t) * apart.mean(),
        "means, which some z exceed": each.mean() + (s + t) * apart.mean(),
        "one norm of G(z) − G*(z) over the whole batch": C + (s + t) * moved.norm(),
        "a norm over the channels of each pixel, not over an image": (
            C + (s + t) * moved.norm(dim=1).max()
        ),
        "one norm of the logits over the whole batch": each.norm() + (s + t) * delta,
        "C on the images of G: it belongs to G*": (
            left_side(student, teacher, images).max() + (s + t) * delta
        ),
        "networks in training mode": training.norm(dim=1).max() + (s + t) * delta,
        "no C": (s + t) * delta,
        "no brackets: C + ‖S‖ + ‖T‖ · δ": C + s + t * delta,
        "the student's constant alone": C + s * delta,
        "the teacher's constant alone": C + t * delta,
        "the product of the two constants": C + s * t * delta,
        "a value for each z, not the largest": each + (s + t) * apart,
        "the largest sum for one z: C and δ are each the largest, of different z perhaps": (
            (each + (s + t) * apart).max()
        ),
    }
    expect(got, C + (s + t) * delta, "the right side of Eq. 21", known)


def check_bound(answer: Callable[..., float]) -> None:
    """Check on linear networks, whose constants are exact, that no left side exceeds the right one.

    Both are equal where S(x) − S(x*), S(x*) − T(x*) and T(x*) − T(x) point the same way.
    """
    for seed in range(5):
        matrices = [drawn(3, 8, seed=seed + i) for i in (0, 10)]
        star = drawn(32, 2, 2, 2, seed=seed + 20)
        images = star + 0.1 * drawn(32, 2, 2, 2, seed=seed + 30)
        left, right = _sides(answer, matrices, images, star)
        require(left <= right * (1 + 1e-5), f"{left:.4g} is above {right:.4g}: that is no bound.")
    matrices = aligned(1.5, 2.0, 8, 3)
    along = torch.eye(8)[:1].view(1, 2, 2, 2)
    star = torch.tensor([0.2, 1.0, 0.5]).view(3, 1, 1, 1) * along
    images = star + torch.tensor([0.1, 2.0, 0.4]).view(3, 1, 1, 1) * along
    left, right = _sides(answer, matrices, images, star)
    expect(right, left, "the right side where it equals the largest left side")


def aligned(s: float, t: float, pixels: int, classes: int) -> list[Tensor]:
    """Make matrices of the norms s and t that move one logit, by one pixel, in opposite senses."""
    corner = torch.zeros(classes, pixels)
    corner[0, 0] = 1
    return [s * corner, -t * corner]


def _sides(
    answer: Callable[..., float], matrices: list[Tensor], images: Tensor, images_star: Tensor
) -> tuple[float, float]:
    """Return the largest left side, and the answer for the right one."""
    networks = [linear(matrix) for matrix in matrices]
    norms = [exact_norm(matrix) for matrix in matrices]
    left = left_side(networks[0], networks[1], images).max().item()
    with torch.no_grad():
        right = answer(*networks, images.clone(), images_star.clone(), *norms)
    return left, float(right)


# ------------------------------------------------------------------------------ 6. a tight case


@Question
def q6(tight_case: Callable[..., Any]) -> None:
    """Check a case in which both sides of Eq. 21 are equal."""
    compare_tight(tight_case, lip_student=3.0, lip_teacher=2.0, delta=0.7, C=1.5)


def compare_tight(
    answer: Callable[..., Any],
    lip_student: float,
    lip_teacher: float,
    delta: float,
    C: float,
    pixels: int = 6,
    classes: int = 4,
) -> None:
    """Check that a case has the norms and distances asked for, and that both sides agree."""
    got = answer(lip_student, lip_teacher, delta, C, pixels, classes)
    if got is None:
        raise Wrong("`tight_case`: nothing came back. Is there a `return`?")
    require(
        isinstance(got, tuple | list) and len(got) == 4 and all(isinstance(p, Tensor) for p in got),
        "`tight_case`: four tensors were expected: S, T, x*, x.",
    )
    shapes = [(classes, pixels), (classes, pixels), (pixels,), (pixels,)]
    for name, part, shape in zip(("S", "T", "x*", "x"), got, shapes, strict=True):
        require(part.shape == shape, f"{name} has the shape {tuple(part.shape)}, not {shape}.")
        require(bool(part.isfinite().all()), f"{name} has values that are not finite.")
    S, T, x_star, x = (part.detach().double() for part in got)
    norms = {"S": (S, lip_student), "T": (T, lip_teacher)}
    for name, (matrix, norm) in norms.items():
        expect(exact_norm(matrix), norm, f"the spectral norm of {name}")
    shift = x - x_star
    expect(
        shift.norm(),
        delta,
        "‖x − x*‖",
        {"x = δ u, where x = x* + δ u was meant": abs(delta - C / (lip_student + lip_teacher))},
    )
    for name, (matrix, norm) in norms.items():
        require(
            (matrix @ shift).norm().item() > (1 - 1e-4) * norm * delta,
            f"{name} moves by {(matrix @ shift).norm():.4g} from x* to x, its constant allows "
            f"{norm * delta:.4g}: x − x* does not point where {name} stretches most.",
        )
    together = F.cosine_similarity(S @ shift, T @ shift, dim=0).item()
    require(
        together < 1 - 1e-4,
        "S and T move the same way from x* to x: their moves cancel, they do not add.",
    )
    require(
        together < -1 + 1e-4,
        "S and T do not move in opposite senses from x* to x: lengths add only along one line.",
    )
    found = ((S - T) @ x_star).norm()
    expect(found, C, "‖S x* − T x*‖", {"a black x*, where the networks agree": 0.0})
    expect(
        ((S - T) @ x).norm(),
        C + (lip_student + lip_teacher) * delta,
        "the left side of Eq. 21",
        {"a shift that undoes the difference on x*": abs(C - (lip_student + lip_teacher) * delta)},
    )


# ------------------------------------------------------------------------------- trained networks


@dataclass(frozen=True)
class Trained:
    """Holds a trained pair, images of two generators, and the constants of the networks' layers."""

    student: nn.Module
    teacher: nn.Module
    images: Tensor
    images_star: Tensor
    student_steps: list[Step]
    teacher_steps: list[Step]


@torch.no_grad()
def trained(latents: int = 128) -> Trained:
    """Load chapter 9's networks on the digits; G* is the generator with disturbed weights."""
    data, settings = load("digits"), preset("lite")
    teacher, spec = trained_teacher(data, settings, 0)
    student, generator = trained_student(data, settings, 0)
    star, rng = copy.deepcopy(generator), torch.Generator().manual_seed(0)
    for weight in star.parameters():
        weight.add_(0.2 * weight.abs().mean() * torch.randn(weight.shape, generator=rng))
    z = torch.randn(latents, generator.config.z_dim, generator=rng)
    steps = [steps_of(_bounds(n, spec.image_shape, spec.std)) for n in (student, teacher)]
    return Trained(
        FromPixels(student, spec), FromPixels(teacher, spec),
        generator.eval()(z), star.eval()(z), *steps,
    )  # fmt: skip
