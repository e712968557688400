"""Exact norms of single layers: the largest factor by which each can stretch a distance.

All norms are Euclidean, over all pixels of an image. A norm is the largest singular value of a
linear map, which is often too large to write down as a matrix; the last part finds it anyway.

Built in chapter 9.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .devices import exact
from .errors import InputError, check_range

#: A network, or any function of a batch whose rows do not mix.
Network = Callable[[Tensor], Tensor]


def linear_norm(weight: Tensor) -> float:
    """Return the largest singular value of a matrix (K, D): the Lipschitz constant of x -> W x + b.

    Raises:
        InputError: ``weight`` is not a matrix, or holds NaN or infinite values.
    """
    if weight.ndim != 2:
        raise InputError(f"A matrix is needed, not weights of shape {tuple(weight.shape)}.")
    return torch.linalg.matrix_norm(_finite(weight), 2).item()


def conv_norm(
    conv: nn.Conv2d, input_size: tuple[int, int], iterations: int = 2000, tol: float = 1e-8
) -> float:
    """Return the operator norm of a zero-padded (strided, grouped, dilated) convolution.

    It is the largest singular value, bias left out, of the huge sparse matrix from an image of
    ``input_size`` (H, W) to the output, not that of the reshaped kernel. Lanczos' form of the power
    iteration with A^T A needs no such matrix: it looks for the largest stretch in the space of all
    iterates, not only at the last one. (A convolution's largest singular values are very close: 300
    plain power steps leave an error of about 0.1 %, 100 of these less than a millionth.)

    It takes at most ``iterations`` steps, until the residual of the squared norm, relative to it,
    is below ``tol``. A much larger ``tol`` may find the second largest singular value instead.

    Raises:
        InputError: the padding is not zeros, a weight is not finite, or there is no convergence.
    """
    if conv.padding_mode != "zeros":
        raise InputError(
            f"padding_mode='{conv.padding_mode}' has no rule here: use a convolution padded with "
            "zeros."
        )
    weight = _finite(conv.weight)

    def apply(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)

    return _linear_map_norm(apply, (conv.in_channels, *input_size), iterations, tol)


def batch_norm_norm(bn: nn.BatchNorm2d | nn.BatchNorm1d) -> float:
    """Return ``max |gamma| / sqrt(variance + eps)``, the norm of batch-norm in evaluation mode.

    Raises:
        InputError: the layer has no running statistics, or holds NaN or infinite values.
    """
    if bn.running_var is None:
        raise InputError(
            "This batch-norm keeps no running statistics, so that it has no fixed Lipschitz "
            "constant: build it with track_running_stats=True."
        )
    gamma = torch.ones_like(bn.running_var) if bn.weight is None else bn.weight
    return (_finite(gamma).abs() / (_finite(bn.running_var) + bn.eps).sqrt()).max().item()


def max_pool_norm(
    pool: nn.MaxPool2d, input_size: tuple[int, int], output_size: tuple[int, int]
) -> float:
    """Return sqrt(m); m is the largest number of windows that share a pixel (1: no overlap).

    This is exact: the maximum of a window moves no further than the pixel in it that moves most,
    and raising one shared pixel of a black image moves m maxima at once.
    """
    shared = 1
    for axis in range(2):
        kernel, stride, padding, dilation = (
            value if isinstance(value, int) else value[axis]
            for value in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        )
        starts = torch.arange(output_size[axis])[:, None] * stride - padding
        covered = (starts + dilation * torch.arange(kernel)).flatten()
        inside = covered[(covered >= 0) & (covered < input_size[axis])]
        shared *= int(inside.bincount().max())
    return math.sqrt(shared)


def average_pool_norm(
    pool: nn.AvgPool2d | nn.AdaptiveAvgPool2d, input_size: tuple[int, int]
) -> float:
    """Return the operator norm of an average pooling: 1 / sqrt(H W) for a mean over a channel.

    Each channel is averaged alone, so the norm for one channel is the norm.
    """
    return _linear_map_norm(pool, (1, *input_size))


# ------------------------------------------------------------------------ the largest stretch


def _linear_map_norm(
    apply: Network, shape: tuple[int, int, int], iterations: int = 2000, tol: float = 1e-8
) -> float:
    """Return the largest singular value of a linear map on tensors of ``shape`` (C, H, W)."""
    check_range("iterations", iterations, low=1)
    check_range("tol", tol, low=0)

    def apply_flat(rows: Tensor) -> Tensor:
        return apply(rows.view(-1, *shape))

    start = fixed_directions(1, math.prod(shape))
    squared, converged = largest_eigenvalue(gram_of(apply_flat), start, iterations, tol)
    if not converged:
        raise InputError(
            f"The norm has not settled to {tol:g} in {iterations} iterations: allow more."
        )
    return math.sqrt(max(squared.item(), 0.0))


def gram_of(apply: Network) -> Network:
    """Return A^T A of a linear map A of rows (B, n); the vector-Jacobian product of A is A^T."""

    def gram(rows: Tensor) -> Tensor:
        image, adjoint, *_ = torch.func.vjp(apply, rows)
        return adjoint(image)[0]

    return gram


def largest_eigenvalue(
    gram: Network, start: Tensor, iterations: int, tol: float
) -> tuple[Tensor, bool]:
    """Find a symmetric, positive map's largest eigenvalue (B,), from each row of ``start`` (B, n).

    Lanczos' three-term recurrence (Golub and Van Loan, Matrix Computations, 10.1) makes of the map
    a small tridiagonal matrix, in the basis of the iterates, and keeps two vectors. The basis
    slowly loses its orthogonality; this copies eigenvalues, but leaves the largest right. The
    second result says whether all rows have converged to ``tol``.
    """
    vector, before = start / start.norm(dim=1, keepdim=True), torch.zeros_like(start)
    beta = start.new_zeros(len(start), 1)
    diagonal, beside = start.new_zeros(len(start), 0), start.new_zeros(len(start), 0)
    largest, converged = start.new_zeros(len(start)), False
    for step in range(1, iterations + 1):
        image = gram(vector) - beta * before
        alpha = (image * vector).sum(dim=1, keepdim=True)
        check_finite_slopes(alpha)
        image = image - alpha * vector
        diagonal = torch.cat([diagonal, alpha], dim=1)
        beta = image.norm(dim=1, keepdim=True)
        if step == iterations or step % (1 + step // 10) == 0:  # ever more rarely: costs step^3
            small = torch.diag_embed(diagonal) + torch.diag_embed(beside, 1)  # (B, step, step)
            values, vectors = torch.linalg.eigh(small, UPLO="U")
            largest, residual = values[:, -1], beta[:, 0] * vectors[:, -1, -1].abs()
            converged = bool((residual <= tol * largest.abs()).all())
            if converged:
                break
        beside = torch.cat([beside, beta], dim=1)
        before, vector = vector, image / beta.clamp_min(torch.finfo(beta.dtype).tiny)
    return largest, converged


def check_finite_slopes(values: Tensor) -> None:
    """Refuse NaN and infinite values, which a broken network puts out."""
    if not values.isfinite().all():
        raise InputError("The network's outputs or slopes are NaN or infinite: check its weights.")


def fixed_directions(rows: int, width: int) -> Tensor:
    """Draw the same random directions each time; a regular one might miss the stretch."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


def _finite(weight: Tensor) -> Tensor:
    """Return finite weights in double precision, on the CPU."""
    if not weight.isfinite().all():
        raise InputError("The weights hold NaN or infinite values: load other weights.")
    return exact(weight)
