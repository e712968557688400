"""ZSKT: zero-shot transfer by adversarial belief matching (Micaelli & Storkey, NeurIPS 2019).

The generator looks for images on which the networks disagree (KL). There the student matches the
teacher's answers, and where its stages are active (attention transfer, Zagoruyko & Komodakis 2017).
The authors' generator ends in a batch-norm with affine; ours in a sigmoid, because all pools here
keep pixels. They train the student with Adam and clip its gradient too; our loop's SGD does
neither, and its learning rate is ours. Their KL divergence for the student is a mean over classes
too, and so it is here, because the attention's weight fits that. On WRNs their last map is the raw
output of the last stage; ours comes after batch-norm and ReLU.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cam import upsample
from ..devices import full
from ..errors import check_range
from ..generator import GeneratorConfig
from ..inversion import adversarial_loss
from ..kd import kl_divergence
from ..networks import capture
from .base import About, Logs
from .games import DivergenceConfig, Generative
from .generative import logged, plain_generator


@dataclass(frozen=True)
class ZsktConfig(DivergenceConfig):
    """Published values: the defaults of ``main.py`` and ``solver.py`` in
    polo5/ZeroShotKnowledgeTransfer."""

    # main.py's length of z; the network differs (zskt.py)
    generator: GeneratorConfig = field(default_factory=lambda: plain_generator(z_dim=100))
    betas: tuple[float, float] = (0.9, 0.999)  # Adam's own: solver.py
    schedule: str = "cosine"  # solver.py
    clip: float = 5.0  # largest norm of the generator's gradient: solver.py
    attention_weight: float = 250.0  # of the attention transfer, over three stages: main.py

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("clip", self.clip, 0, above=True)
        check_range("attention_weight", self.attention_weight, 0)


class Zskt(Generative):
    """The method ZSKT. The student's images come from the same latents after the step."""

    Config = ZsktConfig
    about = About(
        "ZSKT", 2019, "a game for the largest KL divergence, and attention transfer",
        "Micaelli & Storkey, NeurIPS 2019",
        {"episodes": 80_000, "warm_up": 0, "student_steps": 10, "batch_size": 128,
         "lr": 0.1, "weight_decay": 0.0, "pool_size": 128, "shift": 0, "flip": False,
         "measure_every": 400, "checkpoint_every": 4000},
    )  # fmt: skip

    def synthesise(self, student: nn.Module, warm_up: bool) -> tuple[Tensor, Logs]:
        _, logs = super().synthesise(student, warm_up)
        with torch.no_grad():
            return self.generator(self.z), logs

    def image_loss(self, images: Tensor, student: nn.Module) -> tuple[Tensor, Logs]:
        x = self.problem.normalise(images)
        adv = adversarial_loss(student(x), self.problem.teacher(x), agree_only=False)
        return adv, logged(adv=adv)

    def clip(self) -> None:
        nn.utils.clip_grad_norm_(self.generator.parameters(), self.config.clip)

    def transfer_loss(self, student: nn.Module, images: Tensor) -> tuple[Tensor, Logs]:
        problem = self.problem
        names = problem.teacher_layers.stages, problem.student_layers.stages
        with torch.no_grad(), capture(problem.teacher, names[0]) as theirs:
            teacher_logits = problem.teacher(images)
        with capture(student, names[1]) as ours:
            logits = student(images)
        kd = kl_divergence(logits, teacher_logits, self.config.temperature) / logits.shape[1]
        # stages are paired from the last backwards, so that networks of different depth fit
        pairs = zip(reversed(names[1]), reversed(names[0]), strict=False)
        terms = [attention_distance(ours[s], theirs[t]) for s, t in pairs]
        at = torch.stack(terms).sum()
        return kd + self.config.attention_weight * at, logged(kd=kd, at=at)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of two attention maps, a scalar: the squares of features
    (B, C, H, W), averaged over the channels, each map scaled to L2 norm 1. C may differ; if H and W
    differ, the student's map is resized to the teacher's."""
    ours, theirs = (full(f).square().mean(1) for f in (student, teacher))
    maps = [
        F.normalize(m.flatten(1), dim=1)
        for m in (upsample(ours, (theirs.shape[1], theirs.shape[2])), theirs)
    ]
    return (maps[0] - maps[1]).square().mean()
