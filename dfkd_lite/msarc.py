"""Multi-scale spatial activation region consistency: Eqs. 9 and 15 on the maps of ``cam.py``.

Built in chapter 7.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from .cam import CamConfig, graded_capture, stage_maps, upsample
from .devices import full
from .errors import InputError, check_range
from .networks import Layers


@dataclass(frozen=True)
class MsarcConfig:
    """Settings: which maps are compared, and how."""

    stages: int | None = None  # how many, from the last; None: one per alpha, or all that both have
    alphas: tuple[float, ...] | None = None  # alpha_l of Eq. 9, early to late; None: all 1
    second_order: bool = False  # False, as in SpaceshipNet: the student's CAM weights are constants
    normalise: bool = False  # True: each map is divided by its root mean square (ours)
    cam: CamConfig = field(default_factory=CamConfig)  # how the maps are made: Eqs. 10 to 14

    def __post_init__(self) -> None:
        if self.stages is not None:
            check_range("stages of MSARC", self.stages, 1)
        for alpha in self.alphas or ():
            check_range("alpha of Eq. 9", alpha, 0)


def map_distance(student_map: Tensor, teacher_map: Tensor, normalise: bool = False) -> Tensor:
    """Return Eq. 15, averaged over the images: (B, h, w) and (B, H, W) -> scalar.

    If the sizes differ, the student's map is resized to the teacher's.
    """
    student_map, teacher_map = full(student_map), full(teacher_map)
    student_map = upsample(student_map, (teacher_map.shape[1], teacher_map.shape[2]))
    if normalise:
        student_map, teacher_map = _unit(student_map), _unit(teacher_map)
    return (student_map - teacher_map).square().mean()


def _unit(maps: Tensor) -> Tensor:
    scale = maps.square().mean((1, 2), keepdim=True).add(1e-12).sqrt()
    return maps / scale


class MsarcLoss:
    """The loss of Eq. 9 for a pair of networks: sum_l alpha_l MSE(CAM_S^l, CAM_T^l).

    Stages are paired from the last backwards, so that networks of different depth fit. Both
    networks get maps of the same class: the one that the teacher predicts.

    Raises:
        InputError: ``config`` has more stages than both networks share, or another number of
            alphas.
    """

    def __init__(
        self, student_layers: Layers, teacher_layers: Layers, config: MsarcConfig | None = None
    ) -> None:
        self.config = config = config or MsarcConfig()
        shared = min(len(student_layers.stages), len(teacher_layers.stages))
        count = config.stages or (len(config.alphas) if config.alphas else shared)
        self.alphas = config.alphas or (1.0,) * count
        if count > shared or len(self.alphas) != count:
            raise InputError(
                f"MSARC was given {count} stages and {len(self.alphas)} weights alpha; the two "
                f"networks share {shared} stages: give at most that many, and one alpha for each."
            )
        self.student_layers = replace(student_layers, stages=student_layers.stages[-count:])
        self.teacher_layers = replace(teacher_layers, stages=teacher_layers.stages[-count:])

    def teacher_maps(self, teacher: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits and maps of the frozen teacher from one pass, all detached."""
        with torch.enable_grad(), graded_capture(teacher, self.teacher_layers) as features:
            logits = teacher(images)
            classes = logits.detach().argmax(1)
            maps = stage_maps(
                features, logits, classes, self.teacher_layers, teacher, self.config.cam
            )
        return logits.detach(), [m.detach() for m in maps]

    def __call__(
        self,
        student: nn.Module,
        features: dict[str, Tensor],
        student_logits: Tensor,
        teacher_logits: Tensor,
        teacher_maps: list[Tensor],
    ) -> Tensor:
        """Return the loss, a scalar, from the student's captured pass and the teacher's maps."""
        student_maps = stage_maps(
            features,
            student_logits,
            teacher_logits.argmax(1),
            self.student_layers,
            student,
            self.config.cam,
            self.config.second_order,
        )
        terms = [
            alpha * map_distance(s, t, self.config.normalise)
            for alpha, s, t in zip(self.alphas, student_maps, teacher_maps, strict=True)
        ]
        return torch.stack(terms).sum()
