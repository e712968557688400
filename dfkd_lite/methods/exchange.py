"""Channel-wise feature exchange (SpaceshipNet): images from mixtures of a generator's features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..generator import AttentionGenerator
from ..networks import evaluating


class FeatureMemory:
    """Maps of a generator for batches that it has made: after its first layer and each block.

    The newest ``batches`` are kept, in half precision, on the device.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.entries: list[list[Tensor]] = []  # a batch: its maps, from the first to the largest

    def add(self, maps: Sequence[Tensor]) -> None:
        """Remember a batch by its maps, each (B, P, H, W)."""
        self.entries = [*self.entries, [m.detach().half() for m in maps]][-self.batches :]

    def state(self) -> list[list[Tensor]]:
        """What a checkpoint keeps."""
        return self.entries

    def load(self, entries: list[list[Tensor]], device: torch.device) -> None:
        """Take :meth:`state` back."""
        self.entries = [[m.to(device) for m in maps] for maps in entries]

    @torch.no_grad()
    def images(
        self, generator: AttentionGenerator, count: int, share: float, rng: torch.Generator
    ) -> Tensor:
        """``count`` images (B, C, H, W) that the present generator decodes, in eval mode.

        A batch and one of its levels are drawn; with probability ``share`` an image's map keeps a
        random half of its channels and takes the rest from another image of the batch.
        """

        def draw(high: int, size: tuple[int, ...] = ()) -> Tensor:
            return torch.randint(high, size, generator=rng, device=rng.device)

        maps = self.entries[int(draw(len(self.entries)))]
        level = int(draw(len(maps)))
        chosen = maps[level][draw(len(maps[0]), (count,)).to(maps[0].device)].float()
        with evaluating(generator):
            return generator.decode(exchanged(chosen, share, rng), level)


def all_maps(generator: AttentionGenerator, z: Tensor) -> list[Tensor]:
    """What ``generator`` computes on the way: after its first layer and after each block."""
    maps = [generator.first_map(z)]
    for number in range(len(generator.blocks)):
        maps.append(generator.block(maps[-1], number))
    return maps


def exchanged(maps: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """Maps (B, P, H, W): with probability ``share`` image i keeps a random half of its channels and
    takes the others from image B - 1 - i."""
    count, channels = maps.shape[:2]
    order = torch.rand(count, channels, generator=rng, device=rng.device).argsort(1)
    taken = order >= channels - channels // 2
    mixed = torch.rand(count, 1, generator=rng, device=rng.device) < share
    mask = (taken & mixed).to(maps.device)[:, :, None, None]
    return torch.where(mask, maps.flip(0), maps)
