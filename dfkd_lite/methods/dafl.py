"""DAFL: the teacher as a fixed discriminator (Chen et al., ICCV 2019, arXiv 1904.01186).

The generator should make images on which the teacher is sure of *some* class (one-hot loss), of all
classes equally often (information entropy), and with strong features (activation loss). We follow
the public code, whose entropy has a logarithm to base 10. The authors' generator has batch-norms
with an epsilon of 0.8 and ends in tanh and a batch-norm without affine; ours ends in a sigmoid,
because all pools here keep pixels. The authors' student has a learning rate that falls in steps,
ours the cosine of the loop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..devices import full
from ..errors import check_range
from ..generator import GeneratorConfig
from ..inversion import class_loss
from ..networks import capture
from .base import About, Logs
from .games import DivergenceConfig, Generative, mean_answer_entropy
from .generative import logged, plain_generator


@dataclass(frozen=True)
class DaflConfig(DivergenceConfig):
    """Published values for CIFAR-10, of the authors' command for it; ``DAFL-train.py`` in
    huawei-noah/Efficient-Computing has those for MNIST as its defaults."""

    # their length of z (MNIST 100); the networks differ (dafl.py)
    generator: GeneratorConfig = field(default_factory=lambda: plain_generator(z_dim=1000))
    synthesis_batch: int = 1024  # MNIST 512
    lr: float = 0.02  # of the generator, Adam; MNIST 0.2
    betas: tuple[float, float] = (0.9, 0.999)  # Adam's own, as in their code
    one_hot_weight: float = 0.05  # MNIST 1, CIFAR-100 0.5
    entropy_weight: float = 5 / math.log(10)  # 5 (MNIST 5, CIFAR-100 20) to 10; here in nats
    activation_weight: float = 0.01  # MNIST 0.1, CIFAR-100 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("one_hot_weight", "entropy_weight", "activation_weight"):
            check_range(name, getattr(self, name), 0)


class Dafl(Generative):
    """The method DAFL. The student learns from the images of the generator's last step."""

    Config = DaflConfig
    about = About(
        "DAFL", 2019, "images on which the teacher is sure, evenly over the classes",
        "Chen et al., ICCV 2019",
        {"episodes": 240_000, "warm_up": 0, "student_steps": 1, "batch_size": 1024, "lr": 0.1,
         "weight_decay": 5e-4, "pool_size": 1024, "shift": 0, "flip": False,
         "measure_every": 1200, "checkpoint_every": 12_000},
    )  # fmt: skip

    def image_loss(self, images: Tensor, student: nn.Module) -> tuple[Tensor, Logs]:
        config, problem = self.config, self.problem
        last = problem.teacher_layers.stages[-1]
        with capture(problem.teacher, [last]) as features:
            logits = problem.teacher(problem.normalise(images))
        one_hot = class_loss(logits, logits.argmax(1))
        even = mean_answer_entropy(logits)
        activation = full(features[last]).mean((2, 3)).abs().mean()
        loss = (
            config.one_hot_weight * one_hot
            - config.entropy_weight * even
            - config.activation_weight * activation
        )
        return loss, logged(one_hot=one_hot, even=even, activation=activation)
