"""What methods with a generator share: making it, drawing it anew, keeping the best images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..devices import placed, seeded
from ..generator import AttentionGenerator, GeneratorConfig
from ..parallel import mean, synchronise
from .base import Logs, Problem


def plain_generator(**settings: Any) -> GeneratorConfig:
    """Return settings of the DCGAN of most methods: the book's generator without attention."""
    return GeneratorConfig(attention=None, **settings)


def new_generator(problem: Problem, config: GeneratorConfig) -> AttentionGenerator:
    """Make a generator of the problem's images, on its device."""
    generator = AttentionGenerator(problem.spec.size, problem.spec.channels, config)
    return synchronise(placed(generator, problem.device))


def redraw(generator: AttentionGenerator, problem: Problem, config: GeneratorConfig) -> None:
    """Draw a generator's weights anew, like a new one's, and reset its running statistics."""
    seed = torch.randint(2**31, (), generator=problem.rng, device=problem.device)
    with seeded(int(seed)):
        generator.load_state_dict(new_generator(problem, config).state_dict())


class Best:
    """The images with the lowest loss so far. They are copies, because generators keep changing."""

    def __init__(self) -> None:
        self.loss = math.inf
        self.images = torch.empty(0)
        self.logs: Logs = {}

    def see(self, loss: Tensor, images: Tensor, logs: Logs) -> bool:
        """Keep the images if their loss is the lowest so far, and return whether it is."""
        value = mean(loss.detach()).item()
        better = not self.images.numel() or value < self.loss
        if better:
            self.loss, self.images, self.logs = value, images.detach().clone(), logs
        return better


def logged(**parts: Tensor) -> Logs:
    """Detach the parts of a loss, for the history."""
    return {name: part.detach() for name, part in parts.items()}
