"""Norms against the SVD of dense matrices, bounds on cases built to be tight, Eqs. 18-22."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dfkd_lite import lipschitz as lip
from dfkd_lite.errors import InputError
from dfkd_lite.networks import ResNet, WideResNet, build
from dfkd_lite.networks.resnet import BasicBlock
from dfkd_lite.networks.wide_resnet import PreActivationBlock


def spectral(matrix: np.ndarray | Tensor) -> float:
    """The reference for every norm here: NumPy's SVD."""
    return float(np.linalg.svd(np.asarray(matrix), compute_uv=False)[0])


def dense(conv: Any, height: int, width: int) -> np.ndarray:
    """The matrix of a zero-padded convolution, written from its definition."""
    kernel = conv.weight.detach().double().numpy()
    outputs, group_inputs, kernel_height, kernel_width = kernel.shape
    (sy, sx), (py, px), (dy, dx) = conv.stride, conv.padding, conv.dilation
    out_height = (height + 2 * py - dy * (kernel_height - 1) - 1) // sy + 1
    out_width = (width + 2 * px - dx * (kernel_width - 1) - 1) // sx + 1
    matrix = np.zeros((outputs, out_height, out_width, conv.in_channels, height, width))
    per_group = outputs // conv.groups
    for y, x, i, j in np.ndindex(out_height, out_width, kernel_height, kernel_width):
        row, column = y * sy - py + i * dy, x * sx - px + j * dx
        if 0 <= row < height and 0 <= column < width:
            for g in range(conv.groups):
                o, c = slice(g * per_group, (g + 1) * per_group), g * group_inputs
                matrix[o, y, x, c : c + group_inputs, row, column] = kernel[o, :, i, j]
    return matrix.reshape(outputs * out_height * out_width, -1)


def jacobian(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """The dense Jacobian at one image (C, H, W) of a function of batches."""
    matrix = torch.func.jacrev(lambda x: function(x[None])[0].flatten())(point)
    return matrix.detach().flatten(1)


def unsettle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random batch-norm weights and statistics, as after training; double precision, eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            tensor: Any
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 2.0, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0.0, 0.5, generator=generator)
    return model.double().eval()


# Single layers


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (10, 4)])
def test_linear_norm_is_the_largest_singular_value(shape: tuple[int, int]) -> None:
    torch.manual_seed(sum(shape))
    weight = torch.randn(shape, dtype=torch.float64)
    assert lip.linear_norm(weight) == pytest.approx(spectral(weight), rel=1e-12)


@given(
    kernel=st.sampled_from([(1, 1), (3, 3), (3, 1), (2, 2)]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    size=st.tuples(st.integers(3, 7), st.integers(3, 7)),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_conv_norm_is_that_of_the_dense_matrix(
    kernel: tuple[int, int],
    stride: int,
    padding: int,
    size: tuple[int, int],
    channels: tuple[int, int],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(*channels, kernel, stride, padding)
    assert lip.conv_norm(conv, size) == pytest.approx(spectral(dense(conv, *size)), rel=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 2, "padding": 1},
        {"groups": 4, "stride": 2},
        {"dilation": 2, "padding": 2},
        {"dilation": 2, "stride": 2, "padding": 1},
        {"stride": (2, 1), "padding": (0, 1)},
    ],
)
def test_conv_norm_of_grouped_and_dilated_convolutions(options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    conv = nn.Conv2d(4, 8, 3, **options)
    assert lip.conv_norm(conv, (7, 6)) == pytest.approx(spectral(dense(conv, 7, 6)), rel=1e-6)


def test_conv_norm_of_a_wide_layer() -> None:
    # Its largest singular values crowd together, where plain power iteration would be stuck.
    torch.manual_seed(2)
    conv = nn.Conv2d(24, 24, 3, padding=1)
    assert lip.conv_norm(conv, (7, 7)) == pytest.approx(spectral(dense(conv, 7, 7)), rel=1e-9)


def test_conv_norm_of_a_constant_image() -> None:
    # A positive kernel stretches smooth images most: towards the kernel's sum as the image grows.
    conv = nn.Conv2d(1, 1, 3, padding=1)
    nn.init.constant_(conv.weight, 1 / 9)
    norms = [lip.conv_norm(conv, (side, side)) for side in (4, 8, 32)]
    assert norms == sorted(norms) and norms[0] < 0.8 and 0.98 < norms[-1] < 1


def test_conv_norm_of_nothing_is_0_and_of_too_few_iterations_is_refused() -> None:
    conv = nn.Conv2d(2, 2, 3)
    with pytest.raises(InputError, match="not settled"):
        lip.conv_norm(conv, (8, 8), iterations=2)
    nn.init.zeros_(conv.weight)
    assert lip.conv_norm(conv, (8, 8)) == 0


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_norm_is_that_of_its_jacobian(affine: bool) -> None:
    bn: Any = nn.BatchNorm2d(3, affine=affine).double().eval()
    bn.running_var.copy_(torch.tensor([0.5, 2.0, 0.0]))
    if affine:
        bn.weight.data = torch.tensor([-3.0, 1.0, 0.001], dtype=torch.float64)
    point = torch.randn(3, 2, 2, dtype=torch.float64)
    assert lip.batch_norm_norm(bn) == pytest.approx(spectral(jacobian(bn, point)), rel=1e-12)


@pytest.mark.parametrize(
    ("pool", "side"),
    [
        (nn.MaxPool2d(2), 5),
        (nn.MaxPool2d(3, 2, 1), 5),
        (nn.MaxPool2d(3, 1), 5),
        (nn.MaxPool2d((3, 2), (1, 2)), 5),
        (nn.MaxPool2d(2, 2, ceil_mode=True), 5),
        (nn.MaxPool2d(5, 1, 2), 5),
        (nn.MaxPool2d(2, 3, dilation=3), 7),  # shares pixels only because it is dilated
        (nn.MaxPool2d(2, 1, 1), 1),  # shares its one pixel only because it is padded
    ],
)
def test_max_pool_norm_is_reached_and_never_passed(pool: nn.MaxPool2d, side: int) -> None:
    torch.manual_seed(3)
    slopes = []
    for spot in np.ndindex(
        side, side
    ):  # one pixel above all others; noise settles the other windows
        image = 0.01 * torch.rand(1, side, side, dtype=torch.float64)
        image[(0, *spot)] = 1.0
        slopes.append(spectral(jacobian(pool, image)))
    out = pool(torch.zeros(1, 1, side, side)).shape
    assert max(slopes) == pytest.approx(lip.max_pool_norm(pool, (side, side), (out[2], out[3])))


@pytest.mark.parametrize(
    "pool",
    [
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    ],
)
def test_average_pool_norm_is_that_of_its_jacobian(pool: nn.AvgPool2d) -> None:
    point = torch.zeros(2, 5, 7, dtype=torch.float64)
    expected = spectral(jacobian(pool, point))
    assert lip.average_pool_norm(pool, (5, 7)) == pytest.approx(expected, rel=1e-6)


def test_global_average_pooling_shrinks_by_the_root_of_the_area() -> None:
    norm = lip.average_pool_norm(nn.AdaptiveAvgPool2d(1), (4, 9))
    assert norm == pytest.approx(1 / 6, rel=1e-12)


# Whole networks: upper bounds


def scaled(conv: Any, bn: Any, side: int) -> float:
    """The norm of a convolution and the batch-norm after it, from dense matrices."""
    matrix = dense(conv, side, side)
    scale = (bn.weight / (bn.running_var + bn.eps).sqrt()).detach().numpy()
    return spectral(np.repeat(scale, len(matrix) // len(scale))[:, None] * matrix)


def alone(bn: Any) -> float:
    return (bn.weight.abs() / (bn.running_var + bn.eps).sqrt()).max().item()


def test_wide_resnet_bound_by_hand() -> None:
    torch.manual_seed(4)
    net: Any = unsettle(WideResNet(10, 1, classes=3, channels=2))
    expected = spectral(dense(net.conv1, 4, 4))
    side = 4
    for stage in (net.stage1, net.stage2, net.stage3):
        block = stage[0]
        first = scaled(block.conv1, block.bn2, side)
        out = side // block.conv1.stride[0]
        branch = first * spectral(dense(block.conv2, out, out))
        if block.shortcut is None:
            expected *= 1 + alone(block.bn1) * branch
        else:
            shortcut = spectral(dense(block.shortcut, side, side))
            expected *= alone(block.bn1) * (branch + shortcut)
        side = out
    expected *= alone(net.bn) / side * spectral(net.fc.weight.detach())
    assert side == 1 and net.stage2[0].shortcut is not None and net.stage1[0].shortcut is None
    assert lip.network_bound(net, (2, 4, 4)).bound == pytest.approx(expected, rel=1e-6)


def test_resnet_bound_by_hand() -> None:
    torch.manual_seed(5)
    net: Any = unsettle(ResNet((1, 2, 1, 1), classes=3, channels=2))
    side, expected = 4, scaled(net.conv1, net.bn1, 4)
    for block in (*net.stage1, *net.stage2, *net.stage3, *net.stage4):
        out = (side - 1) // block.conv1.stride[0] + 1
        branch = scaled(block.conv1, block.bn1, side) * scaled(block.conv2, block.bn2, out)
        shortcut = (
            1.0 if not len(block.shortcut) else scaled(block.shortcut[0], block.shortcut[1], side)
        )
        expected *= branch + shortcut
        side = out
    expected *= spectral(net.fc.weight.detach())
    assert lip.network_bound(net, (2, 4, 4)).bound == pytest.approx(expected, rel=1e-6)


def network(name: str) -> tuple[nn.Module, int]:
    torch.manual_seed(6)
    if name == "resnet":
        return unsettle(ResNet((1, 1, 1, 1), classes=4)), 8
    return unsettle(build(name, 4, size=16)), 16 if name == "vgg-11" else 8


NAMES = ["wrn-16-1", "resnet", "vgg-11"]


@pytest.mark.parametrize("name", NAMES)
def test_network_bound_is_above_every_slope_and_says_what_it_is_made_of(name: str) -> None:
    model, side = network(name)
    bounds = lip.network_bound(model, (3, side, side))
    images = torch.rand(4, 3, side, side, dtype=torch.float64)
    assert 0 < lip.sampled_lower_bound(model, images) < bounds.bound
    # Pairs of images, not only slopes: |f(a) - f(b)| / |a - b|.
    steps = (model(images) - model(images.roll(1, 0))).norm(dim=1)
    assert (steps <= bounds.bound * (images - images.roll(1, 0)).flatten(1).norm(dim=1)).all()
    assert math.prod(factor.norm for factor in bounds.factors) == pytest.approx(bounds.bound)
    # Every convolution, batch-norm and linear layer is in the table once (merged ones as one).
    table = [layer.kind for layer in bounds.layers]
    kinds = [type(module) for module in model.modules()]
    merged = table.count("convolution + batch-norm")
    assert table.count("convolution") + merged == kinds.count(nn.Conv2d)
    assert table.count("batch-norm") + merged == kinds.count(nn.BatchNorm2d)
    assert table.count("linear") == 1 and table.count("max-pooling") == kinds.count(nn.MaxPool2d)
    assert len({layer.name for layer in bounds.layers}) == len(table)
    assert {layer.name for layer in bounds.layers} <= dict(model.named_modules()).keys()


@pytest.mark.parametrize("name", NAMES)
def test_the_networks_run_their_children_in_order(name: str) -> None:
    # The product over the children rests on it.
    model, side = network(name)
    images = torch.rand(2, 3, side, side, dtype=torch.float64)
    torch.testing.assert_close(nn.Sequential(*model.children())(images), model(images))


def orthogonal(rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(max(rows, columns), max(rows, columns)).double())[0][
        :rows, :columns
    ]


def test_the_bound_is_reached_by_a_chain_of_orthogonal_layers() -> None:
    torch.manual_seed(7)
    bn = nn.BatchNorm2d(4)
    bn.weight.data.fill_(0.5)
    fc = nn.Linear(4, 3)
    chain = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), bn, nn.AdaptiveAvgPool2d(1)
    )
    model = nn.Sequential(chain, nn.Flatten(), nn.Dropout(0.5), fc).double()
    chain[0].weight.data = 2 * orthogonal(4, 4)[:, :, None, None]
    chain[2].weight.data = 3 * orthogonal(4, 4)[:, :, None, None]
    fc.weight.data = 5 * orthogonal(3, 4)
    images = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    expected = 2 * 3 * 0.5 * 5 / 6 / (1 + bn.eps)
    bounds = lip.network_bound(model, (4, 6, 6))
    assert bounds.bound == pytest.approx(expected, rel=1e-9)
    slopes = lip.local_lipschitz(model, images)
    torch.testing.assert_close(slopes, torch.full_like(slopes, expected))


@pytest.mark.parametrize("kind", [PreActivationBlock, BasicBlock])
def test_the_bound_is_reached_by_a_residual_block_of_scaled_identities(kind: Any) -> None:
    block = kind(2, 2, 1)
    for conv in (block.conv1, block.conv2):
        nn.init.dirac_(conv.weight)
        conv.weight.data *= 3
    model = nn.Sequential(block, nn.Flatten()).double()
    # Positive images pass every ReLU: the block is x -> x + 9 x, but for batch-norm's eps.
    scale = 1 / (1 + block.bn1.eps)
    slopes = lip.local_lipschitz(model, torch.rand(2, 2, 3, 3, dtype=torch.float64) + 1)
    torch.testing.assert_close(slopes, torch.full_like(slopes, 1 + 9 * scale))
    bound = lip.network_bound(model, (2, 3, 3)).bound
    assert bound == pytest.approx(1 + 9 * scale, rel=1e-9)


def test_a_layer_used_twice_counts_twice() -> None:
    conv = nn.Conv2d(2, 2, 1).double()
    conv.weight.data = 3 * torch.eye(2, dtype=torch.float64)[:, :, None, None]
    model = nn.Sequential(conv, nn.ReLU(), conv)
    assert lip.network_bound(model, (2, 4, 4)).bound == pytest.approx(9)


def test_pixels_are_further_from_the_logits_than_normalised_images() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 3, 4)).double()
    std = (0.5, 0.2)
    deviations = torch.tensor(std, dtype=torch.float64)[:, None, None]
    plain, pixels = (lip.network_bound(model, (2, 3, 3), s).bound for s in ((), std))
    assert pixels == pytest.approx(plain / 0.2)
    slope = lip.sampled_lower_bound(
        lambda x: model(x / deviations), torch.zeros(1, 2, 3, 3).double()
    )
    assert plain < slope <= pixels


# Whole networks: slopes


@pytest.mark.parametrize("name", ["wrn-16-1", "resnet"])
def test_local_lipschitz_is_that_of_the_dense_jacobian(name: str) -> None:
    model, side = network(name)
    images = torch.rand(3, 3, side, side, dtype=torch.float64)
    expected = [spectral(jacobian(model, image)) for image in images]
    np.testing.assert_allclose(lip.local_lipschitz(model, images).numpy(), expected, rtol=1e-9)
    assert lip.sampled_lower_bound(model, images) == pytest.approx(max(expected))
    few = lip.local_lipschitz(model, images, iterations=1)
    assert (few.numpy() < expected).all()


def test_local_lipschitz_in_single_precision_and_with_many_outputs() -> None:
    torch.manual_seed(8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 30))
    images = torch.randn(5, 3, 4, 4)
    expected = [spectral(jacobian(model, image)) for image in images]
    found = lip.local_lipschitz(model, images)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_local_lipschitz_is_exact_after_as_many_steps_as_logits() -> None:
    torch.manual_seed(9)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 11)).double()
    model[1].weight.data = torch.diag(
        torch.linspace(1, 1.01, 11, dtype=torch.float64)
    ) @ orthogonal(11, 48)
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    np.testing.assert_allclose(lip.local_lipschitz(model, images).numpy(), 1.01, rtol=1e-12)


def test_a_dead_network_has_no_slope() -> None:
    linear = nn.Linear(4, 3)
    nn.init.zeros_(linear.weight)
    model = nn.Sequential(nn.Flatten(), linear)
    assert lip.local_lipschitz(model, torch.rand(2, 1, 2, 2)).tolist() == [0, 0]


def test_measuring_leaves_the_network_as_it_was() -> None:
    model = build("wrn-10-1", 4, size=8).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.rand(2, 3, 8, 8)
    lip.local_lipschitz(model, images)
    lip.network_bound(model, (3, 8, 8))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


# The terms of Eqs. 18 to 22


def perceptron(seed: int, inputs: int, outputs: int, relu: bool, scale: float) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    widths = (inputs, 6, outputs)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        linear = nn.Linear(before, after).double()
        for parameter in linear.parameters():
            parameter.data.normal_(0, scale, generator=generator)
        layers += [linear, nn.ReLU()] if relu and after == 6 else [linear]
    return nn.Sequential(*layers)


def lipschitz(model: nn.Sequential) -> float:
    return math.prod(spectral(m.weight.detach()) for m in model if isinstance(m, nn.Linear))


def image_generator(seed: int, relu: bool, scale: float) -> nn.Sequential:
    return nn.Sequential(*perceptron(seed, 3, 8, relu, scale), nn.Unflatten(1, (2, 2, 2)))


@given(
    seed=st.integers(0, 10**6),
    relu=st.booleans(),
    scale=st.floats(0.05, 3),
    step=st.floats(0, 5),
    opposed=st.booleans(),
    images=st.integers(1, 20),
)
@settings(max_examples=300, deadline=None)
def test_eqs_21_and_22_hold(
    seed: int, relu: bool, scale: float, step: float, opposed: bool, images: int
) -> None:
    student = perceptron(seed, 8, 4, relu, scale)
    teacher: Any = perceptron(seed if opposed else seed + 1, 8, 4, relu, scale)
    if opposed:  # T = -S: nothing in the triangle inequality is given away between the two
        teacher[-1].weight.data *= -1
    star, other = image_generator(seed + 2, relu, 1.0), image_generator(seed + 3, relu, 1.0)
    z = torch.randn(images, 3, generator=torch.Generator().manual_seed(seed)).double()

    def generator(codes: Tensor) -> Tensor:
        return star(codes) + step * other(codes)

    s, t = lipschitz(student), lipschitz(teacher)
    terms = lip.bound_terms(student, teacher, generator, star, z, s, t)
    # Both sides again, from NumPy.
    x, x_star = generator(z), star(z)
    gap = np.linalg.norm((student(x) - teacher(x)).detach().numpy(), axis=1)
    gap_star = np.linalg.norm((student(x_star) - teacher(x_star)).detach().numpy(), axis=1)
    delta = np.linalg.norm((x - x_star).detach().numpy().reshape(images, -1), axis=1).max()
    np.testing.assert_allclose(terms.lhs.numpy(), gap)
    assert (terms.C, terms.delta) == (pytest.approx(gap_star.max()), pytest.approx(delta))
    assert terms.rhs == pytest.approx(gap_star.max() + (s + t) * delta)
    assert terms.lkd == pytest.approx((gap**2).mean())
    assert terms.lkd_bound == pytest.approx(terms.rhs**2)
    slack = 1 + 1e-9
    assert (terms.lhs <= terms.rhs * slack).all()
    assert terms.lkd <= terms.lkd_bound * slack


def test_eqs_21_and_22_are_tight_where_all_pull_the_same_way() -> None:
    # S(x) = 2 x and T(x) = -3 x are as far apart as their constants allow, and G overshoots G* by
    # a quarter in its own direction; the z have length 1, so that every sample is the worst one.
    z = torch.randn(50, 2, 2, 2, dtype=torch.float64)
    z /= z.flatten(1).norm(dim=1)[:, None, None, None]

    def student(x: Tensor) -> Tensor:
        return 2 * x.flatten(1)

    def teacher(x: Tensor) -> Tensor:
        return -3 * x.flatten(1)

    def star(codes: Tensor) -> Tensor:
        return 4 * codes

    def generator(codes: Tensor) -> Tensor:
        return 5 * codes

    terms = lip.bound_terms(student, teacher, generator, star, z, 2.0, 3.0)
    assert (terms.C, terms.delta) == (pytest.approx(20), pytest.approx(1))
    assert terms.rhs == pytest.approx(25) and terms.lkd_bound == pytest.approx(625)
    np.testing.assert_allclose(terms.lhs.numpy(), terms.rhs)
    assert terms.lkd == pytest.approx(terms.lkd_bound)
    # With constants any smaller the inequality would be false.
    less = lip.bound_terms(student, teacher, generator, star, z, 2.0, 2.9)
    assert (less.lhs > less.rhs).all()


def test_eq_18_of_linear_maps_has_a_closed_form() -> None:
    # z ~ N(0, I): the integral of |(S - T) G z + b|^2 is the squared Frobenius norm plus |b|^2.
    rng = torch.Generator().manual_seed(10)
    s, t = (torch.randn(4, 8, generator=rng, dtype=torch.float64) for _ in range(2))
    g = torch.randn(8, 5, generator=rng, dtype=torch.float64)
    b = torch.randn(4, generator=rng, dtype=torch.float64)
    z = torch.randn(40_000, 5, generator=rng, dtype=torch.float64)

    def generator(codes: Tensor) -> Tensor:
        return (codes @ g.T).view(-1, 2, 2, 2)

    terms = lip.bound_terms(
        lambda x: x.flatten(1) @ s.T + b,
        lambda x: x.flatten(1) @ t.T,
        generator,
        generator,
        z,
        spectral(s),
        spectral(t),
    )
    expected = float(((s - t) @ g).square().sum() + b.square().sum())
    standard_error = float(terms.lhs.square().std()) / math.sqrt(len(z))
    assert standard_error < 0.01 * expected
    assert abs(terms.lkd - expected) < 4 * standard_error
    # The same generator twice: delta is 0 and C alone bounds the left-hand side, reached once.
    assert terms.delta == 0 and terms.rhs == pytest.approx(float(terms.lhs.max()))


def test_generator_distance_measures_single_images_in_evaluation_mode() -> None:
    star = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Unflatten(1, (2, 2, 2)))
    other = nn.Sequential(nn.Linear(3, 8), nn.Unflatten(1, (2, 2, 2)))
    z = torch.randn(9, 3, generator=torch.Generator().manual_seed(11))
    expected = max((star.eval()(code[None]) - other(code[None])).norm().item() for code in z)
    assert lip.generator_distance(star.train(), other, z) == pytest.approx(expected, rel=1e-5)
    assert star.training and star[1].training and star[1].num_batches_tracked == 0


# Bad input


class Odd(nn.Sequential):
    """A subclass whose forward is not its children one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 7


def test_modules_without_a_rule_are_named() -> None:
    for module, name in [(nn.GELU(), "'1', a GELU"), (Odd(nn.ReLU()), "'1', a Odd")]:
        with pytest.raises(InputError, match=name):
            lip.network_bound(nn.Sequential(nn.Conv2d(3, 3, 1), module), (3, 4, 4))


def test_hooks_are_removed_when_the_network_fails() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(4, 3, 1)).train()
    with pytest.raises(InputError, match="cannot read 3x4x4 images"):
        lip.network_bound(model, (3, 4, 4))
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training


def test_networks_without_a_fixed_norm_are_refused() -> None:
    shared = nn.Conv2d(3, 3, 3, stride=2)
    no_statistics = nn.BatchNorm2d(3, track_running_stats=False)
    broken = nn.Conv2d(3, 3, 1)
    broken.weight.data[0] = math.nan
    broken_bn = nn.BatchNorm2d(3)
    broken_bn.weight.data[0] = math.inf
    for layers, message in [
        ((shared, shared), "^One Conv2d is used at two image sizes"),
        ((nn.Conv2d(3, 3, 1), no_statistics), "running statistics"),
        ((broken,), "weights hold NaN or infinite"),
        ((nn.Conv2d(3, 3, 1), broken_bn), "NaN or infinite"),
        ((nn.Conv2d(3, 3, 3, padding_mode="reflect", padding=1),), "padding_mode='reflect'"),
    ]:
        with pytest.raises(InputError, match=message):
            lip.network_bound(nn.Sequential(*layers), (3, 9, 9))
    with pytest.raises(InputError, match=r"^VGG-11 halves"):
        lip.network_bound(build("vgg-11", 3), (3, 8, 8))
    with pytest.raises(InputError, match="2 numbers for 3 channels"):
        lip.network_bound(nn.Sequential(nn.Flatten()), (3, 4, 4), std=(1.0, 1.0))
    with pytest.raises(InputError, match="std"):
        lip.network_bound(nn.Sequential(nn.Flatten()), (1, 4, 4), std=(0.0,))
    with pytest.raises(InputError, match="matrix"):
        lip.linear_norm(torch.zeros(3))
    with pytest.raises(InputError, match="weights hold NaN or infinite"):
        lip.linear_norm(torch.full((2, 2), math.nan))


def test_slopes_that_do_not_exist_are_refused() -> None:
    images = torch.zeros(2, 1, 2, 2)
    with pytest.raises(InputError, match="NaN or infinite"):
        lip.local_lipschitz(lambda x: x.flatten(1).sqrt(), images)
    with pytest.raises(InputError, match="NaN or infinite"):
        lip.local_lipschitz(lambda x: x.flatten(1) + math.nan, images)
    with pytest.raises(InputError, match="no images"):
        lip.local_lipschitz(lambda x: x.flatten(1), images[:0])
    with pytest.raises(InputError, match="iterations"):
        lip.local_lipschitz(lambda x: x.flatten(1), images, iterations=0)


def test_terms_of_things_that_do_not_fit_are_refused() -> None:
    def image(z: Tensor) -> Tensor:
        return z.view(-1, 1, 2, 2)

    def logits(x: Tensor) -> Tensor:
        return x.flatten(1)

    z = torch.rand(3, 4)
    with pytest.raises(InputError, match="at least one z"):
        lip.generator_distance(image, image, z[:0])
    with pytest.raises(InputError, match="equal image size"):
        lip.generator_distance(image, lambda codes: codes.view(-1, 4, 1, 1), z)
    with pytest.raises(InputError, match="same number of classes"):
        lip.bound_terms(logits, lambda x: x.flatten(1)[:, :2], image, image, z, 1.0, 1.0)
    for constants in ((-1.0, 1.0), (1.0, math.nan)):
        with pytest.raises(InputError, match="lipschitz_"):
            lip.bound_terms(logits, logits, image, image, z, *constants)
