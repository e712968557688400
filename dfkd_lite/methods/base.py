"""The base of all methods: a way to make images, and the student's loss on them."""

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
    """The origin of a method. ``loop`` has the settings of its authors' loop that differ from the
    defaults of ``DistillConfig``; the method's file says what our loop cannot express."""

    title: str
    year: int
    idea: str  # in one line
    source: str
    loop: dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """What a method gets: a frozen teacher, the layers of both networks, and one source of
    randomness. It holds no data."""

    teacher: nn.Module
    teacher_layers: Layers
    student_layers: Layers
    spec: NetworkSpec
    device: torch.device
    rng: torch.Generator
    episodes: int = 1  # of the whole run: some methods have schedules of their own
    contiguous: bool = False  # whether a network cannot read images with channels last

    def normalise(self, images: Tensor) -> Tensor:
        """Turn images (B, C, H, W) in [0, 1] into the input of both networks."""
        x = normalise(images, self.spec)
        # a clone, because contiguous() keeps the strides of a single channel
        return x.clone(memory_format=torch.contiguous_format) if self.contiguous else x

    def pixels(self, x: Tensor) -> Tensor:
        """Turn the networks' input back into images (B, C, H, W): the inverse of ``normalise``."""
        mean, std = (
            torch.tensor(values, device=x.device)[:, None, None]
            for values in (self.spec.mean, self.spec.std)
        )
        return x * std + mean

    def labels(self, count: int) -> Tensor:
        """Draw ``count`` labels (B,), int64, in random order; class counts differ by at most one.

        With several processes each gets its own part, as of everything that a method draws.
        """
        most = max(count, self.spec.classes)
        order = torch.randperm(most, generator=self.rng, device=self.device)[:count]
        return mine(order % self.spec.classes)

    def latents(self, count: int, z_dim: int) -> Tensor:
        """Draw z ~ N(0, 1), (B, z_dim)."""
        return mine(torch.randn(count, z_dim, generator=self.rng, device=self.device))

    def augmented(self, images: Tensor, shift: int, flip: bool) -> Tensor:
        """Shift images (B, C, H, W) by up to ``shift`` whole pixels, with mirrored borders. With
        ``flip`` mirror each with probability 1/2. The result has gradient to the images."""
        if not shift and not flip:
            return images
        batch, (height, width) = parallel.count() * len(images), images.shape[2:]
        drawn = crops(batch, height, width, self.rng, shift, flip, self.device)
        rows, columns = map(mine, drawn)
        every = torch.arange(len(images), device=images.device)
        return cut(images.permute(0, 2, 3, 1), every, rows, columns)


class Method:
    """The base class of all methods. Subclasses give ``Config``, :meth:`synthesise` and state.

    Raises:
        InputError: there are several processes, but the method needs the whole batch in one.
    """

    Config: type
    about: About | None = None  # None: not a method, but something to compare with
    splits = True  # whether several processes can share a run, each with a part of every batch

    def __init__(self, problem: Problem, config: Any) -> None:
        self.problem = problem
        self.config = config
        if parallel.count() > 1 and not self.splits:
            raise InputError(
                f"{type(self).__name__} looks at all images of a batch together, so it cannot be "
                "split over several processes: start a single process."
            )

    @classmethod
    def evaluations(cls, config: Any, loop: Any) -> int:
        """Count the images that a run sends through the teacher while it makes images."""
        return loop.episodes * config.steps * config.synthesis_batch

    def synthesise(self, student: nn.Module, warm_up: bool) -> tuple[Tensor, Logs]:
        """Make new images (B, C, H, W) in [0, 1], and return them with the losses behind them.

        ``student`` is frozen and in eval mode. During ``warm_up`` it has not learnt anything yet,
        so a method leaves out its adversarial terms. ZSKT, DFAD and DFQ ignore it.
        """
        raise NotImplementedError

    def transfer_loss(self, student: nn.Module, images: Tensor) -> tuple[Tensor, Logs]:
        """Return the student's loss (scalar) on *normalised* images; by default Eq. 1 with KL."""
        with torch.no_grad():
            teacher_logits = self.problem.teacher(images)
        loss = kl_divergence(student(images), teacher_logits, self.config.temperature)
        return loss, {"kd": loss.detach()}

    def modules(self) -> dict[str, nn.Module]:
        """Return the method's networks by name; a checkpoint keeps them."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what else a checkpoint keeps: tensors, numbers, and containers of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from :meth:`state_dict`."""


class SpatialMethod(Method):
    """A method whose student also learns where the teacher looks. Its ``Config`` has ``beta`` and
    ``msarc``."""

    def __init__(self, problem: Problem, config: Any) -> None:
        super().__init__(problem, config)
        self.msarc = MsarcLoss(problem.student_layers, problem.teacher_layers, config.msarc)

    def transfer_loss(self, student: nn.Module, images: Tensor) -> tuple[Tensor, Logs]:
        """Return Eq. 17, L_KD + beta L_MSARC, on normalised images; beta = 0 makes no maps."""
        if not self.config.beta:
            return super().transfer_loss(student, images)
        teacher_logits, teacher_maps = self.msarc.teacher_maps(self.problem.teacher, images)
        with capture(student, self.msarc.student_layers.stages, graded=True) as features:
            logits = student(images)
        kd = kl_divergence(logits, teacher_logits, self.config.temperature)
        msarc = self.msarc(student, features, logits, teacher_logits, teacher_maps)
        return kd + self.config.beta * msarc, {"kd": kd.detach(), "msarc": msarc.detach()}
