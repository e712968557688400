"""Pictures as arrays and PNG bytes: sheets of images, and what λ does to them.

NumPy and Pillow are all that it takes: who makes a picture waits for no drawing library.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..networks import capture, evaluating

if TYPE_CHECKING:
    from ..generator import AttentionGenerator


def to_pixels(images: Tensor) -> np.ndarray:
    """Images (B, C, H, W), uint8 or float in [0, 1] -> uint8 (B, H, W, 3); one channel is grey."""
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise InputError(
            f"Images to draw are (B, 1, H, W) or (B, 3, H, W), not {tuple(images.shape)}."
        )
    if images.dtype != torch.uint8:
        images = images.detach().clamp(0, 1).mul(255).round().to(torch.uint8)
    return images.cpu().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()


def tile(images: Tensor, columns: int, gap: int = 1) -> np.ndarray:
    """Images side by side, ``columns`` in a row, ``gap`` white pixels between: uint8 (H, W, 3)."""
    pixels = to_pixels(images)
    count, height, width = pixels.shape[:3]
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for number, image in enumerate(pixels):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def data_uri(sheet: np.ndarray, zoom: int = 4) -> str:
    """A picture (H, W, 3) uint8 as a PNG inside a ``data:`` address, each pixel ``zoom`` wide.

    Enlarged here, because browsers smooth small pictures that they stretch.
    """
    return "data:image/png;base64," + base64.b64encode(png(sheet, zoom)).decode()


def png(sheet: np.ndarray, zoom: int = 4) -> bytes:
    """A picture (H, W, 3) uint8 as PNG bytes, each pixel ``zoom`` wide and high."""
    buffer = io.BytesIO()
    Image.fromarray(sheet.repeat(zoom, 0).repeat(zoom, 1)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


@torch.no_grad()
def lambda_view(generator: AttentionGenerator, z: Tensor, lam: float) -> tuple[np.ndarray, float]:
    """What λ of Eq. 6 does to images G(z): a picture (H, W, 3) uint8, and the largest change.

    Three rows, one column a latent (B, z_dim): the image; the attention map of the last block
    (each scaled to its own maximum); the difference from the image at λ = 0, grey where there is
    none, scaled so that the largest one is black or white. The largest change is in [0, 1] of the
    pixel range. The generator is in eval mode and keeps its own λ.
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
            if not maps:  # at λ = 0 the modules are skipped: look at the map all the same
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
    """The sentence that stands over a :func:`lambda_view`."""
    return f"largest change of a pixel: {255 * largest:.2g} grey levels of 256"
