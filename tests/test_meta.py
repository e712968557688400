"""MAML and its first-order forms against closed forms, plain loops and finite differences."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dfkd_lite.errors import InputError
from dfkd_lite.meta import (
    KINDS,
    MetaConfig,
    MetaLearner,
    Task,
    exact_gradient,
    first_order_gradient,
)

LR = 0.07


def normal(*shape: int, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


# ---------------------------------------------------------------- a quadratic: closed forms


class Point(nn.Module):
    """f(z) = theta + 0 z: the loss sees theta alone."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.clone())

    def forward(self, z: Tensor) -> Tensor:
        return self.theta + 0 * z


SIZE = 4
THETA, TARGET, Z = normal(SIZE, seed=2), normal(SIZE, seed=3), normal(SIZE, seed=4)
_ROOT = normal(SIZE, SIZE, seed=5)
CURVE = _ROOT @ _ROOT.T + torch.diag(torch.arange(SIZE).double())  # A: positive definite


def quadratic(call: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    gap = call(z) - TARGET
    return 0.5 * gap @ CURVE @ gap


def gap_after(steps: int) -> np.ndarray:
    """theta_k - a = (I - lr A)^k (theta_0 - a)."""
    shrink = np.linalg.matrix_power(np.eye(SIZE) - LR * CURVE.numpy(), steps)
    return shrink @ (THETA - TARGET).numpy()


def closed_form(kind: str, steps: int) -> np.ndarray:
    curve = CURVE.numpy()
    if kind == "maml":
        shrink = np.linalg.matrix_power(np.eye(SIZE) - LR * curve, steps)
        return shrink.T @ curve @ gap_after(steps)
    if kind == "first-order":
        return curve @ gap_after(steps)
    if kind == "first-order-sum":
        return sum(curve @ gap_after(j) for j in range(steps))
    return THETA.numpy() - (gap_after(steps) + TARGET.numpy())  # reptile


def gradient_of(
    kind: str, module: nn.Module, task: Task, z: Tensor, steps: int, lr_z: float = 0.0
) -> tuple[list[np.ndarray], Tensor, tuple[float, ...]]:
    config = MetaConfig(kind=kind, steps=steps, lr=LR, lr_z=lr_z, optimiser="sgd")
    if kind == "maml":
        found = exact_gradient(module, task, z, config)
    else:
        found = first_order_gradient(module, copy.deepcopy(module), task, z, config)
    return [p.grad.numpy().copy() for p in module.parameters()], found.z, found.losses


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("kind", ["maml", "first-order", "first-order-sum", "reptile"])
def test_gradients_on_a_quadratic_are_the_closed_forms(kind: str, steps: int) -> None:
    module = Point(THETA)
    (grad,), z, losses = gradient_of(kind, module, quadratic, Z, steps, lr_z=0.1)
    np.testing.assert_allclose(grad, closed_form(kind, steps), rtol=1e-9)
    assert torch.equal(module.theta, THETA)  # only a gradient, no step
    assert torch.equal(z, Z)  # the loss does not feel z
    gaps = [gap_after(j) for j in range(steps)]
    expected = [0.5 * g @ CURVE.numpy() @ g for g in gaps]  # before each inner step
    np.testing.assert_allclose(losses, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["maml", "first-order", "first-order-sum", "reptile"])
def test_old_gradients_are_replaced(kind: str) -> None:
    module = Point(THETA)
    module.theta.grad = torch.ones(SIZE).double()
    clone = copy.deepcopy(module)
    clone.theta.grad = torch.ones(SIZE).double()
    config = MetaConfig(kind=kind, steps=2, lr=LR, optimiser="sgd")
    if kind == "maml":
        exact_gradient(module, quadratic, Z, config)
    else:
        first_order_gradient(module, clone, quadratic, Z, config)
    np.testing.assert_allclose(module.theta.grad.numpy(), closed_form(kind, 2), rtol=1e-9)


def adam_inner(steps: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """theta_0..theta_k and gradients g_0..g_{k-1} of Adam written out (betas 0.5, 0.999)."""
    theta, m, v = THETA.numpy().copy(), np.zeros(SIZE), np.zeros(SIZE)
    path, grads = [theta.copy()], []
    for t in range(1, steps + 1):
        g = CURVE.numpy() @ (theta - TARGET.numpy())
        m, v = 0.5 * m + 0.5 * g, 0.999 * v + 0.001 * g * g
        theta = theta - LR * (m / (1 - 0.5**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        path.append(theta.copy())
        grads.append(g)
    return path, grads


def test_first_order_forms_with_adams_inner_steps() -> None:
    path, grads = adam_inner(3)
    expected = {
        "first-order": CURVE.numpy() @ (path[-1] - TARGET.numpy()),
        "first-order-sum": sum(grads),
        "reptile": path[0] - path[-1],
    }
    for kind, gradient in expected.items():
        module = Point(THETA)
        config = MetaConfig(kind=kind, steps=3, lr=LR)
        first_order_gradient(module, copy.deepcopy(module), quadratic, Z, config)
        np.testing.assert_allclose(module.theta.grad.numpy(), gradient, rtol=1e-6, err_msg=kind)


# ---------------------------------------------------------------- the latent adapts too


class Small(nn.Module):
    """Two layers and a kink-free bend: 3 -> 4 -> 2."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.double()
        for i, p in enumerate(self.parameters()):
            p.data.copy_(0.7 * normal(*p.shape, seed=seed + i))

    def forward(self, z: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(z)))


def bent(call: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    return (call(z) - 1).square().mean() + 0.3 * z.square().sum() + call(z).sin().mean()


def adapt(
    module: nn.Module, z: Tensor, steps: int, lr_z: float
) -> tuple[nn.Module, Tensor, list[list[Tensor]]]:
    """Plain gradient descent on a copy, and the gradients met on the way."""
    module, z, grads = copy.deepcopy(module), z.clone(), []
    for _ in range(steps):
        z.requires_grad_()
        found = torch.autograd.grad(bent(module, z), [*module.parameters(), z])
        grads.append(list(found[:-1]))
        with torch.no_grad():
            for p, g in zip(module.parameters(), found[:-1], strict=True):
                p -= LR * g
        z = (z - lr_z * found[-1]).detach()
    return module, z, grads


@pytest.mark.parametrize("steps", [1, 3])
def test_exact_gradient_against_finite_differences(steps: int) -> None:
    module, z, lr_z, h = Small(), normal(5, 3), 0.2, 1e-5

    def after(module: nn.Module) -> float:
        adapted, adapted_z, _ = adapt(module, z, steps, lr_z)
        return bent(adapted, adapted_z).item()

    grads, adapted_z, losses = gradient_of("maml", module, bent, z, steps, lr_z)
    probe = copy.deepcopy(module)
    for p, grad in zip(probe.parameters(), grads, strict=True):
        for index in np.ndindex(p.shape):
            centre = p.data[index].item()
            p.data[index] = centre + h
            high = after(probe)
            p.data[index] = centre - h
            low = after(probe)
            p.data[index] = centre
            assert grad[index] == pytest.approx((high - low) / (2 * h), rel=1e-5, abs=1e-8)
    torch.testing.assert_close(adapted_z, adapt(module, z, steps, lr_z)[1])
    assert len(losses) == steps and losses[0] == pytest.approx(bent(module, z).item())
    shallow = gradient_of("first-order", Small(), bent, z, steps, lr_z)[0]
    assert any(np.abs(a - b).max() > 1e-2 for a, b in zip(grads, shallow, strict=True))


@pytest.mark.parametrize("kind", ["first-order", "first-order-sum", "reptile"])
def test_first_order_forms_on_a_bent_module(kind: str) -> None:
    module, z, lr_z = Small(), normal(5, 3), 0.2
    grads, adapted_z, _ = gradient_of(kind, module, bent, z, 3, lr_z)
    adapted, expected_z, path = adapt(module, z, 3, lr_z)
    torch.testing.assert_close(adapted_z, expected_z)
    if kind == "first-order":
        expected = torch.autograd.grad(bent(adapted, expected_z), list(adapted.parameters()))
    elif kind == "first-order-sum":
        expected = [sum(gs) for gs in zip(*path, strict=True)]
    else:
        pairs = zip(module.parameters(), adapted.parameters(), strict=True)
        expected = [(a - b).detach() for a, b in pairs]
    for grad, e in zip(grads, expected, strict=True):
        np.testing.assert_allclose(grad, e.numpy(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_latent_moves_with_its_own_rate_and_the_given_one_is_kept(kind: str) -> None:
    """L = z^2/2 + theta: dL/dz = z, whatever theta is."""

    def task(call: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        return 0.5 * (z * z).sum() + call(z).sum()

    z = Z.clone()
    config = MetaConfig(kind=kind, steps=3, lr=LR, lr_z=0.2, optimiser="sgd")
    found = MetaLearner(Point(THETA), config).step(task, z)
    assert torch.equal(z, Z) and not z.requires_grad
    if kind != "none":  # "none" has Adam as its only optimiser
        torch.testing.assert_close(found.z, 0.8**3 * Z)
    assert not found.z.requires_grad


# ---------------------------------------------------------------- outer steps


def outer(
    gradient: Callable[[Tensor], np.ndarray], lr: float, rounds: int, gamma: float = 0.0
) -> Tensor:
    """torch's Adam on the gradients of the closed form, with that of gamma ||theta||^2."""
    theta = nn.Parameter(THETA.clone())
    adam = torch.optim.Adam([theta], lr=lr, betas=(0.5, 0.999))
    for _ in range(rounds):
        theta.grad = torch.from_numpy(gradient(theta.detach())) + 2 * gamma * theta.detach()
        adam.step()
    return theta.detach()


def maml_gradient(steps: int) -> Callable[[Tensor], np.ndarray]:
    shrink = np.linalg.matrix_power(np.eye(SIZE) - LR * CURVE.numpy(), steps)
    return lambda theta: shrink.T @ CURVE.numpy() @ shrink @ (theta - TARGET).numpy()


def sum_gradient(steps: int) -> Callable[[Tensor], np.ndarray]:
    step = np.eye(SIZE) - LR * CURVE.numpy()
    powers = sum(np.linalg.matrix_power(step, j) for j in range(steps))
    return lambda theta: CURVE.numpy() @ powers @ (theta - TARGET).numpy()


def reptile_gradient(steps: int) -> Callable[[Tensor], np.ndarray]:
    step = np.eye(SIZE) - LR * CURVE.numpy()
    moved = np.eye(SIZE) - np.linalg.matrix_power(step, steps)
    return lambda theta: moved @ (theta - TARGET).numpy()


@pytest.mark.parametrize(
    ("kind", "gradient"),
    [
        ("maml", maml_gradient(2)),
        ("first-order-sum", sum_gradient(2)),
        ("reptile", reptile_gradient(2)),
    ],
)
@pytest.mark.parametrize(
    ("options", "lr"),
    [({}, 2 * LR), ({"outer_lr": 0.011}, 0.011), ({"outer_lr": 0.011, "gamma": 0.4}, 0.011)],
)
def test_outer_steps_are_adams_on_the_meta_gradient(
    kind: str, gradient: Callable[[Tensor], np.ndarray], options: dict[str, float], lr: float
) -> None:
    module = Point(THETA)
    config = MetaConfig(kind=kind, steps=2, lr=LR, optimiser="sgd", **options)
    learner = MetaLearner(module, config)
    for _ in range(4):
        learner.step(quadratic, Z)
    expected = outer(gradient, lr, 4, options.get("gamma", 0.0))
    torch.testing.assert_close(module.theta.detach(), expected, rtol=1e-9, atol=1e-12)


def test_kind_none_is_plain_adam_on_the_module_itself() -> None:
    module, reference = Small(), Small()
    learner = MetaLearner(module, MetaConfig(kind="none", steps=3, lr=0.02, lr_z=0.05))
    adam = torch.optim.Adam(reference.parameters(), lr=0.02, betas=(0.5, 0.999))
    for seed in (1, 2):  # the module's Adam goes on, each task's z begins anew
        z = normal(5, 3, seed=seed)
        found = learner.step(bent, z)
        own = z.clone().requires_grad_()
        adam_z = torch.optim.Adam([own], lr=0.05, betas=(0.5, 0.999))
        losses = []
        for _ in range(3):
            adam.zero_grad()
            adam_z.zero_grad()
            loss = bent(reference, own)
            losses.append(loss.item())
            loss.backward()
            adam.step()
            adam_z.step()
        torch.testing.assert_close(found.z, own.detach())
        assert found.losses == pytest.approx(losses)
    for p, q in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_defaults_are_those_of_table_1() -> None:
    config = MetaConfig()
    assert (config.kind, config.steps, config.lr, config.lr_z) == (
        "first-order-sum",
        2,
        0.005,
        0.015,
    )
    module = Point(THETA)
    MetaLearner(module).step(quadratic, Z)
    moved = (module.theta.detach() - THETA).abs()  # Adam's first step: the rate itself
    torch.testing.assert_close(moved, torch.full((SIZE,), 0.01).double(), rtol=1e-4, atol=0.0)


def test_learning_from_a_task_lowers_its_loss() -> None:
    for kind in KINDS:
        module = Small()
        z = normal(5, 3)
        learner = MetaLearner(module, MetaConfig(kind=kind, steps=2, lr=0.02, optimiser="sgd"))
        before = bent(module, z).item()
        for _ in range(30):
            found = learner.step(bent, z)
        assert bent(module, z).item() < before - 0.1, kind
        assert len(found.losses) == 2


# ---------------------------------------------------------------- buffers


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.double()

    def forward(self, z: Tensor) -> Tensor:
        return self.norm(self.linear(z))


@pytest.mark.parametrize("kind", KINDS)
def test_running_statistics_are_those_of_the_passes_made(kind: str) -> None:
    module, z = Normed(), normal(6, 3)
    task: Task = lambda call, z: (call(z) - 1).square().mean()  # noqa: E731
    # z and theta (nearly) stand still, so that each pass shows the same batch
    tiny = MetaConfig(kind=kind, steps=3, lr=1e-12, lr_z=0.0, optimiser="sgd")
    with torch.no_grad():
        h = module.linear(z)
    MetaLearner(module, tiny).step(task, z)
    passes = int(module.norm.num_batches_tracked)
    assert passes == {"maml": 4, "first-order": 4}.get(kind, 3)
    kept = 0.9**passes
    torch.testing.assert_close(module.norm.running_mean, (1 - kept) * h.mean(0))
    torch.testing.assert_close(module.norm.running_var, kept + (1 - kept) * h.var(0))
    assert not module.norm.running_mean.requires_grad


# ---------------------------------------------------------------- bad options


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "maml"},  # the default optimiser is Adam
        {"kind": "maml", "optimiser": "adam"},
        {"steps": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"lr_z": -1.0},
        {"outer_lr": -0.1},
        {"gamma": -0.1},
    ],
)
def test_options_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(InputError):
        MetaConfig(**options)


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(InputError, match="reptile"):
        MetaConfig(kind="reptil")
    with pytest.raises(InputError, match="first-order"):
        MetaConfig(kind="firstorder")
    with pytest.raises(InputError, match="adam"):
        MetaConfig(optimiser="adm")
    with pytest.raises(InputError, match="sgd"):
        MetaConfig(kind="maml", optimiser="adam")
