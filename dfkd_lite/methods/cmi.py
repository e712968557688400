"""CMI: inversion that avoids repetition (Fang et al., IJCAI 2021, arXiv 2105.08584).

Each call draws a generator anew and fits it, with its latents, to one batch: batch statistics,
wanted classes, disagreement, and a contrastive term. A small head maps the teacher's features (the
spatial means of its batch-norm inputs) to a sphere. There two views of an image should be close,
and all other images, also earlier ones, far away. Where paper and code differ, we follow the public
code. Its pool of images is unlimited, ours is the loop's. Its student's learning rate falls in
three steps, ours along the loop's cosine. Its generator's weights are drawn from N(0, 0.02), ours
by each layer's own rule.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import check_range
from ..generator import GeneratorConfig
from ..inversion import BatchNormLoss, adversarial_loss, class_loss
from .base import About, Logs, Method, Problem
from .contrast import Contrast, batch_norm_inputs
from .generative import Best, logged, new_generator, plain_generator, redraw


@dataclass(frozen=True)
class CmiConfig:
    """Published values for CIFAR, for a run without a pool of earlier inversions: the script
    ``scripts/cmi/scratch_cmi_cifar10_wrn402_wrn161.sh`` in zju-vipa/CMI, or its code."""

    generator: GeneratorConfig = field(default_factory=plain_generator)  # its shape: their code
    synthesis_batch: int = 256  # script
    steps: int = 200  # of a generator, which is then thrown away: script
    lr: float = 1e-3  # of generator, latents and head, Adam: script
    bn_weight: float = 1.0  # script
    class_weight: float = 1.0  # script; 0.5 with a pool of earlier inversions
    adversarial_weight: float = 0.5  # script; counted where both networks agree
    contrast_weight: float = 0.8  # script
    contrast_temperature: float = 0.1  # script
    # earlier images, of which the features of two views are kept: contrastive.py
    bank_size: int = 40_960
    negatives: int = 4096  # of these, drawn for each step: contrastive.py
    head: int = 256  # dimensions of the sphere: datafree_kd.py
    # of the global view: contrastive.py; borders are mirrored here, black there
    shift: int = 4
    flip: bool = True  # of both views: contrastive.py
    temperature: float = 20.0  # of the student's KL divergence: script

    def __post_init__(self) -> None:
        check_range("synthesis_batch", self.synthesis_batch, 2)
        check_range("steps", self.steps, 1)
        check_range("lr", self.lr, 0, above=True)
        for name in (
            "bn_weight", "class_weight", "adversarial_weight", "contrast_weight", "shift"
        ):  # fmt: skip
            check_range(name, getattr(self, name), 0)
        for name in ("contrast_temperature", "temperature"):
            check_range(name, getattr(self, name), 0, 1000, above=True)
        for name in ("bank_size", "negatives", "head"):
            check_range(name, getattr(self, name), 1)


class Cmi(Method):
    """The method CMI. Head and bank are kept; the generator is drawn anew at every call."""

    Config = CmiConfig
    splits = False  # each image is compared with all others
    about = About(
        "CMI", 2021, "inversion with a contrastive term: new images unlike the old ones",
        "Fang et al., IJCAI 2021",
        {"episodes": 200, "warm_up": 0, "student_steps": 400, "lr": 0.1},
    )  # fmt: skip

    def __init__(self, problem: Problem, config: CmiConfig) -> None:
        super().__init__(problem, config)
        self.generator = new_generator(problem, config.generator)
        self.bn = BatchNormLoss(problem.teacher)
        self.contrast = Contrast(problem, config, config.lr)

    @classmethod
    def evaluations(cls, config: Any, loop: Any) -> int:
        return loop.episodes * 2 * config.steps * config.synthesis_batch  # two views

    def synthesise(self, student: nn.Module, warm_up: bool) -> tuple[Tensor, Logs]:
        config, problem = self.config, self.problem
        redraw(self.generator, problem, config.generator)
        self.generator.train()
        z = problem.latents(config.synthesis_batch, config.generator.z_dim).requires_grad_()
        labels = problem.labels(config.synthesis_batch)
        parameters = [*self.generator.parameters(), z]
        optimiser = torch.optim.Adam(parameters, config.lr, (0.5, 0.999))
        best = Best()
        for _ in range(config.steps):
            images = self.generator(z)
            loss, logs = self.image_loss(images, labels, student, warm_up)
            if best.see(loss, images, logs):
                seen = self.contrast.newest
            optimiser.zero_grad()
            self.contrast.optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            self.contrast.optimiser.step()
        self.contrast.remember(seen)
        return best.images, best.logs

    def image_loss(
        self, images: Tensor, labels: Tensor, student: nn.Module, warm_up: bool
    ) -> tuple[Tensor, Logs]:
        """Return the loss of images (B, C, H, W) in [0, 1], and its parts, on the global view."""
        config, problem = self.config, self.problem
        x = problem.normalise(self.contrast.global_view(images))
        with self.bn, batch_norm_inputs(problem.teacher) as inputs:
            logits = problem.teacher(x)
            bn = self.bn.loss()
        cls = class_loss(logits, labels)
        contrast = self.contrast.loss(images, inputs)
        loss = config.bn_weight * bn + config.class_weight * cls
        loss = loss + config.contrast_weight * contrast
        parts = {"bn": bn, "cls": cls, "contrast": contrast}
        if config.adversarial_weight and not warm_up:
            parts["adv"] = adversarial_loss(student(x), logits)
            loss = loss + config.adversarial_weight * parts["adv"]
        return loss, logged(**parts)

    def modules(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "head": self.contrast.head}

    def state_dict(self) -> dict[str, Any]:
        return self.contrast.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.contrast.load_state_dict(state)
