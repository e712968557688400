"""Mix: the book's method, with parts of the other methods as options.

Attention (``generator.attention``), meta-learning (``meta``) and MSARC (``beta``) belong to the
book's method and can be turned off. Contrastive diversity (``contrast_weight``) comes from CMI, the
exchange of feature channels (``exchange``) from SpaceshipNet, other measures of disagreement
(``divergence``) from ADI and DFAD. With its default settings, a mix is FSSC to the last bit.

The exchange is adapted to a generator that goes on learning, and to an image pool: after each task
it remembers the generator's maps of the adapted latents, and the pool gets a mixture per new image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import check_range, choose
from ..inversion import DIVERGENCES, adversarial_loss
from ..meta import Adaptation
from .base import About, Logs, Problem
from .contrast import Contrast
from .exchange import FeatureMemory, all_maps
from .fssc import Fssc, FsscConfig
from .generative import logged


@dataclass(frozen=True)
class MixConfig(FsscConfig):
    """Settings of FSSC, and of the parts from other methods, which are off by default."""

    divergence: str = "kl"  # what student and teacher should differ in: see DIVERGENCES; Eq. 16
    contrast_weight: float = 0.0  # CMI: 0.8
    contrast_temperature: float = 0.1  # CMI
    bank_size: int = 40_960  # CMI
    negatives: int = 4096  # CMI
    head: int = 256  # CMI
    head_lr: float = 1e-3  # CMI
    shift: int = 4  # of the views of contrast: CMI
    flip: bool = True  # of the views of contrast: CMI
    exchange: float = 0.0  # SpaceshipNet: 0.7, the probability for a batch; 0: no mixtures
    memory: int = 200  # batches remembered; SpaceshipNet

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("divergence", self.divergence, DIVERGENCES)
        check_range("contrast_weight", self.contrast_weight, 0)
        check_range("contrast_temperature", self.contrast_temperature, 0, 1000, above=True)
        check_range("head_lr", self.head_lr, 0, above=True)
        check_range("shift", self.shift, 0)
        for name in ("bank_size", "negatives", "head", "memory"):
            check_range(name, getattr(self, name), 1)
        check_range("exchange", self.exchange, 0, 1)


class Mix(Fssc):
    """FSSC with options. With exact MAML the contrastive head keeps its initial weights."""

    Config = MixConfig
    about = About(
        "mix", 2026, "FSSC with contrast, exchange and other divergences as options", "this book",
        {},
    )  # fmt: skip

    def __init__(self, problem: Problem, config: MixConfig) -> None:
        self.splits = not config.contrast_weight and not config.exchange
        super().__init__(problem, config)
        self.memory = FeatureMemory(config.memory)
        self.contrast: Contrast | None = None
        if config.contrast_weight:
            self.contrast = Contrast(problem, config, config.head_lr)

    @classmethod
    def evaluations(cls, config: Any, loop: Any) -> int:
        number = super().evaluations(config, loop)
        if not config.contrast_weight:
            return number
        return 3 * number  # the teacher sees two more views of each step's images

    def adapt(self, student: nn.Module, warm_up: bool) -> tuple[Tensor, Logs, Adaptation]:
        if self.contrast is None:
            return super().adapt(student, warm_up)
        self.contrast.optimiser.zero_grad()
        images, logs, adaptation = super().adapt(student, warm_up)
        self.contrast.optimiser.step()  # on the gradients of all inner steps
        self.contrast.remember(self.contrast.newest)
        return images, logs, adaptation

    def synthesise(self, student: nn.Module, warm_up: bool) -> tuple[Tensor, Logs]:
        images, logs, adaptation = self.adapt(student, warm_up)
        if not self.config.exchange:
            return images, logs
        self.generator.eval()
        with torch.no_grad():
            self.memory.add(all_maps(self.generator, adaptation.z))
        share, rng = self.config.exchange, self.problem.rng
        mixtures = self.memory.images(self.generator, len(images), share, rng)
        return torch.cat([images, mixtures]), logs

    def disagreement(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        config = self.config
        return adversarial_loss(
            student_logits, teacher_logits, config.agree_only, config.divergence
        )

    def generator_loss(
        self, images: Tensor, labels: Tensor, student: nn.Module, warm_up: bool
    ) -> tuple[Tensor, Logs]:
        if self.contrast is None:
            return super().generator_loss(images, labels, student, warm_up)
        contrast = self.contrast.loss(images)  # first, because self.bn uses what it sees last
        loss, logs = super().generator_loss(images, labels, student, warm_up)
        return loss + self.config.contrast_weight * contrast, logs | logged(contrast=contrast)

    def modules(self) -> dict[str, nn.Module]:
        head = {} if self.contrast is None else {"head": self.contrast.head}
        return super().modules() | head

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict() | {"memory": self.memory.entries}
        if self.contrast is not None:
            state["contrast"] = self.contrast.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.memory.load(state["memory"], self.problem.device)
        if self.contrast is not None:
            self.contrast.load_state_dict(state["contrast"])
