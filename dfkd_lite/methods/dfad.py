"""DFAD: disagreement alone, measured by L1 (Fang et al. 2019, arXiv 1912.11006).

The generator maximises the absolute difference of both networks' logits; the student minimises it.
No prior keeps the images near real ones. The authors divide both learning rates by ten after one
fifth of the run and again after two; here the student's follows the cosine of the loop. Their
generator ends in tanh and a batch-norm without affine, ours in a sigmoid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..kd import l1_logits
from .base import About, Logs
from .games import Generative, GenerativeConfig
from .generative import logged


@dataclass(frozen=True)
class DfadConfig(GenerativeConfig):
    """Published values for CIFAR: ``DFAD_cifar.py`` in VainF/Data-Free-Adversarial-Distillation."""

    synthesis_batch: int = 256  # DFAD_cifar.py
    betas: tuple[float, float] = (0.9, 0.999)  # Adam's own: DFAD_cifar.py
    # DFAD_cifar.py with --scheduler drops at epochs 100 and 200; as fifths of its 500 epochs
    schedule: str = "fifths"
    fresh: int = 5  # a new batch for each of the student's five steps: DFAD_cifar.py


class Dfad(Generative):
    """The method DFAD. It has no temperature, because L1 needs none."""

    Config = DfadConfig
    about = About(
        "DFAD", 2019, "a game for the largest L1 distance of the logits",
        "Fang et al. 2019, arXiv 1912.11006",
        {"episodes": 25_000, "warm_up": 0, "student_steps": 5, "batch_size": 256, "lr": 0.1,
         "weight_decay": 5e-4, "pool_size": 1280, "shift": 0, "flip": False,
         "measure_every": 50, "checkpoint_every": 1000},
    )  # fmt: skip

    def image_loss(self, images: Tensor, student: nn.Module) -> tuple[Tensor, Logs]:
        x = self.problem.normalise(images)
        distance = l1_logits(student(x), self.problem.teacher(x))
        return -distance, logged(adv=-distance)

    def transfer_loss(self, student: nn.Module, images: Tensor) -> tuple[Tensor, Logs]:
        with torch.no_grad():
            teacher_logits = self.problem.teacher(images)
        loss = l1_logits(student(images), teacher_logits)
        return loss, logged(kd=loss)
