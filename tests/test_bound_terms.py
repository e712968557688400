"""Both sides of Eqs. 18 to 22 on networks whose Lipschitz constants are known."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from dense import spectral
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dfkd_lite.bound_terms import bound_terms, generator_distance
from dfkd_lite.errors import InputError


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
    terms = bound_terms(student, teacher, generator, star, z, s, t)
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

    terms = bound_terms(student, teacher, generator, star, z, 2.0, 3.0)
    assert (terms.C, terms.delta) == (pytest.approx(20), pytest.approx(1))
    assert terms.rhs == pytest.approx(25) and terms.lkd_bound == pytest.approx(625)
    np.testing.assert_allclose(terms.lhs.numpy(), terms.rhs)
    assert terms.lkd == pytest.approx(terms.lkd_bound)
    # With constants any smaller the inequality would be false.
    less = bound_terms(student, teacher, generator, star, z, 2.0, 2.9)
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

    terms = bound_terms(
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
    assert generator_distance(star.train(), other, z) == pytest.approx(expected, rel=1e-5)
    assert star.training and star[1].training and star[1].num_batches_tracked == 0


def test_terms_of_things_that_do_not_fit_are_refused() -> None:
    def image(z: Tensor) -> Tensor:
        return z.view(-1, 1, 2, 2)

    def logits(x: Tensor) -> Tensor:
        return x.flatten(1)

    z = torch.rand(3, 4)
    with pytest.raises(InputError, match="at least one z"):
        generator_distance(image, image, z[:0])
    with pytest.raises(InputError, match="equal image size"):
        generator_distance(image, lambda codes: codes.view(-1, 4, 1, 1), z)
    with pytest.raises(InputError, match="same number of classes"):
        bound_terms(logits, lambda x: x.flatten(1)[:, :2], image, image, z, 1.0, 1.0)
    for constants in ((-1.0, 1.0), (1.0, math.nan)):
        with pytest.raises(InputError, match="lipschitz_"):
            bound_terms(logits, logits, image, image, z, *constants)
