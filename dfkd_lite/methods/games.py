"""What the games share (DAFL, ZSKT, DFAD, DFQ): a generator that learns on in every episode."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..devices import full
from ..errors import check_range, choose
from ..generator import GeneratorConfig
from ..inversion import BatchNormLoss
from ..parallel import average_gradients, gathered, mean, mine
from .base import Logs, Method, Problem
from .generative import new_generator, plain_generator

#: Factors of the generator's learning rate, from the share of the run that is done.
SCHEDULES = {
    "constant": lambda share: 1.0,
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
    "fifths": lambda share: 0.1 ** min(int(5 * share), 2),  # to 0.1 after one fifth, 0.01 after two
}


@dataclass(frozen=True)
class GenerativeConfig:
    """Settings that these methods share. Each method extends them with the values of its paper."""

    generator: GeneratorConfig = field(default_factory=plain_generator)  # ours: one for all
    synthesis_batch: int = 128  # ZSKT; each of the others has its own
    steps: int = 1  # of the generator, per episode: all four
    lr: float = 1e-3  # of the generator, Adam: ZSKT, DFAD and DFQ
    betas: tuple[float, float] = (0.5, 0.999)  # DFQ in CDFKD-MFS; the others have Adam's own
    schedule: str = "constant"  # of lr: see SCHEDULES; DAFL
    # new batches for the student after the steps; 0: it gets the last step's images (DAFL, ZSKT)
    fresh: int = 0

    def __post_init__(self) -> None:
        check_range("synthesis_batch", self.synthesis_batch, 2)
        check_range("steps", self.steps, 1)
        check_range("lr", self.lr, 0, above=True)
        choose("schedule", self.schedule, SCHEDULES)
        check_range("fresh", self.fresh, 0)


@dataclass(frozen=True)
class DivergenceConfig(GenerativeConfig):
    """The same settings for a method whose student learns by a KL divergence."""

    temperature: float = 1.0  # DAFL, ZSKT, DFQ: their KL has none

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("temperature", self.temperature, 0, 1000, above=True)


class Generative(Method):
    """A method whose generator is kept and learns on. Subclasses define :meth:`image_loss`.

    It takes ``steps`` steps an episode, in training mode, each on new latents. With ``bn_first``,
    ``self.bn`` compares the batch statistics, and multiplies the distance of the first layer by it.
    The student is in eval mode; ZSKT's, DFAD's and DFQ's authors leave theirs in training mode.
    Where they give the student the same batch, here it draws with replacement from a pool of that
    size, in 8 bits.
    """

    Config: type = GenerativeConfig
    bn_first: float | None = None

    def __init__(self, problem: Problem, config: Any) -> None:
        super().__init__(problem, config)
        self.generator = new_generator(problem, config.generator)
        self.optimiser = torch.optim.Adam(
            self.generator.parameters(), config.lr, config.betas, fused=True
        )
        self.calls = 0
        self.bn = (
            None if self.bn_first is None else BatchNormLoss(problem.teacher, first=self.bn_first)
        )

    def image_loss(self, images: Tensor, student: nn.Module) -> tuple[Tensor, Logs]:
        """Return the generator's loss for images (B, C, H, W) in [0, 1], and its parts."""
        raise NotImplementedError

    def synthesise(self, student: nn.Module, warm_up: bool) -> tuple[Tensor, Logs]:
        config = self.config
        share = min(self.calls / self.problem.episodes, 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = config.lr * SCHEDULES[config.schedule](share)
        self.generator.train()
        with self.bn or nullcontext():
            for _ in range(config.steps):
                images, logs = self._step(student)
        self.calls += 1
        if config.fresh:
            # put together as one process would draw them; then each process keeps its part
            images = mine(torch.cat([gathered(batch) for batch in self._fresh(config.fresh)]))
        return images.detach(), logs

    def _step(self, student: nn.Module) -> tuple[Tensor, Logs]:
        config = self.config
        self.z = self.problem.latents(config.synthesis_batch, config.generator.z_dim)
        images = self.generator(self.z)
        loss, logs = self.image_loss(images, student)
        self.optimiser.zero_grad()
        loss.backward()
        average_gradients(self.generator.parameters())
        self.clip()
        self.optimiser.step()
        return images, logs

    def clip(self) -> None:
        """Change the gradient before the step; most methods leave it as it is."""

    @torch.no_grad()
    def _fresh(self, batches: int) -> Iterator[Tensor]:
        for _ in range(batches):
            count, z_dim = self.config.synthesis_batch, self.config.generator.z_dim
            yield self.generator(self.problem.latents(count, z_dim))

    def modules(self) -> dict[str, nn.Module]:
        return {"generator": self.generator}

    def state_dict(self) -> dict[str, Any]:
        return {"optimiser": self.optimiser.state_dict(), "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimiser.load_state_dict(state["optimiser"])
        self.calls = state["calls"]


def mean_answer_entropy(logits: Tensor) -> Tensor:
    """Return the entropy of the batch's mean answer in nats: ln K if it names all classes alike.

    The logits are (B, K). DAFL and DFQ let it rise, so that a batch has all classes.
    """
    p = mean(full(logits).softmax(1).mean(0))
    p = p.clamp_min(torch.finfo(p.dtype).tiny)  # at 0 the gradient would be infinite
    return -torch.special.xlogy(p, p).sum()


def answer_entropy(logits: Tensor) -> Tensor:
    """Return the entropy of each answer, averaged over the images, in nats: 0 if all are sure.

    The logits are (B, K). DFQ lets it fall.
    """
    log_p = full(logits).log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()
