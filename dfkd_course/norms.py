"""Checks questions 1 to 3 of assignment 5: spectral norms of a matrix and of a convolution."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checking import Question, Wrong, drawn, expect, require

#: Takes a convolution, the images' (H, W) and a number of steps; returns the norm that it finds.
ConvNorm = Callable[[nn.Conv2d, tuple[int, int], int], float]


def _seeded(answer: Callable[..., Any], *arguments: Any) -> Any:
    """Call an answer, which may draw numbers, with the same seed each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return answer(*arguments)


# --------------------------------------------------------------------- 1. the norm of a matrix


@Question
def q1(spectral_norm: Callable[[Tensor, int], float]) -> None:
    """Check the spectral norm of a matrix by power iteration."""
    compare_matrix(spectral_norm, matrix_with(20, torch.linspace(3, 2, 12)))


def matrix_with(rows: int, singular_values: Tensor, seed: int = 0) -> Tensor:
    """Make a matrix with these singular values, and with no fewer rows than there are of them."""
    columns = len(singular_values)
    left, _ = torch.linalg.qr(drawn(rows, columns, seed=seed))
    right, _ = torch.linalg.qr(drawn(columns, columns, seed=seed + 1))
    return left * singular_values @ right.T


def compare_matrix(
    answer: Callable[[Tensor, int], float], matrix: Tensor, iterations: int = 200
) -> None:
    """Compare a norm with the singular value decomposition; one step must not be enough."""
    exact = exact_norm(matrix)
    what = "the spectral norm of a {} x {} matrix".format(*matrix.shape)
    known: dict[str, Tensor | float] = {
        "the Frobenius norm, the root of the sum of all squared entries": matrix.norm(),
        "the largest eigenvalue of AᵀA; the norm is its root": exact**2,
        "the largest entry": matrix.abs().max(),
    }
    got = _seeded(answer, matrix.clone(), iterations)
    _expect_estimate(got, exact, what, known, rtol=1e-3)
    _require_steps(_seeded(answer, matrix.clone(), 1), exact, what)


def exact_norm(matrix: Tensor) -> float:
    """Compute the spectral norm of a matrix from its singular values, in double precision."""
    return torch.linalg.matrix_norm(matrix.double(), 2).item()


def _expect_estimate(
    got: Any, exact: float, what: str, known: dict[str, Tensor | float], rtol: float
) -> None:
    """Call :func:`expect`; add what a wrong estimate says about the power iteration."""
    try:
        expect(got, exact, what, known, rtol=rtol)
    except Wrong as wrong:
        hint = ""
        if "not finite" in str(wrong):
            hint = " Is the vector divided by its norm in every step?"
        elif "was expected, not" in str(wrong):
            hint = (
                " Every step raises the estimate, from below: are there as many as `iterations`?"
                if float(got) < exact
                else " No vector is stretched so much: is it divided by its norm in every step?"
            )
        raise Wrong(f"{wrong}{hint}") from None


def _require_steps(after_one: Any, exact: float, what: str) -> None:
    """Require that one step leaves the estimate clearly below the exact norm."""
    require(
        float(after_one) < 0.98 * exact,
        f"{what}: with `iterations = 1` it is right already, and by power iteration it cannot be. "
        "Is `iterations` used?",
    )


# ------------------------------------------------------------ 2. and 3. the norm of a convolution


def drawn_conv(
    channels: tuple[int, int], kernel: Any, stride: Any = 1, padding: Any = 0, seed: int = 0
) -> nn.Conv2d:
    """Draw a convolution from so many channels to so many; its bias shows when it is used."""
    conv = nn.Conv2d(*channels, kernel, stride, padding).requires_grad_(False)
    conv.weight.copy_(drawn(*conv.weight.shape, seed=seed))
    conv.bias.copy_(3 + drawn(channels[1], seed=seed + 1))  # type: ignore[union-attr]
    return conv


def matrix_of(conv: nn.Conv2d, size: tuple[int, int]) -> Tensor:
    """Return a convolution without its bias as a matrix, from the input's numbers to the output's.

    It is built from the outputs for all unit vectors, in double precision.
    """
    width = conv.in_channels * math.prod(size)
    unit = torch.eye(width, dtype=torch.float64).view(width, conv.in_channels, *size)
    weight = conv.weight.detach().double()
    return F.conv2d(unit, weight, None, conv.stride, conv.padding).flatten(1).T


def output_shape(conv: nn.Conv2d, size: tuple[int, int]) -> tuple[int, ...]:
    """Return the shape (K, H', W') that the convolution makes of images of ``size``."""
    return tuple(conv(torch.zeros(1, conv.in_channels, *size)).shape[1:])


def transposed(conv: nn.Conv2d, y: Tensor, size: tuple[int, int]) -> Tensor:
    """Answer question 2, for the question after it: apply a convolution's transpose to ``y``.

    Raises:
        Wrong: ``y`` is not of the shape that the convolution makes of images of ``size``.
    """
    made, shape = output_shape(conv, size), tuple(y.shape[-3:])
    require(
        shape == made,
        f"`y` has the shape {shape}, but this convolution makes {made} of images of {size}: "
        "does `F.conv2d` get the stride and the padding?",
    )
    padding = [int(p) for p in conv.padding]
    sides = zip(size, padding, conv.kernel_size, conv.stride, strict=True)
    extra = [(n + 2 * p - k) % s for n, p, k, s in sides]
    return F.conv_transpose2d(y, conv.weight, None, conv.stride, padding, extra)


@Question
def q2(transposed: Callable[[nn.Conv2d, Tensor, tuple[int, int]], Tensor]) -> None:
    """Check the transpose of a convolution."""
    compare_transposed(transposed, drawn_conv((2, 3), 3, padding=1), (4, 5))
    compare_transposed(transposed, drawn_conv((2, 3), 3, stride=2, padding=1), (6, 5))


def compare_transposed(
    answer: Callable[[nn.Conv2d, Tensor, tuple[int, int]], Tensor],
    conv: nn.Conv2d,
    size: tuple[int, int],
) -> None:
    """Compare an answer with the transpose of the convolution's matrix."""
    y = drawn(2, *output_shape(conv, size), seed=5)
    wanted = (y.double().flatten(1) @ matrix_of(conv, size)).view(2, conv.in_channels, *size)
    what = (
        f"the transpose of a convolution with the kernel {conv.kernel_size}, "
        f"stride {conv.stride} and padding {conv.padding}, for {size}"
    )
    weight, stride, padding = conv.weight, conv.stride, [int(p) for p in conv.padding]
    short = F.conv_transpose2d(y, weight, None, stride, padding)
    missing = [n - m for n, m in zip(size, short.shape[-2:], strict=True)]
    known: dict[str, Tensor | float] = {
        "no `output_padding`: rows or columns that the stride left over are missing": short,
        "zeros put on, not `output_padding`": F.pad(short, (0, missing[1], 0, missing[0])),
        "the padding ignored": F.conv_transpose2d(y, weight, None, stride),
        "the stride ignored": F.conv_transpose2d(y, weight, None, 1, padding),
        "a convolution with the channels swapped, whose kernel would have to be turned as well": (
            F.conv2d(y, weight.transpose(0, 1), None, 1, padding)
        ),
    }
    try:
        got = answer(conv, y.clone(), size)
    except (RuntimeError, ValueError) as error:
        raise Wrong(
            f"{what}: {type(error).__name__}: {error}. `output_padding` is what is missing to "
            "the size of the input, less than the stride."
        ) from None
    expect(got, wanted, what, known)


@Question
def q3(conv_norm: ConvNorm) -> None:
    """Check the spectral norm of a convolution."""
    compare_conv_norm(conv_norm, drawn_conv((2, 3), 3, padding=1), (6, 5))
    compare_conv_norm(conv_norm, drawn_conv((2, 3), 3, stride=2, padding=1), (6, 5))


def compare_conv_norm(
    answer: ConvNorm, conv: nn.Conv2d, size: tuple[int, int], iterations: int = 200
) -> None:
    """Compare a norm with the one of the convolution's matrix for images of this size."""
    matrix = matrix_of(conv, size)
    exact = exact_norm(matrix)
    what = f"the norm of a convolution with stride {conv.stride} and padding {conv.padding}"
    known: dict[str, Tensor | float] = {
        "the kernel reshaped to a matrix": exact_norm(conv.weight.flatten(1)),
        "the Frobenius norm of the kernel": conv.weight.norm(),
        "the Frobenius norm of the convolution": matrix.norm(),
        "the largest eigenvalue of AᵀA; the norm is its root": exact**2,
        "the stride ignored": exact_norm(matrix_of(_changed(conv, stride=(1, 1)), size)),
        "the padding ignored": exact_norm(matrix_of(_changed(conv, padding=(0, 0)), size)),
        "stride and padding ignored": exact_norm(
            matrix_of(_changed(conv, stride=(1, 1), padding=(0, 0)), size)
        ),
        "the bias added, which does not stretch anything": _with_bias(conv, size, iterations),
    }
    _expect_estimate(_seeded(answer, conv, size, iterations), exact, what, known, rtol=2e-3)
    _require_steps(_seeded(answer, conv, size, 1), exact, what)


def _changed(conv: nn.Conv2d, **settings: tuple[int, int]) -> nn.Conv2d:
    other = copy.deepcopy(conv)
    for name, value in settings.items():
        setattr(other, name, value)
    return other


def _with_bias(conv: nn.Conv2d, size: tuple[int, int], iterations: int) -> float:
    """Run a power iteration in which the bias is not left out."""
    x = drawn(1, conv.in_channels, *size, seed=0)
    for _ in range(iterations):
        y = conv(x / x.norm())
        x = transposed(conv, y, size)
    return y.norm().item()


def compare_large(answer: ConvNorm, size: tuple[int, int], iterations: int = 300) -> None:
    """Compare a norm without a matrix. The kernel is a channel matrix times a 3 x 3 box of ones.

    A box of ones on a row of n zero-padded pixels is a matrix with ones on three diagonals, whose
    norm is 1 + 2 cos(π / (n + 1)); norms of such (Kronecker) products multiply.
    """
    channels = drawn(4, 4, seed=2)
    conv = drawn_conv((4, 4), 3, padding=1)
    conv.weight.copy_(channels[:, :, None, None].expand(4, 4, 3, 3))
    exact = exact_norm(channels) * math.prod(1 + 2 * math.cos(math.pi / (n + 1)) for n in size)
    what = f"the norm of a convolution on images of {size}"
    _expect_estimate(_seeded(answer, conv, size, iterations), exact, what, {}, rtol=1e-2)
