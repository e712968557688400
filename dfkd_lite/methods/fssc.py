"""FSSC, the method of the book: feature synthesis and spatial consistency (Liang et al. 2024).

The paper gives its method no short name; ours comes from its title. An attention generator (Eq. 3)
learns by meta-learning (Eqs. 7, 8) to make images on which teacher and student disagree (Eq. 16).
The student learns from the teacher's outputs and from where it looks (Eq. 17).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import check_range
from ..generator import GeneratorConfig
from ..inversion import BatchNormLoss, adversarial_loss, class_loss
from ..meta import Adaptation, MetaConfig, MetaLearner
from ..msarc import MsarcConfig
from .base import About, Logs, Problem, SpatialMethod
from .generative import Best, logged, new_generator


@dataclass(frozen=True)
class FsscConfig:
    """Settings of FSSC. Table 1 gives few; the rest follows FastDFKD, which FSSC builds on."""

    generator: GeneratorConfig = field(default_factory=GeneratorConfig)  # Eqs. 3 to 6
    meta: MetaConfig = field(default_factory=MetaConfig)  # Eqs. 7 and 8
    synthesis_batch: int = 128  # Table 1: batch size
    kappa: float = 1.0  # Eq. 16; the paper gives none
    bn_weight: float = 10.0  # FastDFKD
    bn_momentum: float = 0.9  # FastDFKD: moving average of the batch statistics
    class_weight: float = 0.5  # FastDFKD
    adversarial_weight: float = 1.33  # FastDFKD
    agree_only: bool = True  # FastDFKD's decision-adversarial form; False: Eq. 16's plain KL
    temperature: float = 20.0  # Table 1
    # Eq. 17; the paper gives none. With SpaceshipNet's value 1, one of five runs on the digits
    # failed: the maps outweigh the outputs at first (data/records/variants). 0: without MSARC
    beta: float = 0.1
    msarc: MsarcConfig = field(default_factory=MsarcConfig)  # Eqs. 9 and 15

    def __post_init__(self) -> None:
        check_range("synthesis_batch", self.synthesis_batch, 2)
        for name in ("kappa", "bn_weight", "class_weight", "adversarial_weight", "beta"):
            check_range(name, getattr(self, name), 0)
        check_range("bn_momentum", self.bn_momentum, 0, 0.9999)
        check_range("temperature", self.temperature, 0, 1000, above=True)


class Fssc(SpatialMethod):
    """The method of the paper. ``generator`` is the same module throughout the run."""

    Config = FsscConfig
    about = About(
        "FSSC", 2024, "attention, a meta-learned generator, and consistent activation regions",
        "Liang et al., Scientific Reports 2024", {},
    )  # fmt: skip

    def __init__(self, problem: Problem, config: FsscConfig) -> None:
        super().__init__(problem, config)
        self.generator = new_generator(problem, config.generator)
        self.learner = MetaLearner(self.generator, config.meta)
        self.bn = BatchNormLoss(problem.teacher, config.bn_momentum) if config.bn_weight else None

    @classmethod
    def evaluations(cls, config: Any, loop: Any) -> int:
        after = config.meta.kind in ("maml", "first-order")  # once more after the steps
        passes = config.meta.steps + after
        return loop.episodes * passes * config.synthesis_batch

    def synthesise(self, student: nn.Module, warm_up: bool) -> tuple[Tensor, Logs]:
        return self.adapt(student, warm_up)[:2]

    def adapt(self, student: nn.Module, warm_up: bool) -> tuple[Tensor, Logs, Adaptation]:
        """Run one task: draw latents and labels, adapt the generator, return its best images."""
        count = self.config.synthesis_batch
        z = self.problem.latents(count, self.config.generator.z_dim)
        labels = self.problem.labels(count)
        best = Best()

        def task(generate: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
            images = generate(z)
            loss, logs = self.generator_loss(images, labels, student, warm_up)
            best.see(loss, images, logs)
            return loss

        self.generator.train()
        with self.bn or nullcontext():
            adaptation = self.learner.step(task, z)
            if self.bn is not None:
                self.bn.remember()
        return best.images, best.logs, adaptation

    def generator_loss(
        self, images: Tensor, labels: Tensor, student: nn.Module, warm_up: bool
    ) -> tuple[Tensor, Logs]:
        """Return Eq. 16 for images (B, C, H, W) in [0, 1], and its parts; inside ``self.bn``."""
        config = self.config
        x = self.problem.normalise(self.viewed(images))
        teacher_logits = self.problem.teacher(x)
        parts = {"cls": class_loss(teacher_logits, labels)}
        loss = config.kappa * config.class_weight * parts["cls"]
        if self.bn is not None:
            parts["bn"] = self.bn.loss()
            loss = loss + config.kappa * config.bn_weight * parts["bn"]
        if config.adversarial_weight and not warm_up:
            parts["adv"] = self.disagreement(student(x), teacher_logits)
            loss = loss + config.adversarial_weight * parts["adv"]
        return loss, logged(**parts)

    def viewed(self, images: Tensor) -> Tensor:
        """Return what both networks see of the images while they are made: here, the images."""
        return images

    def disagreement(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the adversarial term of Eq. 16 for logits (B, K): a scalar, low if they differ."""
        return adversarial_loss(student_logits, teacher_logits, self.config.agree_only)

    def modules(self) -> dict[str, nn.Module]:
        return {"generator": self.generator}

    def state_dict(self) -> dict[str, Any]:
        average = {} if self.bn is None else self.bn.state_dict()
        return {"outer": self.learner.outer.state_dict(), "bn_average": average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learner.outer.load_state_dict(state["outer"])
        if self.bn is not None:
            self.bn.load_state_dict(state["bn_average"])
