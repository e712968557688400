"""The synthetic images kept for the student: on the device, 8 bit, bounded.

Built in chapter 8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import InputError, check_range


class ImagePool:
    """A ring of at most ``capacity`` images (C, H, W); the oldest make room for new ones.

    Images go in and come out as float32 in [0, 1] and are kept as uint8, channels last: a quarter
    of the memory, and batches come out in the layout that convolutions like best.
    """

    def __init__(
        self,
        capacity: int,
        image_shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
    ) -> None:
        check_range("capacity of the image pool", capacity, 1)
        channels, height, width = image_shape
        self.capacity = capacity
        self.added = 0  # ever; the next image goes to added % capacity
        self._pixels = torch.empty(0, height, width, channels, dtype=torch.uint8, device=device)

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, images: Tensor) -> None:
        """Keep images (B, C, H, W) in [0, 1]; of more than ``capacity`` the last ones."""
        height, width, channels = self._pixels.shape[1:]
        if images.dim() != 4 or images.shape[1:] != (channels, height, width):
            raise InputError(
                f"The pool keeps images (B, {channels}, {height}, {width}), "
                f"not {tuple(images.shape)}."
            )
        pixels = images.detach().mul(255).round_().clamp_(0, 255).to(torch.uint8)
        pixels = pixels.permute(0, 2, 3, 1)[-self.capacity :]
        first = self.added + len(images) - len(pixels)
        slots = (first + torch.arange(len(pixels), device=self._pixels.device)) % self.capacity
        self._grow(min(self.added + len(images), self.capacity))
        self._pixels[slots] = pixels.to(self._pixels.device)
        self.added += len(images)

    def _grow(self, needed: int) -> None:
        # Doubled, not made at full size at once: a short run never pays for a long run's bound.
        have = len(self._pixels)
        if needed > have:
            size = min(max(needed, 2 * have), self.capacity)
            more = self._pixels.new_zeros(size - have, *self._pixels.shape[1:])
            self._pixels = torch.cat([self._pixels, more])

    def images(self) -> Tensor:
        """All images kept, as uint8 (N, C, H, W), in the order of their slots."""
        return self._pixels[: len(self)].permute(0, 3, 1, 2)

    def newest(self, count: int) -> Tensor:
        """The last ``count`` images added (fewer where there are fewer), as float32 in [0, 1]."""
        count = min(count, len(self))
        slots = (self.added - count + torch.arange(count)) % self.capacity
        return self._pixels[slots.to(self._pixels.device)].permute(0, 3, 1, 2).float() / 255

    def sample(
        self,
        batch_size: int,
        rng: torch.Generator | None = None,
        shift: int = 0,
        flip: bool = False,
    ) -> Tensor:
        """``batch_size`` images drawn with replacement: float32 (B, C, H, W) in [0, 1].

        Each is shifted by up to ``shift`` pixels both ways (a crop of the image padded by its own
        mirror image), and with ``flip`` mirrored left to right half of the time.
        """
        if not len(self):
            raise InputError("The image pool is empty: synthesise before sampling.")
        check_range("shift", shift, 0, min(self._pixels.shape[1:3]) - 1)
        index = torch.randint(len(self), (batch_size,), generator=rng, device=self._pixels.device)
        return augment(self._pixels, index, rng, shift, flip).float().div_(255)

    def state_dict(self) -> dict[str, Tensor | int]:
        """Tensors and numbers for a checkpoint."""
        return {"pixels": self._pixels.clone(), "added": self.added, "capacity": self.capacity}

    def load_state_dict(self, state: dict) -> None:
        """Take the images of :meth:`state_dict` back, of a pool of the same shape and capacity."""
        shape = tuple(state["pixels"].shape[1:])
        if shape != self._pixels.shape[1:] or state["capacity"] != self.capacity:
            raise InputError(
                f"The saved image pool keeps {state['capacity']} images of {shape}, this one "
                f"{self.capacity} of {tuple(self._pixels.shape[1:])}: make it with the same."
            )
        self._pixels = state["pixels"].to(self._pixels.device, copy=True)
        self.added = int(state["added"])


def augment(
    pixels: Tensor,
    index: Tensor,
    rng: torch.Generator | None = None,
    shift: int = 0,
    flip: bool = False,
) -> Tensor:
    """Images (N, H, W, C) at ``index`` (B,), shifted and mirrored at random: (B, C, H, W).

    One gather for the whole batch; the result is a channels-last view, of the dtype of ``pixels``.
    """
    if not shift and not flip:
        return pixels[index].permute(0, 3, 1, 2)
    height, width = pixels.shape[1:3]
    rows, columns = crops(len(index), height, width, rng, shift, flip, pixels.device)
    return cut(pixels, index, rows, columns)


def cut(pixels: Tensor, index: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Of images (N, H, W, C) those at ``index`` (B,), by :func:`crops`: (B, C, H, W)."""
    return pixels[index[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def crops(
    batch: int,
    height: int,
    width: int,
    rng: torch.Generator | None,
    shift: int,
    flip: bool,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Which rows (B, H) and columns (B, W) of its image each of ``batch`` random crops takes."""
    rows = _window(height, batch, shift, rng, device)
    columns = _window(width, batch, shift, rng, device)
    if flip:
        mirrored = torch.rand(batch, 1, generator=rng, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    return rows, columns


def _window(
    length: int,
    batch: int,
    shift: int,
    rng: torch.Generator | None,
    device: torch.device,
) -> Tensor:
    """(B, length) indices of a window moved by up to ``shift``, mirrored at the two borders."""
    offsets = torch.randint(-shift, shift + 1, (batch, 1), generator=rng, device=device)
    index = (torch.arange(length, device=device) + offsets).abs()
    return length - 1 - (length - 1 - index).abs()
