"""Holds what every source gives: splits of 8-bit images with labels, and their statistics."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from ..errors import InputError, check_range
from ..networks import NetworkSpec
from .classes import aligned_labels

SIZES = (8, 224)  # smallest and largest side in pixels: of the digits, and of the paper

MEMORY_LIMIT = 1_500 * 2**20  # bytes of pixels; Tiny-ImageNet stays below, Imagenette is above

STATISTICS_IMAGES = 2_048  # read for mean and std where a set is too large for memory

DECODE_THREADS = min(8, os.cpu_count() or 1)

# What Pillow raises for files that are damaged or are not images.
_BAD_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)

# And for damaged notes inside a sound image.
_BAD_NOTES = (*_BAD_IMAGE, AttributeError, KeyError, TypeError, IndexError, OverflowError)

_GREY_MODES = ("1", "L", "LA", "La")

# How to turn an image upright, by its EXIF orientation (1: it is upright).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
        class_names: what the labels stand for, in their order; () where nobody knows.
        sorted_names: the labels are places in the order of the names, as class folders give them;
            if not, they are the source's own numbers.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...] = ()
    sorted_names: bool = False

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
        class_names, sorted_names: as in `Split`.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    channels: int
    size: int
    class_names: tuple[str, ...] = ()
    sorted_names: bool = False

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


def aligned(split: AnySplit, class_names: tuple[str, ...]) -> AnySplit:
    """Give a split the labels of a network whose classes are called ``class_names``.

    Where the names are the same in another order, the labels are exchanged. Nothing is compared
    where one side has no names, nor where one has only the numbers 0, 1, .. and the labels are the
    source's own numbers.

    Raises:
        InputError: the names differ.
    """
    found = aligned_labels(split.class_names, class_names, split.sorted_names)
    if found is None:
        return split
    return replace(split, labels=torch.tensor(found)[split.labels], class_names=class_names)


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
        origin: where each split was found, in a few words.
        passed_over: folders that were not read.

    As text it says in two lines what was read.
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
    origin: Mapping[str, str] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, split in self.splits().items():
            if split.class_names != self.class_names:
                object.__setattr__(self, name, replace(split, class_names=self.class_names))

    def splits(self) -> dict[str, AnySplit]:
        """Return the splits that there are, by name."""
        every = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in every.items() if split is not None}

    def __str__(self) -> str:
        parts = []
        for name, split in self.splits().items():
            origin = self.origin.get(name)
            parts.append(f"{name} {len(split)}" + (f" ({origin})" if origin else ""))
        shape = f"{self.channels} x {self.size} x {self.size}"
        over = f"; passed over: {', '.join(self.passed_over)}" if self.passed_over else ""
        counts = torch.bincount(self.train.labels, minlength=self.classes)
        each = f"{counts.min()}" + (f" to {counts.max()}" if counts.min() < counts.max() else "")
        return (
            f"{self.name}: {', '.join(parts)} images of {shape}{over}\n"
            f"{self.classes} classes, {each} training images each: first "
            f"'{self.class_names[0]}', last '{self.class_names[-1]}'"
        )

    def aligned(self, class_names: tuple[str, ...]) -> ImageData:
        """Give all labels the order of a network's classes, as :func:`aligned` does."""
        test = aligned(self.test, class_names)
        if test is self.test:
            return self
        val = None if self.val is None else aligned(self.val, class_names)
        train = aligned(self.train, class_names)
        return replace(self, class_names=class_names, train=train, val=val, test=test)

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


def _open(path: Path, whole: bool = False) -> Image.Image:
    """Open an image file and read its header; raise InputError where it cannot be read.

    ``whole`` reads all bytes first: a TIFF that Pillow maps from its path is turned wrongly.
    """
    try:
        return Image.open(io.BytesIO(path.read_bytes()) if whole else path)
    except (*_BAD_IMAGE, Image.DecompressionBombError) as error:
        raise InputError(f"The image {path} cannot be read ({error}); replace it.") from None


def kind_and_side(path: Path) -> tuple[bool, int]:
    """Return whether an image file is grey, and its shorter side in pixels."""
    with _open(path) as image:
        return image.mode in _GREY_MODES, min(image.size)


def decode(path: Path, channels: int, size: int) -> Tensor:
    """Decode one image file to uint8 (channels, size, size): resized, and cut to its middle.

    It is turned upright as its EXIF orientation says, and laid on white where it is transparent.
    """
    with _open(path, whole=True) as image:
        if image.mode.startswith(("I", "F")):
            raise InputError(f"The image {path} has more than 8 bits a pixel; save it with 8.")
        try:
            picture = _opaque(_upright(image), "L" if channels == 1 else "RGB")
        except (*_BAD_IMAGE, Image.DecompressionBombError) as error:
            raise InputError(f"The image {path} cannot be read ({error}); replace it.") from None
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture)).view(size, size, channels).permute(2, 0, 1)


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # first, because Pillow turns a TIFF by itself while it loads
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _BAD_NOTES:  # damaged notes do not make an image unreadable
        orientation = None
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _opaque(image: Image.Image, mode: str) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert(mode)
    coloured = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, coloured).convert(mode)
