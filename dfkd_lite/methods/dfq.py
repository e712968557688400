"""DFQ: a game limited by batch statistics (Choi et al., CVPR Workshops 2020, arXiv 2005.04136).

The generator maximises the KL divergence of both networks. Three terms limit it: the teacher's
batch-norm statistics, answers that are sure for each image, and answers spread evenly over the
batch. Some re-implementations exchange the two entropies; here that of each image falls and that of
the batch's mean answer rises. We follow the code that others published with their own method
(CDFKD-MFS) in the settings, and in the L2 distance of the statistics, with the first layer counted
five times. The paper takes the KL divergence of Gaussians and first trains the generator without
the student. The student there has Nesterov momentum, in our loop plain.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import check_range
from ..inversion import adversarial_loss
from .base import About, Logs
from .games import DivergenceConfig, Generative, answer_entropy, mean_answer_entropy
from .generative import logged


@dataclass(frozen=True)
class DfqConfig(DivergenceConfig):
    """Values of the re-implementation named above, for CIFAR: ``DFQ.py`` in Hao840/CDFKD-MFS."""

    synthesis_batch: int = 256  # DFQ.py
    schedule: str = "cosine"  # DFQ.py
    fresh: int = 5  # a new batch for each of the student's five steps: DFQ.py
    prior_weight: float = 0.1  # of the statistics and both entropies together: DFQ.py

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("prior_weight", self.prior_weight, 0)


class Dfq(Generative):
    """The method DFQ."""

    Config = DfqConfig
    bn_first = 5.0  # the first layer's statistics count five times
    about = About(
        "DFQ", 2020, "the game, with batch statistics and two entropies as reins",
        "Choi et al., CVPR Workshops 2020",
        {"episodes": 80_000, "warm_up": 0, "student_steps": 5, "batch_size": 256, "lr": 0.1,
         "weight_decay": 5e-4, "pool_size": 1280, "shift": 0, "flip": False,
         "measure_every": 400, "checkpoint_every": 4000},
    )  # fmt: skip

    def image_loss(self, images: Tensor, student: nn.Module) -> tuple[Tensor, Logs]:
        x = self.problem.normalise(images)
        logits = self.problem.teacher(x)
        assert self.bn is not None  # since bn_first is set
        bn = self.bn.loss()
        sure, even = answer_entropy(logits), mean_answer_entropy(logits)
        adv = adversarial_loss(student(x), logits, agree_only=False)
        loss = adv + self.config.prior_weight * (bn + sure - even)
        return loss, logged(adv=adv, bn=bn, sure=sure, even=even)
