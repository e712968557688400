"""Norms of single layers against the singular values of dense matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from dense import dense, jacobian, spectral
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dfkd_lite.errors import InputError
from dfkd_lite.spectral import (
    average_pool_norm,
    batch_norm_norm,
    conv_norm,
    linear_norm,
    max_pool_norm,
)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (10, 4)])
def test_linear_norm_is_the_largest_singular_value(shape: tuple[int, int]) -> None:
    torch.manual_seed(sum(shape))
    weight = torch.randn(shape, dtype=torch.float64)
    assert linear_norm(weight) == pytest.approx(spectral(weight), rel=1e-12)


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
    assert conv_norm(conv, size) == pytest.approx(spectral(dense(conv, *size)), rel=1e-9)


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
    assert conv_norm(conv, (7, 6)) == pytest.approx(spectral(dense(conv, 7, 6)), rel=1e-6)


def test_conv_norm_of_a_wide_layer() -> None:
    # Its largest singular values crowd together, where plain power iteration would be stuck.
    torch.manual_seed(2)
    conv = nn.Conv2d(24, 24, 3, padding=1)
    assert conv_norm(conv, (7, 7)) == pytest.approx(spectral(dense(conv, 7, 7)), rel=1e-9)


def test_conv_norm_of_a_constant_image() -> None:
    # A positive kernel stretches smooth images most: towards the kernel's sum as the image grows.
    conv = nn.Conv2d(1, 1, 3, padding=1)
    nn.init.constant_(conv.weight, 1 / 9)
    norms = [conv_norm(conv, (side, side)) for side in (4, 8, 32)]
    assert norms == sorted(norms) and norms[0] < 0.8 and 0.98 < norms[-1] < 1


def test_conv_norm_of_nothing_is_0_and_of_too_few_iterations_is_refused() -> None:
    conv = nn.Conv2d(2, 2, 3)
    with pytest.raises(InputError, match="not settled"):
        conv_norm(conv, (8, 8), iterations=2)
    nn.init.zeros_(conv.weight)
    assert conv_norm(conv, (8, 8)) == 0


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_norm_is_that_of_its_jacobian(affine: bool) -> None:
    bn: Any = nn.BatchNorm2d(3, affine=affine).double().eval()
    bn.running_var.copy_(torch.tensor([0.5, 2.0, 0.0]))
    if affine:
        bn.weight.data = torch.tensor([-3.0, 1.0, 0.001], dtype=torch.float64)
    point = torch.randn(3, 2, 2, dtype=torch.float64)
    assert batch_norm_norm(bn) == pytest.approx(spectral(jacobian(bn, point)), rel=1e-12)


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
    assert max(slopes) == pytest.approx(max_pool_norm(pool, (side, side), (out[2], out[3])))


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
    assert average_pool_norm(pool, (5, 7)) == pytest.approx(expected, rel=1e-6)


def test_global_average_pooling_shrinks_by_the_root_of_the_area() -> None:
    norm = average_pool_norm(nn.AdaptiveAvgPool2d(1), (4, 9))
    assert norm == pytest.approx(1 / 6, rel=1e-12)
