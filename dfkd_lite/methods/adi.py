"""ADI, images optimised pixel by pixel with adaptive competition (Yin et al., CVPR 2020, arXiv
1912.08795). Without the competition it is DeepInversion.

Each call takes a batch of noise and makes many steps on the pixels themselves. The loss asks for
the wanted class, the batch statistics, smoothness, a small norm, and disagreement of student and
teacher (Jensen-Shannon divergence at temperature 3, on clamped probabilities). Some frameworks have
-JS where the paper has 1 - JS; apart from the clamp the gradients are the same. Here the best
images are copies: in some code they are a reference to the changing pixels, so the best is always
the last. At the end pixels are cut to [0, 1]. Smoothness is the book's sum of squared differences;
the public code takes norms of the whole batch's differences in four directions, so its weight
differs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..devices import full
from ..errors import check_range
from ..inversion import BatchNormLoss, class_loss, l2_prior, total_variation
from ..parallel import mine
from .base import About, Logs, Method, Problem
from .generative import Best, logged


@dataclass(frozen=True)
class AdiConfig:
    """Published values for CIFAR-10: of the paper, or of ``cifar10/deepinversion_cifar10.py`` in
    NVlabs/DeepInversion (below: their code), whose other defaults are not the paper's."""

    synthesis_batch: int = 256  # paper, and their code
    steps: int = 2000  # on the pixels of a batch: paper, and their code
    lr: float = 0.05  # Adam: paper (their code: 0.1)
    bn_weight: float = 10.0  # paper, one of several values (their code: 100)
    tv_weight: float = 2.5e-5  # paper, and their code; of another sum (adi.py)
    l2_weight: float = 3e-8  # paper (their code: 0)
    competition_weight: float = 10.0  # of 1 - JS: paper; 0 (their code): DeepInversion
    jitter: int = 2  # pixels by which the batch is rolled in each step, at most: their code
    flip: bool = False  # mirror the batch in half of the steps: only their ImageNet code
    # of the Jensen-Shannon divergence: their code; and of the student's KL: ours
    temperature: float = 3.0

    def __post_init__(self) -> None:
        check_range("synthesis_batch", self.synthesis_batch, 2)
        check_range("steps", self.steps, 1)
        check_range("lr", self.lr, 0, above=True)
        for name in ("bn_weight", "tv_weight", "l2_weight", "competition_weight", "jitter"):
            check_range(name, getattr(self, name), 0)
        check_range("temperature", self.temperature, 0, 1000, above=True)


class Adi(Method):
    """The method ADI. It keeps nothing from one batch to the next."""

    Config = AdiConfig
    about = About(
        "ADI / DeepInversion", 2020, "pixels optimised for batch statistics, and for disagreement",
        "Yin et al., CVPR 2020",
        {"episodes": 1000, "warm_up": 0, "student_steps": 50, "batch_size": 256, "lr": 0.1,
         "pool_size": 256_000},
    )  # fmt: skip

    def __init__(self, problem: Problem, config: AdiConfig) -> None:
        super().__init__(problem, config)
        self.bn = BatchNormLoss(problem.teacher)

    def synthesise(self, student: nn.Module, warm_up: bool) -> tuple[Tensor, Logs]:
        config, problem = self.config, self.problem
        shape = (config.synthesis_batch, *problem.spec.image_shape)
        noise = torch.randn(shape, generator=problem.rng, device=problem.device)
        x = mine(noise).requires_grad_()  # normalised, as the teacher reads images
        labels = problem.labels(config.synthesis_batch)
        optimiser = torch.optim.Adam([x], config.lr)
        best = Best()
        for _ in range(config.steps):
            loss, logs = self.image_loss(self._jittered(x), labels, student, warm_up)
            best.see(loss, problem.pixels(x), logs)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return best.images.clamp(0, 1), best.logs

    def image_loss(
        self, x: Tensor, labels: Tensor, student: nn.Module, warm_up: bool
    ) -> tuple[Tensor, Logs]:
        """Return the loss of *normalised* images (B, C, H, W), and its parts."""
        config = self.config
        with self.bn:
            logits = self.problem.teacher(x)
            bn = self.bn.loss()
        parts = {"cls": class_loss(logits, labels), "bn": bn}
        parts |= {"tv": total_variation(x), "l2": l2_prior(x)}
        loss = parts["cls"] + config.bn_weight * bn
        loss = loss + config.tv_weight * parts["tv"] + config.l2_weight * parts["l2"]
        if config.competition_weight and not warm_up:
            parts["adv"] = competition_loss(student(x), logits, config.temperature)
            loss = loss + config.competition_weight * parts["adv"]
        return loss, logged(**parts)

    def _jittered(self, x: Tensor) -> Tensor:
        """Roll the batch by up to ``jitter`` pixels; with ``flip`` mirror it half the time."""
        rng, most = self.problem.rng, int(self.config.jitter)
        drawn = torch.randint(-most, most + 1, (2,), generator=rng, device=rng.device).tolist()
        x = x.roll(drawn, (2, 3))
        if not self.config.flip:
            return x
        return x.flip(3) if torch.rand((), generator=rng, device=rng.device) < 0.5 else x


def competition_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return 1 - clamp(JS, 0, 1), a scalar, from logits (B, K): JS of the probabilities at
    ``temperature``, clamped to [0.01, 0.99], in nats, averaged over the batch."""
    both = student_logits, teacher_logits
    p, q = ((full(logits) / temperature).softmax(1).clamp(0.01, 0.99) for logits in both)
    log_middle = ((p + q) / 2).clamp(0.01, 0.99).log()
    js = 0.5 * (p * (p.log() - log_middle) + q * (q.log() - log_middle)).sum(1).mean()
    return 1 - js.clamp(0, 1)
