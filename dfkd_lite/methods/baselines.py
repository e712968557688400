"""Baselines to compare with: a student taught on noise, and one taught on given images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import check_range
from ..msarc import MsarcConfig
from ..parallel import mine
from .base import Logs, Method, SpatialMethod


@dataclass(frozen=True)
class NoiseConfig:
    """Settings of noise images, whose pixels are independent: no data and no generator."""

    synthesis_batch: int = 128  # as the method, Table 1
    temperature: float = 20.0  # as the method, Table 1

    def __post_init__(self) -> None:
        check_range("synthesis_batch", self.synthesis_batch, 1)
        check_range("temperature", self.temperature, 0, 1000, above=True)


class Noise(Method):
    """A baseline whose pixels are normal, with the mean and spread that the teacher expects.

    What a student learns from them comes from the teacher's answers alone.
    """

    Config = NoiseConfig

    @classmethod
    def evaluations(cls, config: Any, loop: Any) -> int:
        return 0

    def synthesise(self, student: nn.Module, warm_up: bool) -> tuple[Tensor, Logs]:
        problem = self.problem
        shape = (self.config.synthesis_batch, *problem.spec.image_shape)
        x = mine(torch.randn(shape, generator=problem.rng, device=problem.device))
        return problem.pixels(x).clamp(0, 1), {}


@dataclass(frozen=True)
class GivenConfig:
    """Settings of given images: the real ones as an upper bound, or another data set."""

    images: Tensor  # uint8 (N, C, H, W)
    synthesis_batch: int = 128  # as the method, Table 1
    temperature: float = 20.0  # as the method, Table 1
    beta: float = 0.0  # Eq. 17; 0: plain distillation, without MSARC
    msarc: MsarcConfig = field(default_factory=MsarcConfig)  # Eqs. 9 and 15

    def __post_init__(self) -> None:
        check_range("synthesis_batch", self.synthesis_batch, 1)
        check_range("temperature", self.temperature, 0, 1000, above=True)
        check_range("beta", self.beta, 0)


class Given(SpatialMethod):
    """Distillation *with* data (Eq. 1): it draws from given images instead of making any."""

    Config = GivenConfig

    @classmethod
    def evaluations(cls, config: Any, loop: Any) -> int:
        return 0

    def synthesise(self, student: nn.Module, warm_up: bool) -> tuple[Tensor, Logs]:
        pool = self.config.images
        index = torch.randint(
            len(pool),
            (self.config.synthesis_batch,),
            generator=self.problem.rng,
            device=self.problem.device,
        ).to(pool.device)
        return pool[mine(index)].to(self.problem.device).float() / 255, {}
