"""LS-GDFD: several generators, each for some of the classes (Luo et al. 2020, arXiv 2012.05578).

We follow the paper, because only the networks of the authors' code are public. One generator cannot
hold a large data set (its modes collapse), so several share the classes. Each is told the wanted
class and learns from the teacher alone: from the class ("inceptionism") and from moving averages of
the batch statistics. All are trained in the first episode; then the student learns from what they
make, and they learn no more. That all share the statistics of one batch is our reading.
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
from .base import About, Logs, Method, Problem
from .generative import logged, new_generator, plain_generator


@dataclass(frozen=True)
class LsGdfdConfig:
    """Settings of LS-GDFD. The paper names no number of generators for CIFAR; two show the idea on
    ten classes. Weights, momentum and temperature are FastDFKD's, the rest is ours."""

    generator: GeneratorConfig = field(default_factory=plain_generator)  # ours: one for all
    generators: int = 2  # each for an equal part of the classes: ours
    synthesis_batch: int = 256  # FastDFKD
    steps: int = 1000  # of the generators, before the student's first step: ours
    lr: float = 1e-3  # Adam: ours, as CMI
    bn_weight: float = 10.0  # FastDFKD
    bn_momentum: float = 0.9  # moving averages: the paper; the value: FastDFKD
    class_weight: float = 1.0  # ours
    temperature: float = 20.0  # FastDFKD

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
    """The method LS-GDFD.

    Raises:
        InputError: there are more generators than classes.
    """

    Config = LsGdfdConfig
    splits = False  # a part of a batch may have too few images of a generator's classes
    about = About(
        "LS-GDFD", 2020, "several generators, each for some of the classes, trained first",
        "Luo et al. 2020, arXiv 2012.05578", {"warm_up": 0},
    )  # fmt: skip

    def __init__(self, problem: Problem, config: LsGdfdConfig) -> None:
        super().__init__(problem, config)
        classes = torch.arange(problem.spec.classes, device=problem.device)
        if config.generators > len(classes):
            raise InputError(
                f"{config.generators} generators for {len(classes)} classes: give at most one each."
            )
        self.parts = classes.tensor_split(config.generators)
        wide = replace(config.generator, z_dim=config.generator.z_dim + len(classes))
        self.generators = nn.ModuleList(new_generator(problem, wide) for _ in self.parts)
        self.optimiser = torch.optim.Adam(self.generators.parameters(), config.lr, (0.5, 0.999))
        self.bn = BatchNormLoss(problem.teacher, config.bn_momentum)
        self.trained = False
        self.logs: Logs = {}  # of the generators' last step

    @classmethod
    def evaluations(cls, config: Any, loop: Any) -> int:
        return config.steps * config.synthesis_batch

    def synthesise(self, student: nn.Module, warm_up: bool) -> tuple[Tensor, Logs]:
        if not self.trained:
            self.generators.train()
            for _ in range(self.config.steps):
                self.logs = self._step()
            self.trained = True
        self.generators.eval()
        with torch.no_grad():
            return self._images()[0], self.logs

    def _step(self) -> Logs:
        """Train all generators together: only all classes together have the data's statistics."""
        config, problem = self.config, self.problem
        images, labels = self._images()
        with self.bn:
            logits = problem.teacher(problem.normalise(images))
            bn = self.bn.loss()
            self.bn.remember()
        cls = class_loss(logits, labels)
        self.optimiser.zero_grad()
        (config.class_weight * cls + config.bn_weight * bn).backward()
        self.optimiser.step()
        return logged(cls=cls, bn=bn)

    def _images(self) -> tuple[Tensor, Tensor]:
        """Make a batch and its labels; each generator makes its part of the classes."""
        problem, config = self.problem, self.config
        labels = problem.labels(config.synthesis_batch)
        z = problem.latents(config.synthesis_batch, config.generator.z_dim)
        told = torch.cat([z, F.one_hot(labels, problem.spec.classes).to(z.dtype)], dim=1)
        images, order = [], []
        for generator, part in zip(self.generators, self.parts, strict=True):
            own = torch.isin(labels, part).nonzero()[:, 0]
            if len(own) > 1 or not generator.training:  # batch-norm in training needs two
                images.append(generator(told[own]))
                order.append(own)
        return torch.cat(images), labels[torch.cat(order)]

    def modules(self) -> dict[str, nn.Module]:
        return {"generators": self.generators}

    def state_dict(self) -> dict[str, Any]:
        return {"trained": self.trained, "logs": self.logs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trained, self.logs = state["trained"], state["logs"]
