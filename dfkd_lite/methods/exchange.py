"""Channel-wise feature exchange (SpaceshipNet): images from mixtures of a generator's features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..generator import AttentionGenerator
from ..networks import evaluating


class FeatureMemory:
    """The maps of a generator's earlier batches, after its first layer and after each block.

    It keeps the newest ``batches``, all of one size, in half precision, on the device. At 32 px and
    the published settings this is 11 GB, also in a checkpoint.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.entries: list[list[Tensor]] = []  # per batch its maps, from the first to the largest

    def add(self, maps: Sequence[Tensor]) -> None:
        """Remember a batch by its maps, each (B, P, H, W)."""
        self.entries = [*self.entries, [m.detach().half() for m in maps]][-self.batches :]

    def load(self, entries: list[list[Tensor]], device: torch.device) -> None:
        """Restore the ``entries`` that a checkpoint has kept."""
        self.entries = [[m.to(device) for m in maps] for maps in entries]

    @torch.no_grad()
    def images(
        self, generator: AttentionGenerator, count: int, share: float, rng: torch.Generator
    ) -> Tensor:
        """Make ``count`` images (B, C, H, W), decoded by the present generator in eval mode.

        One level is drawn, and for each image any remembered map of this level, old or new. With
        probability ``share`` channels are exchanged across the batch.
        """

        def draw(high: int, size: tuple[int, ...] = ()) -> list[int]:
            return torch.randint(high, size, generator=rng, device=rng.device).flatten().tolist()

        (level,) = draw(len(self.entries[0]))
        rows = draw(sum(len(maps[0]) for maps in self.entries), (count,))
        size = len(self.entries[0][0])
        # to 32 bits before stacking: autocast to bfloat16 cannot stack 16 bits
        chosen = torch.stack([self.entries[r // size][level][r % size].float() for r in rows])
        if torch.rand((), generator=rng, device=rng.device) < share:
            chosen = exchanged(chosen, rng)
        with evaluating(generator):
            return generator.decode(chosen, level)


def all_maps(generator: AttentionGenerator, z: Tensor) -> list[Tensor]:
    """Return all maps of ``generator`` for ``z``: after its first layer and after each block."""
    maps = [generator.first_map(z)]
    for number in range(len(generator.blocks)):
        maps.append(generator.block(maps[-1], number))
    return maps


def exchanged(maps: Tensor, rng: torch.Generator) -> Tensor:
    """Exchange channels of maps (B, P, H, W): image i keeps a random half of its channels and takes
    the others from image B - 1 - i."""
    count, channels = maps.shape[:2]
    order = torch.rand(count, channels, generator=rng, device=rng.device).argsort(1)
    taken = (order >= channels - channels // 2).to(maps.device)
    return torch.where(taken[:, :, None, None], maps.flip(0), maps)
