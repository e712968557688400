"""The pool of synthetic images for the student: on the device, in 8 bits, of bounded size.

Built in chapter 8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import InputError, check_range


class ImagePool:
    """A ring buffer of at most ``capacity`` images (C, H, W): new images replace the oldest.

    Images go in and come out as float32 in [0, 1]. They are stored as uint8, which needs a quarter
    of the memory, and channels last, the layout in which convolutions are fastest.
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
        self.added = 0  # so far, in all; the next image goes to slot added % capacity
        self._pixels = torch.empty(0, height, width, channels, dtype=torch.uint8, device=device)

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, images: Tensor) -> None:
        """Store images (B, C, H, W) in [0, 1]; of more than ``capacity`` only the last."""
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
        # doubled, not made at full size: a short run does not pay for a capacity it never fills
        have = len(self._pixels)
        if needed > have:
            size = min(max(needed, 2 * have), self.capacity)
            more = self._pixels.new_zeros(size - have, *self._pixels.shape[1:])
            self._pixels = torch.cat([self._pixels, more])

    def images(self) -> Tensor:
        """Return all stored images, uint8 (N, C, H, W), in the order of their slots."""
        return self._pixels[: len(self)].permute(0, 3, 1, 2)

    def newest(self, count: int) -> Tensor:
        """Return the last ``count`` images added, or all if there are fewer, float32 in [0, 1]."""
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
        """Draw ``batch_size`` images with replacement: float32 (B, C, H, W) in [0, 1].

        Each image is shifted by up to ``shift`` pixels in each direction (a crop of the image
        padded by its own mirror image). With ``flip`` it is mirrored left to right half the time.
        """
        if not len(self):
            raise InputError("The image pool is empty: synthesise before sampling.")
        check_range("shift", shift, 0, min(self._pixels.shape[1:3]) - 1)
        index = torch.randint(len(self), (batch_size,), generator=rng, device=self._pixels.device)
        return augment(self._pixels, index, rng, shift, flip).float().div_(255)

    def state_dict(self) -> dict[str, Tensor | int]:
        """Return tensors and numbers for a checkpoint."""
        return {"pixels": self._pixels.clone(), "added": self.added, "capacity": self.capacity}

    def load_state_dict(self, state: dict) -> None:
        """Restore the images from :meth:`state_dict` of a pool of the same shape and capacity."""
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
    """Shift and mirror the images (N, H, W, C) at ``index`` (B,) at random: (B, C, H, W).

    One gather serves the batch. The result is a channels-last view with the dtype of ``pixels``.
    """
    if not shift and not flip:
        return pixels[index].permute(0, 3, 1, 2)
    height, width = pixels.shape[1:3]
    rows, columns = crops(len(index), height, width, rng, shift, flip, pixels.device)
    return cut(pixels, index, rows, columns)


def cut(pixels: Tensor, index: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Cut the windows of :func:`crops` from images (N, H, W, C) at ``index`` (B,): (B, C, H, W)."""
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
    """Draw the rows (B, H) and columns (B, W) of its image for each of ``batch`` random crops."""
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
    """Return indices (B, length) of a window moved by up to ``shift``, mirrored at both borders."""
    offsets = torch.randint(-shift, shift + 1, (batch, 1), generator=rng, device=device)
    index = (torch.arange(length, device=device) + offsets).abs()
    return length - 1 - (length - 1 - index).abs()
