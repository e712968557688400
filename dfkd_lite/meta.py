"""Meta-learning for any module and loss: MAML, its first-order forms, Reptile (Eqs. 7 and 8).

A *task* is a function ``task(call, z) -> loss``: ``call(z)`` applies the module that adapts, and
``z`` is the latent that adapts with it. In the method, a task is one batch of latents and labels.

Built in chapter 5.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from . import parallel
from .errors import InputError, check_range, choose

Task = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]

#: What the outer step follows. "none" has no outer step: the module itself takes the inner steps.
KINDS = ("maml", "first-order", "first-order-sum", "reptile", "none")


@dataclass(frozen=True)
class MetaConfig:
    """Settings of the inner and outer steps. The paper credits FastDFKD (Fang et al. 2022)."""

    kind: str = "first-order-sum"  # as FastDFKD: gradients of all inner steps added up
    steps: int = 2  # generator steps; Table 1
    lr: float = 0.005  # eta of Eq. 8, of the inner steps; Table 1
    lr_z: float = 0.015  # of the latents; Table 1
    outer_lr: float | None = None  # None: lr * steps, as FastDFKD; kind "none" has no outer step
    optimiser: str = "adam"  # of the inner steps (FastDFKD); exact MAML needs "sgd"
    gamma: float = 0.0  # weight of Omega = ||Theta||^2 in Eq. 7; the paper gives none

    def __post_init__(self) -> None:
        choose("kind of meta-learning", self.kind, KINDS)
        choose("inner optimiser", self.optimiser, ("adam", "sgd"))
        check_range("steps", self.steps, 1, 10_000)
        check_range("lr", self.lr, 0, above=True)
        check_range("lr_z", self.lr_z, 0)
        check_range("gamma", self.gamma, 0)
        if self.outer_lr is not None:
            check_range("outer_lr", self.outer_lr, 0, above=True)
        if self.kind == "maml" and self.optimiser != "sgd":
            raise InputError(
                "Exact MAML differentiates through its inner steps, which are plain gradient "
                "steps (Eq. 8): use optimiser='sgd' with kind='maml'."
            )


@dataclass(frozen=True)
class Adaptation:
    """The result of the inner loop: the adapted latent, and the loss before each inner step."""

    z: Tensor
    losses: tuple[float, ...]


class MetaLearner:
    """A module with its outer optimiser; :meth:`step` learns from one task."""

    def __init__(self, module: nn.Module, config: MetaConfig | None = None) -> None:
        self.module = module
        self.config = config = config or MetaConfig()
        # d(gamma ||Theta||^2) = 2 gamma Theta is what Adam's (coupled) weight decay adds.
        lr = config.lr if config.kind == "none" else config.outer_lr or config.lr * config.steps
        self.outer = torch.optim.Adam(
            module.parameters(), lr=lr, betas=_BETAS, weight_decay=2 * config.gamma, fused=True
        )

    def step(self, task: Task, z: Tensor) -> Adaptation:
        """Adapt to ``task`` from ``z``, then change the module (Eq. 7). ``z`` itself is kept."""
        if self.config.kind == "none":
            return _descend(self.module, self.outer, task, z, self.config)
        self.outer.zero_grad()
        if self.config.kind == "maml":
            adaptation = exact_gradient(self.module, task, z, self.config)
        else:
            clone = copy.deepcopy(self.module)
            adaptation = first_order_gradient(self.module, clone, task, z, self.config)
            _copy_buffers(clone, self.module)
        self.outer.step()
        return adaptation


def exact_gradient(module: nn.Module, task: Task, z: Tensor, config: MetaConfig) -> Adaptation:
    """Put MAML's gradient (Finn et al. 2017), second order included, into ``module``'s ``.grad``.

    The graph keeps ``steps`` gradient steps theta' = theta - lr * dL (Eq. 8), and the same steps of
    z with ``lr_z``. The gradient is that of the loss *after* them with respect to theta *before*.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    adapted: dict[str, Tensor] = dict(parameters)
    z = z.detach().clone().requires_grad_()
    losses = []
    for _ in range(config.steps):
        loss = task(_bind(module, adapted), z)
        *grads, grad_z = torch.autograd.grad(
            loss, [*adapted.values(), z], create_graph=True, materialize_grads=True
        )
        adapted = {
            name: p - config.lr * parallel.mean(g)
            for (name, p), g in zip(adapted.items(), grads, strict=True)
        }
        z = z - config.lr_z * grad_z / parallel.count()
        losses.append(parallel.mean(loss.detach()).item())
    outer_loss = task(_bind(module, adapted), z)
    gradient = torch.autograd.grad(outer_loss, list(parameters.values()), materialize_grads=True)
    for parameter, g in zip(parameters.values(), gradient, strict=True):
        parameter.grad = g
    parallel.average_gradients(parameters.values())
    return Adaptation(z.detach(), tuple(losses))


def first_order_gradient(
    module: nn.Module, clone: nn.Module, task: Task, z: Tensor, config: MetaConfig
) -> Adaptation:
    """Adapt ``clone``, a copy of ``module``, and give ``module`` a first-order gradient.

    - ``first-order``: the gradient at the adapted clone, as if d(theta')/d(theta) were 1.
    - ``first-order-sum``: the sum of the clone's gradients at all inner steps (FastDFKD).
    - ``reptile``: theta - theta' (Nichol et al. 2018). The outer Adam takes care of its scale.
    """
    optimiser = _optimiser(list(clone.parameters()), config.lr, config.optimiser)
    total = [torch.zeros_like(p) for p in module.parameters()]
    summed = total if config.kind == "first-order-sum" else None
    adaptation = _descend(clone, optimiser, task, z, config, summed)
    if config.kind == "first-order":
        _backward(task, clone, adaptation.z, [optimiser])
        _add_gradients(total, clone)
    if config.kind == "reptile":
        pairs = zip(module.parameters(), clone.parameters(), strict=True)
        total = [(p - q).detach() for p, q in pairs]
    for parameter, gradient in zip(module.parameters(), total, strict=True):
        if parameter.requires_grad:  # Omega must not move a frozen one either
            parameter.grad = gradient
    return adaptation


def _descend(
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    task: Task,
    z: Tensor,
    config: MetaConfig,
    total: list[Tensor] | None = None,
) -> Adaptation:
    """Take the inner steps with ``module`` and ``z``; add the gradients of each to ``total``."""
    z = z.detach().clone().requires_grad_()
    optimisers = [optimiser, _optimiser([z], config.lr_z, config.optimiser)]
    losses = []
    for _ in range(config.steps):
        losses.append(_backward(task, module, z, optimisers))
        if total is not None:
            _add_gradients(total, module)
        for each in optimisers:
            each.step()
    return Adaptation(z.detach(), tuple(losses))


_BETAS = (0.5, 0.999)  # of every Adam here: FastDFKD, and DCGANs at large


def _optimiser(parameters: list[Tensor], lr: float, kind: str) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr=lr)
    return torch.optim.Adam(parameters, lr=lr, betas=_BETAS, fused=True)


def _backward(
    task: Task, module: nn.Module, z: Tensor, optimisers: list[torch.optim.Optimizer]
) -> float:
    for optimiser in optimisers:
        optimiser.zero_grad()
    loss = task(module, z)
    loss.backward()
    # the loss is the mean over all processes' parts, and each z is in one part only
    parallel.average_gradients(module.parameters())
    if z.grad is not None:
        z.grad /= parallel.count()
    return parallel.mean(loss.detach()).item()


def _add_gradients(total: list[Tensor], module: nn.Module) -> None:
    for sum_, parameter in zip(total, module.parameters(), strict=True):
        if parameter.grad is not None:
            sum_.add_(parameter.grad)


def _bind(module: nn.Module, parameters: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda z: functional_call(module, parameters, (z,))


@torch.no_grad()
def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
    # The module takes the clone's batch-norm averages: it needs them to generate in eval mode.
    for old, new in zip(target.buffers(), source.buffers(), strict=True):
        old.copy_(new)
