"""Channel-wise feature exchange (SpaceshipNet): images from mixtures of a generator's features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..generator import AttentionGenerator
from ..networks import evaluating


class FeatureMemory:
    """Maps of a generator for batches that it has made: after its first layer and each block.

    The newest ``batches`` of one size are kept, in half precision, on the device: at 32 px and the
    published settings 11 GB, which a checkpoint holds too.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.entries: list[list[Tensor]] = []  # a batch: its maps, from the first to the largest

    def add(self, maps: Sequence[Tensor]) -> None:
        """Remember a batch by its maps, each (B, P, H, W)."""
        self.entries = [*self.entries, [m.detach().half() for m in maps]][-self.batches :]

    def load(self, entries: list[list[Tensor]], device: torch.device) -> None:
        """Take back the ``entries`` that a checkpoint has kept."""
        self.entries = [[m.to(device) for m in maps] for maps in entries]

    @torch.no_grad()
    def images(
        self, generator: AttentionGenerator, count: int, share: float, rng: torch.Generator
    ) -> Tensor:
        """``count`` images (B, C, H, W) that the present generator decodes, in eval mode.

        One level is drawn, and for each image any map of it in the memory, old or new; with
        probability ``share`` the batch's channels are exchanged.
        """

        def draw(high: int, size: tuple[int, ...] = ()) -> list[int]:
            return torch.randint(high, size, generator=rng, device=rng.device).flatten().tolist()

        (level,) = draw(len(self.entries[0]))
        rows = draw(sum(len(maps[0]) for maps in self.entries), (count,))
        size = len(self.entries[0][0])
        # numbers of 32 bits first: autocast to bfloat16 cannot stack those of 16
        chosen = torch.stack([self.entries[r // size][level][r % size].float() for r in rows])
        if torch.rand((), generator=rng, device=rng.device) < share:
            chosen = exchanged(chosen, rng)
        with evaluating(generator):
            return generator.decode(chosen, level)


def all_maps(generator: AttentionGenerator, z: Tensor) -> list[Tensor]:
    """What ``generator`` computes on the way: after its first layer and after each block."""
    maps = [generator.first_map(z)]
    for number in range(len(generator.blocks)):
        maps.append(generator.block(maps[-1], number))
    return maps


def exchanged(maps: Tensor, rng: torch.Generator) -> Tensor:
    """Maps (B, P, H, W): image i keeps a random half of its channels and takes the others from
    image B - 1 - i."""
    count, channels = maps.shape[:2]
    order = torch.rand(count, channels, generator=rng, device=rng.device).argsort(1)
    taken = (order >= channels - channels // 2).to(maps.device)
    return torch.where(taken[:, :, None, None], maps.flip(0), maps)
