"""Holds what every source gives: splits of 8-bit images with labels, and their statistics."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import InputError, check_range
from ..networks import NetworkSpec

SIZES = (8, 224)  # smallest and largest side in pixels: of the digits, and of the paper

MEMORY_LIMIT = 1_500 * 2**20  # bytes of pixels; Tiny-ImageNet stays below, Imagenette is above

STATISTICS_IMAGES = 2_048  # read for mean and std where a set is too large for memory

DECODE_THREADS = min(8, os.cpu_count() or 1)

# What Pillow raises for files that are damaged or are not images.
_BAD_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


def _chunks(count: int, batch_size: int, rng: torch.Generator | None) -> list[Tensor | slice]:
    """Return the images of each batch: slices in order, or index tensors where ``rng`` shuffles."""
    check_range("batch_size", batch_size, 1)
    if rng is None:
        return [slice(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
    order = torch.randperm(count, generator=rng, device=rng.device).cpu()
    chunks = list(order.split(batch_size))
    if batch_size > 1 and len(chunks) > 1 and len(chunks[-1]) == 1:  # batch-norm needs two
        chunks[-2:] = [torch.cat(chunks[-2:])]
    return chunks


def _to_float(images: Tensor, device: torch.device | str) -> Tensor:
    """Move uint8 images to ``device``, then convert to [0, 1]: floats are four times as large."""
    return images.to(device).to(torch.float32).div_(255)


@dataclass(frozen=True, eq=False)
class Split:
    """Holds images as one tensor (in memory, or mapped from a file on disk).

    Attributes:
        images: uint8 (N, C, H, W), 0 to 255.
        labels: int64 (N,), 0 to classes - 1.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            shape = tuple(self.images.shape)
            raise InputError(
                f"Images must be uint8 of shape (N, C, H, W), not {self.images.dtype} of {shape}."
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            shape = tuple(self.labels.shape)
            raise InputError(
                f"Labels must be int64, one for each of the {len(self.images)} images, "
                f"not {self.labels.dtype} of shape {shape}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor | slice) -> Tensor:
        """Return the images at ``indices``: uint8 (n, C, H, W)."""
        return self.images[indices]

    def batches(
        self,
        batch_size: int,
        shuffle_rng: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through all images once, in order or as ``shuffle_rng`` says; the last may be short.

        Where they are shuffled, a single image that is left over joins the batch before it.

        Yields:
            Images float32 (B, C, H, W) in [0, 1] and labels int64 (B,), both on ``device``.
        """
        chunks = _chunks(len(self), batch_size, shuffle_rng)
        return ((_to_float(self.take(c), device), self.labels[c].to(device)) for c in chunks)


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """Holds the paths of images, which are decoded batch by batch: for more than memory can hold.

    Attributes:
        paths: N image files.
        labels: int64 (N,).
        channels: 1 (grey) or 3 (RGB); every image is converted.
        size: side in pixels; an image's shorter side is resized to it, and the middle is kept.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    channels: int
    size: int

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def images(self) -> Tensor:
        """Raise InputError: these images are too many for memory."""
        raise InputError(
            "These images are read from disk batch by batch; use batches() or take() instead of "
            ".images."
        )

    def take(self, indices: Tensor | slice) -> Tensor:
        """Decode the images at ``indices``: uint8 (n, C, H, W)."""
        rows = torch.arange(len(self))[indices].tolist()
        with ThreadPoolExecutor(DECODE_THREADS) as pool:
            decoded = pool.map(lambda i: decode(self.paths[i], self.channels, self.size), rows)
            shape = (0, self.channels, self.size, self.size)
            return torch.stack(list(decoded)) if rows else torch.empty(shape, dtype=torch.uint8)

    def batches(
        self,
        batch_size: int,
        shuffle_rng: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what `Split.batches` does; decode the next batch while this one is in use."""
        return self._decode_ahead(_chunks(len(self), batch_size, shuffle_rng), device)

    def _decode_ahead(
        self, chunks: list[Tensor | slice], device: torch.device | str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self.take, chunks[0])
            for i, chunk in enumerate(chunks):
                images = coming.result()
                if i + 1 < len(chunks):
                    coming = ahead.submit(self.take, chunks[i + 1])
                yield _to_float(images, device), self.labels[chunk].to(device)


AnySplit = Split | FolderSplit


@dataclass(frozen=True, eq=False)
class ImageData:
    """Holds a data set for image classification.

    Attributes:
        name: the name or path it was loaded by.
        class_names: one a class, in the order of the labels.
        channels, size: every image is (channels, size, size).
        mean, std: one number a channel, of pixels in [0, 1], from the train split (imagenette and
            imagenet100: ImageNet's usual constants); ``std`` from the split is at least 1/255.
        train, val, test: the splits; ``val`` is None where the source has none.
    """

    name: str
    class_names: tuple[str, ...]
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: AnySplit
    val: AnySplit | None
    test: AnySplit

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        return len(self.class_names)

    def spec(self, network: str) -> NetworkSpec:
        """Return what is needed to build ``network`` (a name) for this data."""
        return NetworkSpec(
            network, self.classes, self.channels, self.size, self.mean, self.std, self.class_names
        )


def check_size(size: int | None) -> None:
    """Refuse (InputError) a side in pixels that is no whole number, or outside 8 to 224."""
    if size is None:
        return
    if isinstance(size, bool) or not isinstance(size, int):
        raise InputError(f"size must be a whole number of pixels, not {size!r}.")
    check_range("size", size, *SIZES)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize uint8 (N, C, H, W) bilinearly (antialiased where it shrinks), in pieces for memory."""
    if images.shape[-2:] == (size, size):
        return images
    out = torch.empty(*images.shape[:2], size, size, dtype=torch.uint8)
    for i in range(0, len(images), 1024):
        piece = images[i : i + 1024].float()
        resized = F.interpolate(piece, size=(size, size), mode="bilinear", antialias=True)
        out[i : i + 1024] = resized.round_().clamp_(0, 255).to(torch.uint8)
    return out


def pixel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and std in [0, 1] of uint8 (N, C, H, W), from exact counts."""
    channels = images.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.float64)
    for i in range(0, len(images), 1024):
        for c in range(channels):
            counts[c] += torch.bincount(images[i : i + 1024, c].flatten(), minlength=256)
    shares = counts / counts.sum(1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = shares @ levels
    variance = (shares * (levels - mean[:, None]) ** 2).sum(1)
    std = variance.sqrt().clamp_min(1 / 255)  # a constant channel would divide by zero
    return tuple(mean.tolist()), tuple(std.tolist())


def from_tensors(
    name: str, class_names: tuple[str, ...], splits: dict[str, Split], size: int | None = None
) -> ImageData:
    """Make an ImageData of splits in memory, resized to ``size``, with the statistics of train."""
    if size is not None:
        splits = {s: Split(resize(d.images, size), d.labels) for s, d in splits.items()}
    train, val, test = splits["train"], splits.get("val"), splits["test"]
    _, channels, side, _ = train.images.shape
    mean, std = pixel_statistics(train.images)
    return ImageData(name, class_names, channels, side, mean, std, train, val, test)


def _open(path: Path) -> Image.Image:
    """Open an image file and read its header; raise InputError where it cannot be read."""
    try:
        return Image.open(path)
    except (*_BAD_IMAGE, Image.DecompressionBombError) as error:
        raise InputError(f"The image {path} cannot be read ({error}); replace it.") from None


def kind_and_side(path: Path) -> tuple[str, int]:
    """Return Pillow's mode of an image file ("L", "RGB", ...) and its shorter side in pixels."""
    with _open(path) as image:
        return image.mode, min(image.size)


def decode(path: Path, channels: int, size: int) -> Tensor:
    """Decode one image file to uint8 (channels, size, size): resized, and cut to its middle."""
    with _open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise InputError(f"The image {path} has more than 8 bits a pixel; save it with 8.")
        try:
            picture = image.convert("L" if channels == 1 else "RGB")
        except _BAD_IMAGE as error:
            raise InputError(f"The image {path} cannot be read ({error}); replace it.") from None
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture)).view(size, size, channels).permute(2, 0, 1)
