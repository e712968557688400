"""Makes pictures as arrays and PNG bytes: sheets of images, and views of what λ changes.

Besides PyTorch it needs only NumPy and Pillow: making a picture loads no drawing library.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dfkd_lite.errors import InputError
from dfkd_lite.networks import capture, evaluating

if TYPE_CHECKING:
    from dfkd_lite.generator import AttentionGenerator


def to_pixels(images: Tensor) -> np.ndarray:
    """Convert images (B, 1 or 3, H, W), uint8 or float in [0, 1], to uint8 (B, H, W, 3)."""
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise InputError(
            f"Images to draw are (B, 1, H, W) or (B, 3, H, W), not {tuple(images.shape)}."
        )
    if images.dtype != torch.uint8:
        images = images.detach().clamp(0, 1).mul(255).round().to(torch.uint8)
    return images.cpu().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()


def tile(images: Tensor, columns: int, gap: int = 1) -> np.ndarray:
    """Put images in rows of ``columns``, ``gap`` white pixels between them: uint8 (H, W, 3)."""
    pixels = to_pixels(images)
    count, height, width = pixels.shape[:3]
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for number, image in enumerate(pixels):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def data_uri(sheet: np.ndarray, zoom: int = 4) -> str:
    """Return a picture (H, W, 3) uint8 as a PNG in a ``data:`` address, enlarged ``zoom`` times.

    It is enlarged here because browsers blur a small picture when they enlarge it.
    """
    return "data:image/png;base64," + base64.b64encode(png(sheet, zoom)).decode()


def png(sheet: np.ndarray, zoom: int = 4) -> bytes:
    """Return a picture (H, W, 3) uint8 as PNG bytes, each pixel ``zoom`` wide and high."""
    buffer = io.BytesIO()
    Image.fromarray(sheet.repeat(zoom, 0).repeat(zoom, 1)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


@torch.no_grad()
def lambda_view(generator: AttentionGenerator, z: Tensor, lam: float) -> tuple[np.ndarray, float]:
    """Show what λ of Eq. 6 changes in images G(z): a picture (H, W, 3) uint8, the largest change.

    The picture has a column for each latent of ``z`` (B, z_dim), and three rows: the image; the
    attention map of the last block, divided by its maximum; the difference from the image at λ = 0,
    grey where there is none, black or white where it is largest. The largest change of a pixel is
    in [0, 1]. The generator runs in eval mode and keeps its own λ; without attention it is refused.
    """
    if not generator.attentions:
        raise InputError("This generator has no attention modules: λ does nothing to it.")
    own, last = generator.lam, generator.attention_names[-1]
    z = z.to(generator.stem.weight.device)
    try:
        with evaluating(generator), capture(generator, [last]) as maps:
            generator.lam = 0.0
            plain = generator(z)
            generator.lam = lam
            images = generator(z)
            if not maps:  # λ = 0 skips the modules: a tiny λ gives the map
                generator.lam = 1e-9
                generator(z)
    finally:
        generator.lam = own
    attention = maps[last].mean(1, keepdim=True)
    attention = attention / attention.amax((1, 2, 3), keepdim=True)
    difference = (images - plain).mean(1, keepdim=True)
    largest = float((images - plain).abs().max())
    grey = 0.5 + 0.5 * difference / max(float(difference.abs().max()), 1e-12)
    shape = images.shape
    rows = torch.cat([images, attention.expand(shape), grey.expand(shape)])
    return tile(rows, columns=len(z)), largest


def change_note(largest: float) -> str:
    """Return the sentence that stands over a :func:`lambda_view`; ``largest`` is in [0, 1]."""
    return f"largest change of a pixel: {255 * largest:.2g} grey levels of 256"
