"""LS-GDFD: several generators, each for some of the classes (Luo et al. 2020, arXiv 2012.05578).

No code was released: followed is the paper. One generator cannot hold a large data set (its modes
collapse), so the classes are dealt out to several. Each is told the wanted class, and learns from
the teacher alone: the class ("inceptionism") and batch statistics, matched as moving averages. They
are trained first; then the student learns from what all of them make, and they learn no more.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, check_range
from ..generator import GeneratorConfig
from ..inversion import BatchNormLoss, class_loss
from ..parallel import average_gradients
from .base import About, Logs, Method, Problem
from .generative import logged, new_generator, plain_generator


@dataclass(frozen=True)
class LsGdfdConfig:
    """The paper names no number of generators for CIFAR; two show the idea on ten classes."""

    generator: GeneratorConfig = field(default_factory=plain_generator)
    generators: int = 2  # each for an equal part of the classes
    synthesis_batch: int = 256
    steps: int = 50  # of each generator, an episode of the warm-up: then they are done
    lr: float = 1e-3  # Adam
    bn_weight: float = 10.0
    bn_momentum: float = 0.9  # the statistics matched are moving averages
    class_weight: float = 1.0
    temperature: float = 20.0

    def __post_init__(self) -> None:
        for name in ("generators", "steps"):
            check_range(name, getattr(self, name), 1)
        check_range("synthesis_batch", self.synthesis_batch, 2)
        check_range("lr", self.lr, 0, above=True)
        for name in ("bn_weight", "class_weight"):
            check_range(name, getattr(self, name), 0)
        check_range("bn_momentum", self.bn_momentum, 0, 0.9999)
        check_range("temperature", self.temperature, 0, 1000, above=True)


class LsGdfd(Method):
    """See the module. The loop's warm-up is the generators' training.

    Raises:
        InputError: more generators than classes.
    """

    Config = LsGdfdConfig
    splits = False  # a part of a batch may have too few images of a generator's classes
    about = About(
        "LS-GDFD", 2020, "several generators, each for some of the classes, trained first",
        "Luo et al. 2020, arXiv 2012.05578", {},
    )  # fmt: skip

    def __init__(self, problem: Problem, config: LsGdfdConfig) -> None:
        super().__init__(problem, config)
        classes = torch.arange(problem.spec.classes, device=problem.device)
        if config.generators > len(classes):
            raise InputError(
                f"{config.generators} generators for {len(classes)} classes: give at most one each."
            )
        self.parts = classes.chunk(config.generators)
        wide = replace(config.generator, z_dim=config.generator.z_dim + len(classes))
        self.generators = nn.ModuleList(new_generator(problem, wide) for _ in self.parts)
        self.optimiser = torch.optim.Adam(self.generators.parameters(), config.lr, (0.5, 0.999))
        self.bn = BatchNormLoss(problem.teacher, config.bn_momentum)

    @classmethod
    def evaluations(cls, config: Any, loop: Any) -> int:
        return loop.warm_up * config.steps * config.synthesis_batch

    def synthesise(self, student: nn.Module, warm_up: bool) -> tuple[Tensor, Logs]:
        logs: Logs = {}
        if warm_up:
            self.generators.train()
            for _ in range(self.config.steps):
                logs = self._step()
        self.generators.eval()
        with torch.no_grad():
            return self._images()[0], logs

    def _step(self) -> Logs:
        """All generators together: only all classes have the statistics of the data."""
        config, problem = self.config, self.problem
        images, labels = self._images()
        with self.bn:
            logits = problem.teacher(problem.normalise(images))
            bn = self.bn.loss()
            self.bn.remember()
        cls = class_loss(logits, labels)
        self.optimiser.zero_grad()
        (config.class_weight * cls + config.bn_weight * bn).backward()
        average_gradients(self.generators.parameters())
        self.optimiser.step()
        return logged(cls=cls, bn=bn)

    def _images(self) -> tuple[Tensor, Tensor]:
        """A batch, and the labels that its generators were told, each its part of the classes."""
        problem, config = self.problem, self.config
        labels = problem.labels(config.synthesis_batch)
        z = problem.latents(config.synthesis_batch, config.generator.z_dim)
        told = torch.cat([z, F.one_hot(labels, problem.spec.classes).to(z.dtype)], dim=1)
        images, order = [], []
        for generator, part in zip(self.generators, self.parts, strict=True):
            mine = torch.isin(labels, part).nonzero()[:, 0]
            if len(mine) > 1:  # a batch-norm needs two
                images.append(generator(told[mine]))
                order.append(mine)
        return torch.cat(images), labels[torch.cat(order)]

    def modules(self) -> dict[str, nn.Module]:
        return {"generators": self.generators}

    def state_dict(self) -> dict[str, Any]:
        return {"optimiser": self.optimiser.state_dict(), "bn_average": self.bn.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimiser.load_state_dict(state["optimiser"])
        device = self.problem.device
        self.bn.average = {
            name: (mean.to(device), variance.to(device))
            for name, (mean, variance) in state["bn_average"].items()
        }
