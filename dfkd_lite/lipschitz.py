"""How much networks can stretch distances: Lipschitz bounds, estimates, and Eqs. 18-22 in numbers.

All norms are Euclidean, over all pixels of an image or all logits. Three kinds of number must not
be confused: a layer's *exact* norm, a network's *upper* bound (the product of its layers' norms),
and a *sampled lower* bound (the steepest place among the images that were looked at).

Built in chapter 9.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from . import kd
from .errors import InputError, check_range
from .networks import VGG, ResNet, WideResNet, evaluating
from .networks.resnet import BasicBlock
from .networks.wide_resnet import PreActivationBlock

#: A network, or any function of a batch whose rows do not mix.
Network = Callable[[Tensor], Tensor]


# ------------------------------------------------------------------ exact norms of single layers


def linear_norm(weight: Tensor) -> float:
    """The largest singular value of a matrix (K, D): the Lipschitz constant of x -> W x + b.

    Raises:
        InputError: not a matrix; NaN or infinite weights.
    """
    if weight.ndim != 2:
        raise InputError(f"A matrix is needed, not weights of shape {tuple(weight.shape)}.")
    return torch.linalg.matrix_norm(_exact(weight), 2).item()


def conv_norm(
    conv: nn.Conv2d, input_size: tuple[int, int], iterations: int = 2000, tol: float = 1e-8
) -> float:
    """The operator norm of a zero-padded (strided, grouped, dilated) convolution, bias left out.

    It is the largest singular value of the huge sparse matrix that maps an image of ``input_size``
    to the convolution's output, not of the reshaped kernel. The matrix is never formed: the power
    iteration with A^T A is run in Lanczos' form, which looks for the largest stretch in the space
    of all iterates instead of at the last one. (A convolution's largest singular values lie so
    close together that 300 plain power steps leave an error of some 0.1 %; 100 of these leave
    less than a millionth.)

    Args:
        conv: the layer.
        input_size: (H, W) of its input.
        iterations: at most so many steps.
        tol: stop when the residual of the squared norm, relative to it, is below this. Much above
            the default the second largest singular value may be taken for the largest, where the
            two are very close.

    Raises:
        InputError: a padding other than zeros; NaN or infinite weights; no convergence.
    """
    if conv.padding_mode != "zeros":
        raise InputError(
            f"padding_mode='{conv.padding_mode}' has no rule here: use a convolution padded with "
            "zeros."
        )
    weight = _exact(conv.weight)

    def apply(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)

    return _linear_map_norm(apply, (conv.in_channels, *input_size), iterations, tol)


def batch_norm_norm(bn: nn.BatchNorm2d | nn.BatchNorm1d) -> float:
    """``max |gamma| / sqrt(variance + eps)`` over the channels: batch-norm in evaluation mode.

    Raises:
        InputError: no running statistics (it would depend on the batch); NaN or infinite weights.
    """
    if bn.running_var is None:
        raise InputError(
            "This batch-norm keeps no running statistics, so that it has no fixed Lipschitz "
            "constant: build it with track_running_stats=True."
        )
    gamma = torch.ones_like(bn.running_var) if bn.weight is None else bn.weight
    return (_exact(gamma).abs() / (_exact(bn.running_var) + bn.eps).sqrt()).max().item()


def max_pool_norm(
    pool: nn.MaxPool2d, input_size: tuple[int, int], output_size: tuple[int, int]
) -> float:
    """sqrt(m) where m is the largest number of windows that share a pixel; 1 without overlap.

    Exact: no window's maximum moves further than the pixel in it that moves most, and raising one
    shared pixel of a blank image moves m maxima at once.
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
    """The operator norm of an average pooling; 1 / sqrt(H W) where one average is left a channel.

    Each channel is averaged by itself, so that one channel's norm is the norm.
    """
    return _linear_map_norm(pool, (1, *input_size))


# ----------------------------------------------------------- upper bounds: the product of layers


@dataclass(frozen=True)
class LayerBound:
    """The Lipschitz constant of one step: exact for a layer, an upper bound for a residual block.

    A residual block has ``parts``, those of its branch and of its shortcut in the order of the
    network; a layer has none.
    """

    name: str
    kind: str
    norm: float
    parts: tuple[LayerBound, ...] = ()


@dataclass(frozen=True)
class LayerBounds:
    """An upper bound on a network's Lipschitz constant, and what it is made of.

    ``factors`` are the steps from image to logits; ``bound`` is the product of their norms.
    """

    bound: float
    factors: tuple[LayerBound, ...]

    @property
    def layers(self) -> tuple[LayerBound, ...]:
        """The table of all layers (name, kind, norm), residual blocks replaced by their parts."""
        return tuple(layer for factor in self.factors for layer in _leaves(factor))


def network_bound(
    model: nn.Module, image_shape: tuple[int, int, int], std: Sequence[float] = ()
) -> LayerBounds:
    """Bound the Lipschitz constant of a network in evaluation mode by its layers' exact norms.

    Steps that follow each other multiply, a residual branch and its shortcut add. A convolution
    and the batch-norm after it are one linear map and are taken as one, which is tighter.

    Args:
        model: a ``WideResNet``, ``ResNet`` or ``VGG`` of this package, or an ``nn.Sequential`` of
            convolutions, batch-norms, poolings, linear layers, ReLU, dropout and flatten.
        image_shape: (C, H, W); the norms of convolutions and poolings depend on it.
        std: the C standard deviations that images are divided by before the network. Given, the
            bound is that from pixels in [0, 1] to logits, which Eq. 21 needs; not given, it is
            from normalised images to logits.

    Raises:
        InputError: a module without a rule, which is named; images that the network cannot read;
            NaN or infinite weights.
    """
    factors = [_normalisation(std, image_shape[0])] if len(std) else []
    with evaluating(model):
        steps = _steps("", model)
        factors += _factors(steps, _sizes(model, image_shape))
    return LayerBounds(math.prod(factor.norm for factor in factors), tuple(factors))


@dataclass(frozen=True)
class _Sum:
    """Two chains of steps with the same input, whose outputs are added."""

    name: str
    branch: list[_Step]
    shortcut: list[_Step]


_Step = tuple[str, nn.Module] | _Sum
_Sizes = dict[nn.Module, tuple[tuple[int, int], tuple[int, int]]]  # (H, W) in and out

# Told by their forward, not by their class: a subclass with a forward of its own is not one.
_CHAINS = {kind.forward for kind in (nn.Sequential, WideResNet, ResNet, VGG)}
_NO_GROWTH = (nn.ReLU, nn.Flatten, nn.Dropout, nn.Dropout2d, nn.Identity)
_BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm1d)
_AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)


def _steps(name: str, module: nn.Module) -> list[_Step]:
    """The steps of a module, one after the other: containers unfolded, residual blocks as sums."""
    within = f"{name}." if name else ""
    if type(module).forward in _CHAINS:  # their children stand in the order of the forward
        steps: list[_Step] = []
        for key, child in module._modules.items():  # named_children() leaves out a second use
            steps += _steps(within + key, child) if child is not None else []
        return steps
    if isinstance(module, PreActivationBlock):
        activated: list[_Step] = [_step(module, within, key) for key in ("bn1", "relu1")]
        branch = [_step(module, within, key) for key in ("conv1", "bn2", "relu2", "conv2")]
        if module.shortcut is None:
            return [_Sum(name, [*activated, *branch], [])]
        return [*activated, _Sum(name, branch, [_step(module, within, "shortcut")])]
    if isinstance(module, BasicBlock):
        keys = ("conv1", "bn1", "relu1", "conv2", "bn2")
        branch = [_step(module, within, key) for key in keys]
        shortcut = _steps(f"{within}shortcut", module.shortcut)
        return [_Sum(name, branch, shortcut), _step(module, within, "relu2")]
    return [(name or type(module).__name__, module)]


def _step(block: nn.Module, within: str, key: str) -> _Step:
    return within + key, block.get_submodule(key)


def _factors(steps: list[_Step], sizes: _Sizes) -> list[LayerBound]:
    """The Lipschitz constants of a chain of steps."""
    factors, queue = [], list(steps)
    while queue:
        step = queue.pop(0)
        if isinstance(step, _Sum):
            factors.append(_residual(step, sizes))
            continue
        name, module = step
        following = queue[0][1] if queue and isinstance(queue[0], tuple) else None
        if isinstance(module, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
            queue.pop(0)
            batch_norm_norm(following)  # for its checks
            norm = conv_norm(fuse_conv_bn_eval(module, following), sizes[module][0])
            factors.append(LayerBound(name, "convolution + batch-norm", norm))
        else:
            factors.append(_layer(name, module, sizes))
    return factors


def _residual(step: _Sum, sizes: _Sizes) -> LayerBound:
    branch, shortcut = _factors(step.branch, sizes), _factors(step.shortcut, sizes)
    norm = math.prod(part.norm for part in branch) + math.prod(part.norm for part in shortcut)
    return LayerBound(step.name, "residual block", norm, (*branch, *shortcut))


def _layer(name: str, module: nn.Module, sizes: _Sizes) -> LayerBound:
    if isinstance(module, nn.Conv2d):
        return LayerBound(name, "convolution", conv_norm(module, sizes[module][0]))
    if isinstance(module, nn.Linear):
        return LayerBound(name, "linear", linear_norm(module.weight))
    if isinstance(module, _BATCH_NORMS):
        return LayerBound(name, "batch-norm", batch_norm_norm(module))
    if isinstance(module, nn.MaxPool2d):
        return LayerBound(name, "max-pooling", max_pool_norm(module, *sizes[module]))
    if isinstance(module, _AVERAGES):
        return LayerBound(name, "average pooling", average_pool_norm(module, sizes[module][0]))
    if isinstance(module, _NO_GROWTH):
        return LayerBound(name, type(module).__name__, 1.0)
    raise InputError(
        f"There is no Lipschitz rule for '{name}', a {type(module).__name__}: network_bound reads "
        "this package's WideResNet, ResNet and VGG and nn.Sequential of common layers; for other "
        "networks use local_lipschitz, a lower bound."
    )


def _normalisation(std: Sequence[float], channels: int) -> LayerBound:
    if len(std) != channels:
        raise InputError(f"std has {len(std)} numbers for {channels} channels: give one each.")
    for value in std:
        check_range("std", value, low=0, above=True)
    return LayerBound("normalise", "normalisation", 1 / min(std))


def _leaves(layer: LayerBound) -> Iterator[LayerBound]:
    if not layer.parts:
        yield layer
    for part in layer.parts:
        yield from _leaves(part)


def _sizes(model: nn.Module, image_shape: tuple[int, int, int]) -> _Sizes:
    """The sizes in and out of every convolution and pooling, found by running a blank image."""
    first = next(model.parameters(), torch.empty(0))
    blank = torch.zeros(1, *image_shape, device=first.device, dtype=first.dtype)
    with _recorded_sizes(model) as sizes, torch.no_grad():
        try:
            model(blank)
        except InputError:
            raise
        except (RuntimeError, ValueError) as error:
            shape = "x".join(map(str, image_shape))
            raise InputError(f"The network cannot read {shape} images: {error}") from error
    return sizes


@contextmanager
def _recorded_sizes(model: nn.Module) -> Iterator[_Sizes]:
    """Hooks that note sizes while the block runs, removed when it ends, whatever happens."""
    sizes: _Sizes = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        found = (tuple(inputs[0].shape[-2:]), tuple(output.shape[-2:]))
        if sizes.setdefault(module, found) != found:
            raise InputError(
                f"One {type(module).__name__} is used at two image sizes, {sizes[module][0]} and "
                f"{found[0]}: network_bound needs a layer of its own for each."
            )

    handles = []
    try:
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.MaxPool2d, *_AVERAGES)):
                handles.append(module.register_forward_hook(note))
        yield sizes
    finally:
        for handle in handles:
            handle.remove()


# ------------------------------------------------------ lower bounds: the slope at chosen images


def local_lipschitz(model: Network, images: Tensor, iterations: int = 50) -> Tensor:
    """The spectral norm of the network's Jacobian at each image: how steep it is just there.

    Lanczos iterations (see :func:`conv_norm`) on the side of the logits: J^T by a vector-Jacobian
    product, J by the vector-Jacobian product of that linear map. K iterations give the exact norm
    for K logits (to rounding); fewer give a lower bound on it. The starting vectors are the same in
    every call.

    Args:
        model: images (B, C, H, W) -> (B, ...). A module is put in evaluation mode meanwhile; a
            plain function must not mix the images of a batch.
        images: where to measure, as the network wants them (normalised, or in [0, 1] for a
            function that normalises itself); distances are measured in the same units.
        iterations: at most so many steps.

    Returns:
        (B,), in the images' precision, on their device.

    Raises:
        InputError: no images; outputs or slopes that are NaN or infinite; fewer than 1 iteration.
    """
    check_range("iterations", iterations, low=1)
    if len(images) == 0:
        raise InputError("There are no images to measure the slope at.")
    with _evaluating(model), torch.no_grad():
        outputs, pull_back, *_ = torch.func.vjp(model, images)
        _check_finite(outputs)
        width = outputs[0].numel()
        start = _start(len(images), width).to(outputs)

        def transposed(rows: Tensor) -> Tensor:  # (B, K) -> J^T of each row (B, C, H, W)
            return pull_back(rows.view_as(outputs))[0]

        steps, tol = min(iterations, width), 10 * torch.finfo(outputs.dtype).eps
        squared, _ = _largest_eigenvalue(_gram(transposed), start, steps, tol)
    return squared.clamp_min(0).sqrt()


def sampled_lower_bound(model: Network, images: Tensor, iterations: int = 50) -> float:
    """The steepest slope among ``images``: a lower bound on the network's Lipschitz constant.

    Arguments and errors as for :func:`local_lipschitz`.
    """
    return local_lipschitz(model, images, iterations).max().item()


# --------------------------------------------------------------------- the terms of Eqs. 18 to 22


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
    with _evaluating(network):
        return network(batch)


def _evaluating(network: Network) -> AbstractContextManager[object]:
    return evaluating(network) if isinstance(network, nn.Module) else nullcontext()


# ------------------------------------------------------------------------ the largest stretch


def _linear_map_norm(
    apply: Network, shape: tuple[int, int, int], iterations: int = 2000, tol: float = 1e-8
) -> float:
    """The largest singular value of a linear map on tensors of ``shape``."""
    check_range("iterations", iterations, low=1)
    check_range("tol", tol, low=0)

    def apply_flat(rows: Tensor) -> Tensor:
        return apply(rows.view(-1, *shape))

    start = _start(1, math.prod(shape))
    squared, converged = _largest_eigenvalue(_gram(apply_flat), start, iterations, tol)
    if not converged:
        raise InputError(
            f"The norm has not settled to {tol:g} in {iterations} iterations: allow more."
        )
    return math.sqrt(max(squared.item(), 0.0))


def _gram(apply: Network) -> Network:
    """A^T A for a linear map A of rows (B, n): its adjoint is its own vector-Jacobian product."""

    def gram(rows: Tensor) -> Tensor:
        image, adjoint, *_ = torch.func.vjp(apply, rows)
        return adjoint(image)[0]

    return gram


def _largest_eigenvalue(
    gram: Network, start: Tensor, iterations: int, tol: float
) -> tuple[Tensor, bool]:
    """The largest eigenvalue of a symmetric, positive map on each row of ``start`` (B, n), (B,).

    Lanczos' three-term recurrence (Golub and Van Loan, Matrix Computations, 10.1): in the basis of
    the iterates the map is a small tridiagonal matrix. Nothing is kept but two vectors; that the
    basis slowly loses its orthogonality brings copies of eigenvalues but leaves the largest right.
    """
    vector, before = start / start.norm(dim=1, keepdim=True), torch.zeros_like(start)
    beta = start.new_zeros(len(start), 1)
    diagonal, beside = start.new_zeros(len(start), 0), start.new_zeros(len(start), 0)
    largest, converged = start.new_zeros(len(start)), False
    for step in range(1, iterations + 1):
        image = gram(vector) - beta * before
        alpha = (image * vector).sum(dim=1, keepdim=True)
        _check_finite(alpha)
        image = image - alpha * vector
        diagonal = torch.cat([diagonal, alpha], dim=1)
        beta = image.norm(dim=1, keepdim=True)
        if step == iterations or step % (1 + step // 10) == 0:  # ever less often: it costs step^3
            small = torch.diag_embed(diagonal) + torch.diag_embed(beside, 1)  # (B, step, step)
            values, vectors = torch.linalg.eigh(small, UPLO="U")
            largest, residual = values[:, -1], beta[:, 0] * vectors[:, -1, -1].abs()
            converged = bool((residual <= tol * largest.abs()).all())
            if converged:
                break
        beside = torch.cat([beside, beta], dim=1)
        before, vector = vector, image / beta.clamp_min(torch.finfo(beta.dtype).tiny)
    return largest, converged


def _check_finite(values: Tensor) -> None:
    if not values.isfinite().all():
        raise InputError("The network's outputs or slopes are NaN or infinite: check its weights.")


def _start(rows: int, width: int) -> Tensor:
    """Random directions, the same each time: a fixed one could be blind to the largest stretch."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


def _exact(weight: Tensor) -> Tensor:
    """Weights as double precision on the CPU, which every device's owner has."""
    if not weight.isfinite().all():
        raise InputError("The weights hold NaN or infinite values: load other weights.")
    return weight.detach().cpu().double()
