"""FastDFKD: a meta-learned generator, which needs few steps for a batch (Fang et al., AAAI 2022,
arXiv 2112.15278). The book's method adds attention and MSARC to it.

A copy of the generator adapts to each batch of latents and labels, and the latents adapt with it.
The generator follows by first-order MAML (the sum of the copy's gradients at all inner steps) or by
Reptile. Once, late in the run, the generator's first layer and its batch-norm are drawn anew. The
authors multiply Reptile's gradient by 67; here Adam, which ignores a scale, makes that unnecessary.
(One public version tests ``name == "l1" or "conv_blocks.0"``, always true: it resets everything.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import check_range
from ..generator import GeneratorConfig
from ..meta import MetaConfig
from .base import About, Logs, Problem
from .fssc import Fssc, FsscConfig
from .generative import plain_generator


@dataclass(frozen=True)
class FastDfkdConfig(FsscConfig):
    """Published values for CIFAR, ResNet-34 to ResNet-18, five inner steps ("FastDFKD-5").

    Other published values: for pairs of WRNs, class weight 0.4 and adversarial weight 1.1; from
    VGG, adversarial weight 1; with 2 steps, lr 0.005 and lr_z 0.015; with 10 steps, 0.002 and 0.01.
    All are in ``scripts/fast_cifar.sh`` of zju-vipa/Fast-Datafree.
    """

    generator: GeneratorConfig = field(default_factory=plain_generator)  # its shape: their code
    # fast_cifar.sh
    meta: MetaConfig = field(default_factory=lambda: MetaConfig(steps=5, lr=0.003, lr_z=0.01))
    synthesis_batch: int = 256  # fast_cifar.sh: --batch_size
    beta: float = 0.0  # no MSARC
    # share of the run after which the first layer is drawn anew: their code, of 220 epochs
    reset_at: float = 140 / 220
    shift: int = 4  # of what the networks see while images are made: their code
    flip: bool = True  # the same

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("reset_at", self.reset_at, 0, 1, above=True)
        check_range("shift", self.shift, 0)


class FastDfkd(Fssc):
    """The method FastDFKD: FSSC without attention and MSARC, and with a late reset."""

    Config = FastDfkdConfig
    about = About(
        "FastDFKD", 2022, "a meta-learned generator: few steps for a batch",
        "Fang et al., AAAI 2022", {"batch_size": 256},
    )  # fmt: skip

    def __init__(self, problem: Problem, config: FastDfkdConfig) -> None:
        super().__init__(problem, config)
        self.calls = 0

    def synthesise(self, student: nn.Module, warm_up: bool) -> tuple[Tensor, Logs]:
        self.calls += 1
        if self.calls == round(self.config.reset_at * self.problem.episodes):
            self.reset()
        return super().synthesise(student, warm_up)

    @torch.no_grad()
    def reset(self) -> None:
        """Draw the first layer and its batch-norm from N(0, 0.02), and set the biases to 0."""
        for part in (self.generator.stem, self.generator.stem_bn):
            for name, parameter in part.named_parameters():
                if name == "bias":
                    parameter.zero_()
                else:
                    drawn = torch.randn(
                        parameter.shape, generator=self.problem.rng, device=parameter.device
                    )
                    parameter.copy_(0.02 * drawn)

    def viewed(self, images: Tensor) -> Tensor:
        return self.problem.augmented(images, self.config.shift, self.config.flip)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.calls = state["calls"]
