"""The distillation losses against SciPy, a limit, and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr, softmax

from dfkd_lite import kd
from dfkd_lite.errors import InputError

Loss = Callable[..., torch.Tensor]
LOSSES: list[Loss] = [
    kd.kl_divergence,
    kd.mse_logits,
    kd.l1_logits,
    kd.jensen_shannon,
    kd.squared_distance,
]


def logits(rows: int, classes: int, seed: int, scale: float = 4.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("classes", [2, 10, 200])
def test_kl_is_scipys_relative_entropy_of_the_teacher(temperature: float, classes: int) -> None:
    student, teacher = logits(6, classes, 1), logits(6, classes, 2)
    p = softmax(teacher.numpy() / temperature, axis=1)
    q = softmax(student.numpy() / temperature, axis=1)
    expected = temperature**2 * rel_entr(p, q).sum(axis=1)
    each = kd.kl_divergence(student, teacher, temperature, reduce=False)
    np.testing.assert_allclose(each.numpy(), expected, rtol=1e-9)
    mean = kd.kl_divergence(student, teacher, temperature)
    assert mean.item() == pytest.approx(expected.mean(), rel=1e-9)


def test_kl_temperature_is_20_unless_said_otherwise() -> None:
    student, teacher = logits(3, 5, 3), logits(3, 5, 4)
    assert torch.equal(
        kd.kl_divergence(student, teacher), kd.kl_divergence(student, teacher, temperature=20.0)
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("classes", [2, 10, 200])
def test_jensen_shannon_is_scipys_distance_squared(temperature: float, classes: int) -> None:
    a, b = logits(6, classes, 5), logits(6, classes, 6)
    p = softmax(a.numpy() / temperature, axis=1)
    q = softmax(b.numpy() / temperature, axis=1)
    expected = jensenshannon(p, q, axis=1) ** 2  # base e: nats
    each = kd.jensen_shannon(a, b, temperature, reduce=False)
    np.testing.assert_allclose(each.numpy(), expected, rtol=1e-8)
    mean = kd.jensen_shannon(a, b, temperature)
    assert mean.item() == pytest.approx(expected.mean(), rel=1e-8)


def test_jensen_shannon_of_opposites_is_ln_2_and_is_finite() -> None:
    a, b = torch.tensor([[2000.0, 0.0, 0.0]]), torch.tensor([[0.0, 2000.0, 0.0]])
    assert kd.jensen_shannon(a, b).item() == pytest.approx(math.log(2), rel=1e-6)


def test_squared_errors_against_numpy() -> None:
    a, b = logits(5, 7, 7), logits(5, 7, 8)
    difference = a.numpy() - b.numpy()
    squares = np.linalg.norm(difference, axis=1) ** 2
    assert kd.mse_logits(a, b).item() == pytest.approx(squares.sum() / 35)
    assert kd.l1_logits(a, b).item() == pytest.approx(np.abs(difference).sum() / 35)
    assert kd.squared_distance(a, b).item() == pytest.approx(squares.mean())
    np.testing.assert_allclose(kd.squared_distance(a, b, reduce=False).numpy(), squares)


def test_hot_kl_tends_to_the_centred_squared_distance_over_2k() -> None:
    # Constants added to a row change nothing for KL: only the centred logits may appear.
    student, teacher = logits(4, 10, 9) + 3.0, logits(4, 10, 10) - 5.0
    difference = (student - teacher).numpy()
    centred = difference - difference.mean(axis=1, keepdims=True)
    limit = (centred**2).sum(axis=1) / 20
    errors = []
    for temperature in (1e2, 1e3, 1e4):
        value = kd.kl_divergence(student, teacher, temperature, reduce=False).numpy()
        errors.append(np.abs(value / limit - 1).max())
    assert errors[-1] < 2e-3
    # The next term of the expansion is of order 1 / tau.
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.2)
    assert errors[2] == pytest.approx(errors[1] / 10, rel=0.2)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_both_arguments(loss: Loss) -> None:
    a, b = logits(3, 4, 11, 1.0).requires_grad_(), logits(3, 4, 12, 1.0).requires_grad_()
    assert torch.autograd.gradcheck(loss, (a, b))
    assert torch.autograd.gradgradcheck(loss, (a, b))


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_logits_cost_nothing_and_others_do(loss: Loss) -> None:
    a = logits(3, 4, 13)
    assert loss(a, a).item() == pytest.approx(0, abs=1e-12)
    assert loss(a, a.roll(1, dims=1)).item() > 0.01


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "shapes", [((4, 3), (4, 2)), ((4, 3), (1, 3)), ((3,), (3,)), ((0, 3), (0, 3))]
)
def test_shapes_that_do_not_match_are_refused(
    loss: Loss, shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    with pytest.raises(InputError, match="same shape"):
        loss(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize("loss", [kd.kl_divergence, kd.jensen_shannon])
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_temperatures_that_make_no_sense_are_refused(loss: Loss, temperature: float) -> None:
    a = torch.zeros(2, 3)
    with pytest.raises(InputError, match="temperature"):
        loss(a, a, temperature)
