"""Checks assignment 3: one MAML step (Eqs. 7 and 8)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_lab.trained import trained_teacher
from dfkd_lite.data import load
from dfkd_lite.generator import AttentionGenerator, GeneratorConfig
from dfkd_lite.inversion import class_loss
from dfkd_lite.meta import MetaConfig
from dfkd_lite.meta import first_order_gradient as package_adapts
from dfkd_lite.networks import NetworkSpec, normalise
from dfkd_lite.presets import preset

from .checking import Question, drawn, expect, require

Loss = Callable[[Tensor], Tensor]
MetaGradient = Callable[[Loss, Tensor, float, int], Tensor]


# --- Tasks -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bowl:
    """Computes L(theta) = 1/2 (theta - a)' A (theta - a), for which all answers have formulas."""

    A: Tensor  # (D, D), symmetric
    a: Tensor  # (D,)

    def __call__(self, theta: Tensor) -> Tensor:
        return 0.5 * (theta - self.a) @ self.A @ (theta - self.a)

    def shrink(self, eta: float, steps: int) -> Tensor:
        """Return (I - eta A)^k, by which k steps multiply the distance to the minimum."""
        return torch.linalg.matrix_power(torch.eye(len(self.a)) - eta * self.A, steps)

    def adapted(self, theta: Tensor, eta: float, steps: int) -> Tensor:
        """Return theta_k, the weights after k steps."""
        return self.a + self.shrink(eta, steps) @ (theta - self.a)

    def first_order(self, theta: Tensor, eta: float, steps: int) -> Tensor:
        """Return the first-order gradient A (I - eta A)^k (theta - a)."""
        return self.A @ self.shrink(eta, steps) @ (theta - self.a)

    def exact(self, theta: Tensor, eta: float, steps: int) -> Tensor:
        """Return the exact gradient (I - eta A)^k A (I - eta A)^k (theta - a)."""
        return self.shrink(eta, steps) @ self.first_order(theta, eta, steps)


def bowl(seed: int, length: int = 3) -> Bowl:
    """Draw a task: second derivatives between 0.5 and 3, in directions that are no axes."""
    directions = torch.linalg.qr(drawn(length, length, seed=seed)).Q
    A = directions @ torch.linspace(0.5, 3.0, length).diag() @ directions.T
    return Bowl((A + A.T) / 2, drawn(length, seed=seed + 1000))


def softmax_fit(seed: int, count: int = 12, classes: int = 3, inputs: int = 5) -> Loss:
    """Return the cross-entropy of a linear classifier theta (classes, inputs) on drawn data."""
    x = 2 * drawn(count, inputs, seed=seed)
    y = torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))
    return lambda theta: F.cross_entropy(x @ theta.T, y)


# --- What questions 1 to 3 ask for, done ------------------------------------------------------


def adapt(loss: Loss, theta: Tensor, eta: float, steps: int) -> Tensor:
    """Answer question 1, for the questions after it: theta after some steps of Eq. 8."""
    adapted = theta.detach().clone()
    for _ in range(steps):
        adapted = adapted - eta * _gradient(loss, adapted)
    return adapted


def first_order_gradient(loss: Loss, theta: Tensor, eta: float, steps: int) -> Tensor:
    """Answer question 2, for the questions after it: the first-order meta-gradient."""
    return _gradient(loss, adapt(loss, theta, eta, steps))


def exact_gradient(loss: Loss, theta: Tensor, eta: float, steps: int) -> Tensor:
    """Answer question 3, for the questions after it: MAML's gradient, by the chain rule."""
    return _chained(loss, _path(loss, theta, eta, steps), eta, steps)


def _gradient(loss: Loss, theta: Tensor) -> Tensor:
    point = theta.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(point), point)[0]


def _path(loss: Loss, theta: Tensor, eta: float, steps: int) -> list[Tensor]:
    """Return theta_0 to theta_k."""
    path = [theta.detach().clone()]
    for _ in range(steps):
        path.append(path[-1] - eta * _gradient(loss, path[-1]))
    return path


def _chained(loss: Loss, path: list[Tensor], eta: float, factors: int) -> Tensor:
    """Multiply the gradient at the end by (I - eta H) of the last ``factors`` inner steps."""
    gradient = _gradient(loss, path[-1])
    steps = len(path) - 1
    for point in reversed(path[steps - factors : steps]):
        hessian = torch.autograd.functional.hessian(loss, point)
        size = point.numel()
        product = hessian.reshape(size, size) @ gradient.flatten()
        gradient = gradient - eta * product.view_as(gradient)
    return gradient


def _times(steps: int) -> str:
    return f"{steps} step" if steps == 1 else f"{steps} steps"


def _unchanged(theta: Tensor, before: Tensor, asks: bool = False) -> None:
    """Require that the start keeps its values, has no gradient, and asks for one only as before."""
    require(
        torch.equal(theta.detach(), before),
        "the start `theta` was changed: work on a copy (`theta.detach()` alone shares its memory "
        "with `theta`), or make new tensors.",
    )
    require(
        theta.grad is None,
        "the start `theta` was left with a `.grad`: take gradients of a copy that is detached.",
    )
    require(
        theta.requires_grad == asks,
        "the start `theta` now asks for gradients, or does so no longer: work on a copy.",
    )


# --- Questions 1 to 3 -------------------------------------------------------------------------


@Question
def q1(answer: Callable[..., Tensor]) -> None:
    """Check steps of Eq. 8, on a copy of the start."""
    for steps in (1, 3):
        compare_adapted(answer, bowl(1), drawn(3, seed=2), eta=0.2, steps=steps, kept=True)


def compare_adapted(
    answer: Callable[..., Tensor],
    loss: Loss,
    theta: Tensor,
    eta: float,
    steps: int,
    kept: bool = False,
) -> None:
    """Compare the adapted weights; with ``kept`` check that they are detached and theta stays."""
    path = _path(loss, theta, eta, steps)
    wanted = loss.adapted(path[0], eta, steps) if isinstance(loss, Bowl) else path[-1]
    own = theta.detach().clone().requires_grad_(theta.requires_grad)
    got = answer(loss, own, eta, steps)
    expect(
        got,
        wanted,
        f"the weights after {_times(steps)}",
        {
            "steps up the loss, not down": _path(loss, theta, -eta, steps)[-1],
            "one step only": path[min(1, steps)],
            "the start itself, no step taken": path[0],
            "the gradient of the start in every step": path[0]
            - eta * steps * _gradient(loss, path[0]),
            "the gradient alone, without the learning rate": path[0] - _gradient(loss, path[0]),
        },
    )
    if kept:
        _unchanged(own, path[0], theta.requires_grad)
        require(
            not got.requires_grad,
            "what comes back still asks for gradients: is a `detach` missing at the end?",
        )


@Question
def q2(answer: MetaGradient) -> None:
    """Check the gradient at the adapted weights."""
    for steps in (1, 3):
        compare_first_order(answer, bowl(3), drawn(3, seed=4), eta=0.2, steps=steps)


def compare_first_order(
    answer: MetaGradient, loss: Loss, theta: Tensor, eta: float, steps: int
) -> None:
    """Compare the first-order meta-gradient, and require that the start stays as it is."""
    path = _path(loss, theta, eta, steps)
    gradients = [_gradient(loss, point) for point in path]
    own = theta.clone()
    expect(
        answer(loss, own, eta, steps),
        loss.first_order(theta, eta, steps) if isinstance(loss, Bowl) else gradients[-1],
        f"the first-order gradient after {_times(steps)}",
        {
            "the gradient at the start, not at the adapted weights": gradients[0],
            "the exact gradient": _chained(loss, path, eta, steps),
            "Reptile's difference θ - θ'": path[0] - path[-1],
            "the gradients of all inner steps added up": torch.stack(gradients[:-1]).sum(0),
            "the gradient before the last step": gradients[-2],
        },
    )
    _unchanged(own, path[0])


@Question
def q3(answer: MetaGradient) -> None:
    """Check the gradient through the inner steps."""
    for steps in (1, 3):
        compare_exact(answer, bowl(5), drawn(3, seed=6), eta=0.2, steps=steps)


def compare_exact(answer: MetaGradient, loss: Loss, theta: Tensor, eta: float, steps: int) -> None:
    """Compare MAML's gradient; of a loss that is no bowl by the chain rule, with Hessians."""
    path = _path(loss, theta, eta, steps)
    own = theta.clone()
    expect(
        answer(loss, own, eta, steps),
        loss.exact(theta, eta, steps)
        if isinstance(loss, Bowl)
        else _chained(loss, path, eta, steps),
        f"the exact gradient through {_times(steps)}",
        {
            "the gradient at the start, not at the adapted weights": _gradient(loss, path[0]),
            "inner steps that cannot be differentiated (`create_graph`), "
            "so it is the first-order gradient": _gradient(loss, path[-1]),
            "only the last inner step in the graph": _chained(loss, path, eta, 1),
            "one inner step only": _chained(loss, path[:2], eta, 1),
            "steps up the loss, not down": _chained(
                loss, _path(loss, theta, -eta, steps), -eta, steps
            ),
        },
    )
    _unchanged(own, path[0])


# --- Questions 4 and 5 ------------------------------------------------------------------------


@Question
def q4(answer: Callable[..., Tensor]) -> None:
    """Check a step downhill by the mean of the meta-gradients over the tasks."""
    tasks = [bowl(seed) for seed in (7, 8, 9)]
    compare_outer(answer, exact_gradient, tasks, drawn(3, seed=10), 0.1, 2, outer_lr=0.4)


def compare_outer(
    answer: Callable[..., Tensor],
    meta_gradient: MetaGradient,
    losses: list[Any],
    theta: Tensor,
    eta: float,
    steps: int,
    outer_lr: float,
) -> None:
    """Compare one outer step, for which the answer gets a meta-gradient of the checks' own."""
    gradients = [meta_gradient(loss, theta, eta, steps) for loss in losses]
    if meta_gradient is exact_gradient:
        known = [loss.exact(theta, eta, steps) for loss in losses if isinstance(loss, Bowl)]
        gradients = known or gradients
    mean = torch.stack(gradients).mean(0)
    outer = [meta_gradient(loss, theta, outer_lr, steps) for loss in losses]
    in_turn = theta
    for loss in losses:
        in_turn = in_turn - outer_lr * meta_gradient(loss, in_turn, eta, steps)
    own = theta.clone()
    expect(
        answer(meta_gradient, list(losses), own, eta, steps, outer_lr),
        theta - outer_lr * mean,
        f"the start after an outer step over {len(losses)} tasks",
        {
            "the sum over the tasks, not the mean": theta - outer_lr * mean * len(losses),
            "the outer learning rate in the inner steps": theta
            - outer_lr * torch.stack(outer).mean(0),
            "the inner learning rate in the outer step": theta - eta * mean,
            "a step up, not down": theta + outer_lr * mean,
            "the mean gradient itself, without a step": mean,
            "the first task only": theta - outer_lr * gradients[0],
            "the last task only": theta - outer_lr * gradients[-1],
            "one outer step after the other, task by task": in_turn,
        },
    )
    _unchanged(own, theta)


@Question
def q5(answer: Callable[..., Tensor]) -> None:
    """Check a step towards the mean of the adapted weights."""
    tasks = [bowl(seed) for seed in (11, 12, 13)]
    compare_reptile(answer, tasks, drawn(3, seed=14), eta=0.2, steps=2, outer_lr=0.3)


def compare_reptile(
    answer: Callable[..., Tensor],
    losses: list[Any],
    theta: Tensor,
    eta: float,
    steps: int,
    outer_lr: float,
) -> None:
    """Compare one outer step of Reptile."""
    ends = torch.stack(
        [
            loss.adapted(theta, eta, steps)
            if isinstance(loss, Bowl)
            else _path(loss, theta, eta, steps)[-1]
            for loss in losses
        ]
    )
    outer = torch.stack([adapt(loss, theta, outer_lr, steps) for loss in losses])
    way = ends.mean(0) - theta
    in_turn = theta
    for loss in losses:
        in_turn = in_turn + outer_lr * (adapt(loss, in_turn, eta, steps) - in_turn)
    own = theta.clone()
    expect(
        answer(list(losses), own, eta, steps, outer_lr),
        theta + outer_lr * way,
        f"the start after a step of Reptile over {len(losses)} tasks",
        {
            "the sign the other way round: away from the adapted weights": theta - outer_lr * way,
            "the sum over the tasks, not the mean": theta + outer_lr * way * len(losses),
            "the outer learning rate in the inner steps": theta
            + outer_lr * (outer.mean(0) - theta),
            "the mean of the adapted weights itself": ends.mean(0),
            "the mean difference itself, without the start": way,
            "the start left out of the differences": theta + outer_lr * ends.mean(0),
            "the last task only": theta + outer_lr * (ends[-1] - theta),
            "one outer step after the other, task by task": in_turn,
        },
    )
    _unchanged(own, theta)


# --- Question 6 -------------------------------------------------------------------------------


def small_generator(seed: int, size: int = 16, channels: int = 1) -> AttentionGenerator:
    """Make an untrained generator of the package in training mode; z has 16 numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = GeneratorConfig(z_dim=16, width=8)
        return AttentionGenerator(size, channels, config).train()


@cache
def _teacher() -> tuple[nn.Module, NetworkSpec]:
    teacher, spec = trained_teacher(load("digits"), preset("lite"), 0)
    return teacher.requires_grad_(False), spec


def class_task(labels: Tensor) -> Loss:
    """Return L_cls of Eq. 16: how far images (B, 1, 16, 16) are from these classes (B,)."""
    teacher, spec = _teacher()
    return lambda images: class_loss(teacher(normalise(images, spec)), labels)


@Question
def q6(answer: Callable[..., Any]) -> None:
    """Check Eq. 8 on a copy of the generator."""
    loss, z = class_task(torch.arange(8)), drawn(8, 16, seed=17)
    compare_generator(answer, small_generator(3), loss, z, eta=0.01, steps=3, kept=True)


def compare_generator(
    answer: Callable[..., Any],
    generator: nn.Module,
    loss: Loss,
    z: Tensor,
    eta: float,
    steps: int,
    kept: bool = False,
) -> None:
    """Compare weights and losses with the package's; with ``kept`` check the generator stays."""
    weights, losses = _packaged(generator, loss, z, eta, steps)
    names = [name for name, _ in generator.named_parameters()]
    before = copy.deepcopy(generator.state_dict())
    start = torch.cat([p.detach().flatten() for p in generator.parameters()]).clone()
    mode = "evaluation" if generator.training else "training"
    wrong = {
        "one step only": _by_hand(generator, loss, z, eta, 1),
        "gradients of all steps so far: is `zero_grad` missing?": _by_hand(
            generator, loss, z, eta, steps, clear=False
        ),
        "steps up the loss, not down": _by_hand(generator, loss, z, -eta, steps),
        f"the generator in {mode} mode": _by_hand(generator, loss, z, eta, steps, other_mode=True),
    }
    one_more = _by_hand(generator, loss, z, eta, steps + 1)[1]
    modes = [module.training for module in generator.modules()]
    for parameter in generator.parameters() if kept else ():
        parameter.grad = torch.ones_like(parameter)  # another caller's gradient: it has to stay

    got = answer(generator, loss, z.clone(), eta, steps)
    require(got is not None, "nothing came back. Is there a `return`?")
    pair = isinstance(got, tuple) and len(got) == 2
    require(pair, "two things should come back: the weights by name, and the losses.")
    adapted, found = got
    named = isinstance(adapted, dict) and sorted(adapted) == sorted(names)
    require(named, "the weights should be a dictionary with the names of `named_parameters`.")
    require(isinstance(found, list | tuple), "the losses should be a list.")
    expect(
        torch.cat([torch.as_tensor(adapted[name]).detach().flatten() for name in names]),
        weights,
        f"the weights after {_times(steps)}",
        {"no step at all: these are the weights of the start": start}
        | {name: values for name, (values, _) in wrong.items()},
        rtol=1e-3,
        atol=1e-5,
    )
    expect(
        torch.tensor([float(value) for value in found]),
        losses,
        "the losses",
        {
            "the loss after each step, not before": one_more[1:],
            "the loss after the last step as well": one_more,
            "the last loss alone": losses[-1:],
        },
        rtol=1e-3,
    )
    if kept:
        _same_generator(generator, before)
        same = [module.training for module in generator.modules()] == modes
        require(same, "the generator itself came back in another mode.")
        require(
            all(adapted[name].is_leaf for name in names)
            and not any(isinstance(v, Tensor) and v.requires_grad for v in found),
            "what comes back still hangs on the graph: detach the weights, and take the losses "
            "as numbers (`.item()`).",
        )


def _packaged(
    generator: nn.Module, loss: Loss, z: Tensor, eta: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Return the adapted weights, all in one, and the losses, by the package's inner loop."""
    clone, other = copy.deepcopy(generator), copy.deepcopy(generator)
    config = MetaConfig(kind="reptile", optimiser="sgd", steps=steps, lr=eta, lr_z=0)
    adaptation = package_adapts(other, clone, lambda call, z: loss(call(z)), z, config)
    weights = torch.cat([p.detach().flatten() for p in clone.parameters()])
    return weights, torch.tensor(adaptation.losses)


def _by_hand(
    generator: nn.Module,
    loss: Loss,
    z: Tensor,
    eta: float,
    steps: int,
    clear: bool = True,
    other_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return what an inner loop with a mistake gives: adapted weights, all in one, and losses."""
    clone = copy.deepcopy(generator).train(generator.training != other_mode)
    total = [torch.zeros_like(p) for p in clone.parameters()]
    losses = []
    for _ in range(steps):
        value = loss(clone(z))
        gradients = torch.autograd.grad(value, list(clone.parameters()))
        total = [g if clear else t + g for t, g in zip(total, gradients, strict=True)]
        with torch.no_grad():
            for parameter, step in zip(clone.parameters(), total, strict=True):
                parameter.sub_(eta * step)
        losses.append(value.item())
    return torch.cat([p.detach().flatten() for p in clone.parameters()]), torch.tensor(losses)


def _same_generator(generator: nn.Module, before: dict[str, Tensor]) -> None:
    """Require the generator as it was, bit for bit, with the gradients that it had."""
    weights = {name for name, _ in generator.named_parameters()}
    for name, value in generator.state_dict().items():
        if not torch.equal(value, before[name]):
            what = "weights" if name in weights else "batch-norm averages"
            require(
                False,
                f"the {what} of the generator itself were changed (`{name}`): "
                "adapt a copy of all that it holds.",
            )
    for name, parameter in generator.named_parameters():
        kept = parameter.grad is not None and bool((parameter.grad == 1).all())
        require(kept, f"the `.grad` of the generator itself was changed (`{name}`).")
