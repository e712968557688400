"""What every method is: a way to make images, and a loss that the student gets on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import parallel
from ..errors import InputError
from ..image_pool import crops, cut
from ..kd import kl_divergence
from ..msarc import MsarcLoss
from ..networks import Layers, NetworkSpec, capture, normalise
from ..parallel import mine

Logs = dict[str, Tensor]


@dataclass(frozen=True)
class About:
    """Where a method is from. ``loop`` is what its authors' loop has otherwise than
    ``DistillConfig``'s defaults, by name; what this one cannot express is in the method's file."""

    title: str
    year: int
    idea: str  # in a line
    source: str
    loop: dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """What a method is given: a frozen teacher, the layers of both networks, and one source of
    randomness. There is no data in it."""

    teacher: nn.Module
    teacher_layers: Layers
    student_layers: Layers
    spec: NetworkSpec
    device: torch.device
    rng: torch.Generator
    episodes: int = 1  # of the whole run: some methods have schedules of their own

    def normalise(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> what both networks read."""
        return normalise(images, self.spec)

    def pixels(self, x: Tensor) -> Tensor:
        """What the networks read -> images, in [0, 1] where they are images of pixels."""
        mean, std = (
            torch.tensor(values, device=x.device)[:, None, None]
            for values in (self.spec.mean, self.spec.std)
        )
        return x * std + mean

    def labels(self, count: int) -> Tensor:
        """``count`` labels (B,) in random order, each class equally often up to one.

        Of fewer labels than classes, none comes twice. As of all that a method draws, each of
        several processes gets its own part.
        """
        most = max(count, self.spec.classes)
        order = torch.randperm(most, generator=self.rng, device=self.device)[:count]
        return mine(order % self.spec.classes)

    def latents(self, count: int, z_dim: int) -> Tensor:
        """z ~ N(0, 1), (B, z_dim)."""
        return mine(torch.randn(count, z_dim, generator=self.rng, device=self.device))

    def augmented(self, images: Tensor, shift: int, flip: bool) -> Tensor:
        """Images (B, C, H, W) moved by up to ``shift`` whole pixels, their borders mirrored, and
        with ``flip`` turned left to right half of the time; with gradient to the images."""
        if not shift and not flip:
            return images
        batch, (height, width) = parallel.count() * len(images), images.shape[2:]
        drawn = crops(batch, height, width, self.rng, shift, flip, self.device)
        rows, columns = map(mine, drawn)
        every = torch.arange(len(images), device=images.device)
        return cut(images.permute(0, 2, 3, 1), every, rows, columns)


class Method:
    """Base of the methods. Subclasses give ``Config``, :meth:`synthesise`, and what they keep.

    Raises:
        InputError: several processes, and a method whose terms need the whole batch in one.
    """

    Config: type
    about: About | None = None  # None: no method of its own, but something to compare with
    splits = True  # whether several processes, each with a part of every batch, are one run

    def __init__(self, problem: Problem, config: Any) -> None:
        self.problem = problem
        self.config = config
        if parallel.count() > 1 and not self.splits:
            raise InputError(
                f"{type(self).__name__} looks at all images of a batch together, so it cannot be "
                "split over several processes: start it as one."
            )

    @classmethod
    def evaluations(cls, config: Any, loop: Any) -> int:
        """How many images a run sends through the teacher to make images, by its settings."""
        return loop.episodes * config.steps * config.synthesis_batch

    def synthesise(self, student: nn.Module, warm_up: bool) -> tuple[Tensor, Logs]:
        """New images (B, C, H, W) in [0, 1], and the losses behind them.

        ``student`` is in eval mode and frozen. During ``warm_up`` it has learnt nothing yet:
        adversarial terms stay out (but of the games, which know no warm-up).
        """
        raise NotImplementedError

    def transfer_loss(self, student: nn.Module, images: Tensor) -> tuple[Tensor, Logs]:
        """The student's loss (scalar) on *normalised* images; Eq. 1 with KL by default."""
        with torch.no_grad():
            teacher_logits = self.problem.teacher(images)
        loss = kl_divergence(student(images), teacher_logits, self.config.temperature)
        return loss, {"kd": loss.detach()}

    def modules(self) -> dict[str, nn.Module]:
        """Networks of the method, by name, that a checkpoint keeps."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What else a checkpoint keeps: tensors, numbers, and containers of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take :meth:`state_dict` back."""


class SpatialMethod(Method):
    """A method whose student also learns where its teacher looks: its ``Config`` has ``beta`` and
    ``msarc``."""

    def __init__(self, problem: Problem, config: Any) -> None:
        super().__init__(problem, config)
        self.msarc = MsarcLoss(problem.student_layers, problem.teacher_layers, config.msarc)

    def transfer_loss(self, student: nn.Module, images: Tensor) -> tuple[Tensor, Logs]:
        """Eq. 17: L_KD + beta L_MSARC on normalised images; without the maps where beta is 0."""
        if not self.config.beta:
            return super().transfer_loss(student, images)
        teacher_logits, teacher_maps = self.msarc.teacher_maps(self.problem.teacher, images)
        with capture(student, self.msarc.student_layers.stages) as features:
            logits = student(images)
        kd = kl_divergence(logits, teacher_logits, self.config.temperature)
        msarc = self.msarc(student, features, logits, teacher_logits, teacher_maps)
        return kd + self.config.beta * msarc, {"kd": kd.detach(), "msarc": msarc.detach()}
