"""The generator of the method: a DCGAN with spatial attention in each block (Eqs. 3 to 6).

Built in chapter 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from .devices import full
from .errors import InputError, check_range, choose


@dataclass(frozen=True)
class AttentionConfig:
    """Settings of the attention. Where the paper is silent, options are the readings it allows."""

    lam: float = 0.03  # lambda of Eq. 6; Table 1
    softmax: str = "spatial"  # or "channel": Eq. 6 names no axis; "spatial" gives one map
    rescale: bool = False  # True: the softmax times its length, so that its mean is 1 (ours)

    def __post_init__(self) -> None:
        check_range("lam (lambda of Eq. 6)", self.lam, 0, 1000)
        choose("softmax axis", self.softmax, ("spatial", "channel"))


@dataclass(frozen=True)
class GeneratorConfig:
    """Settings of the generator. ``attention=None`` gives the plain DCGAN of Table 5."""

    z_dim: int = 256  # length of z: FastDFKD, CMI
    width: int = 64  # channels of the last block; the others have twice as many: FastDFKD, CMI
    # None: no attention module. Else:
    attention: AttentionConfig | None = field(default_factory=AttentionConfig)  # Eqs. 4 to 6
    upsample: str = "nearest"  # nearest + 3x3 convolution as in FastDFKD, or "transposed"
    spectral_norm: bool = False  # named in Fig. 1 only

    def __post_init__(self) -> None:
        check_range("z_dim", self.z_dim, 1)
        check_range("width", self.width, 4)
        choose("upsampling", self.upsample, ("nearest", "transposed"))


class SpatialAttention(nn.Module):
    """Eqs. 4 to 6: features F (B, C, H, W) -> lam * softmax(A_s) * F + F, of the same shape.

    ``lam`` can be changed at any time; at 0 the features come back unchanged. Max-unpooling puts
    each value back where the pooling found it, also for odd sizes. H and W must be at least 2.
    """

    def __init__(self, channels: int, config: AttentionConfig | None = None) -> None:
        super().__init__()
        config = config or AttentionConfig()
        hidden = max(channels // 8, 4)  # the paper gives no width
        maps = 1 if config.softmax == "spatial" else channels
        self.lam = config.lam
        self.reduce = nn.Conv2d(channels, hidden, 1)  # F -> A_d
        self.encode1 = _conv_bn_relu(nn.Conv2d(hidden, hidden, 3, padding=1))  # A_d -> Psi
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.encode2 = _conv_bn_relu(nn.Conv2d(hidden, hidden, 3, padding=1))  # -> Gamma
        self.decode1 = _conv_bn_relu(nn.ConvTranspose2d(hidden, hidden, 3, padding=1))
        self.unpool = nn.MaxUnpool2d(2)  # -> Psi'
        self.decode2 = _conv_bn_relu(nn.ConvTranspose2d(hidden, hidden, 3, padding=1))
        self.expand = nn.Conv2d(hidden, maps, 1)  # -> A_s
        self.softmax = _Softmax(config.softmax, config.rescale)

    def forward(self, features: Tensor) -> Tensor:
        if self.lam == 0:
            return features
        return self.lam * (self.attend(features) * features) + features  # Eq. 6

    def attend(self, features: Tensor) -> Tensor:
        """Return softmax(A_s) of Eqs. 4 and 5: (B, 1, H, W); over channels, (B, C, H, W)."""
        psi = self.encode1(self.reduce(features))  # (B, h, H, W)
        pooled, indices = self.pool(psi)  # (B, h, H // 2, W // 2)
        gamma = self.encode2(pooled)
        unpooled = self.unpool(self.decode1(gamma), indices, output_size=psi.shape[-2:])
        return self.softmax(self.expand(self.decode2(unpooled)))


class _Softmax(nn.Module):
    """The softmax over positions or channels. It is a module, so that a hook can read its map."""

    def __init__(self, axis: str, rescale: bool) -> None:
        super().__init__()
        self.axis, self.rescale = axis, rescale

    def forward(self, scores: Tensor) -> Tensor:
        if self.axis == "spatial":
            weights, length = scores.flatten(2).softmax(2).view_as(scores), scores[0, 0].numel()
        else:
            weights, length = scores.softmax(1), scores.shape[1]
        return weights * length if self.rescale else weights


class AttentionGenerator(nn.Module):
    """The generator of Eq. 3: z (B, z_dim) -> images (B, ``channels``, size, size) in [0, 1].

    A linear layer makes the first map, 5 to 8 px wide. Each block doubles it (cuts one row and one
    column if the size is odd), convolves it and attends. ``size`` is from 16 to 224 px.

    Raises:
        InputError: the size or an option is out of range.
    """

    def __init__(self, size: int, channels: int = 3, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GeneratorConfig()
        check_range("image size of the generator", size, 16, 224)
        if size != int(size):
            raise InputError(f"An image is a whole number of pixels wide, not {size}.")
        check_range("channels", channels, 1)
        self.sizes = _sizes(size)
        width = 2 * config.width
        self.stem = nn.Linear(config.z_dim, width * self.sizes[0] ** 2)
        self.stem_bn = nn.BatchNorm2d(width)
        outs = [width] * (len(self.sizes) - 2) + [config.width]
        ins = [width, *outs[:-1]]
        pairs = list(zip(ins, outs, strict=True))
        self.doublings = nn.ModuleList(_doubling(i, o, config) for i, o in pairs)
        self.blocks = nn.ModuleList(_block(i, o, config) for i, o in pairs)
        self.to_image = nn.Conv2d(config.width, channels, 3, padding=1)
        # made last, so that the plain generator of the same seed starts from the same weights
        self.attentions = nn.ModuleList(
            SpatialAttention(out, config.attention) for out in outs if config.attention
        )
        if config.spectral_norm:
            for module in self.modules():
                if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                    spectral_norm(module)

    @property
    def lam(self) -> float:
        """The lambda of Eq. 6 in all blocks, 0 without attention; a new value acts at once."""
        return next((attention.lam for attention in self._attentions()), 0.0)

    @lam.setter
    def lam(self, value: float) -> None:
        check_range("lam (lambda of Eq. 6)", value, 0, 1000)
        for attention in self._attentions():
            attention.lam = value

    def _attentions(self) -> list[SpatialAttention]:
        return [module for module in self.attentions if isinstance(module, SpatialAttention)]

    @property
    def attention_names(self) -> list[str]:
        """Names of the softmax modules, for :func:`dfkd_lite.networks.capture`."""
        return [f"attentions.{number}.softmax" for number in range(len(self.attentions))]

    def forward(self, z: Tensor) -> Tensor:
        return self.decode(self.first_map(z), 0)

    def first_map(self, z: Tensor) -> Tensor:
        """Make the first map (B, 2 * width, s, s) from z (B, z_dim)."""
        start = self.sizes[0]
        return self.stem_bn(self.stem(z).view(z.shape[0], -1, start, start))

    def block(self, x: Tensor, number: int) -> Tensor:
        """Apply block ``number`` to the map before it, and return the next larger map."""
        size = self.sizes[number + 1]
        x = self.doublings[number](x)[:, :, :size, :size]  # cut where the size is odd
        x = self.blocks[number](x)
        return self.attentions[number](x) if self.attentions else x

    def decode(self, x: Tensor, number: int) -> Tensor:
        """Make images from the map that block ``number`` reads."""
        for later in range(number, len(self.blocks)):
            x = self.block(x, later)
        return torch.sigmoid(full(self.to_image(x)))


def _sizes(size: int) -> list[int]:
    """Return the sides of all maps, from the first map to the image: 28 -> [7, 14, 28]."""
    sizes = [size]
    while sizes[0] > 8:
        sizes.insert(0, (sizes[0] + 1) // 2)
    return sizes


def _doubling(channels_in: int, channels_out: int, config: GeneratorConfig) -> nn.Module:
    if config.upsample == "transposed":
        return nn.ConvTranspose2d(channels_in, channels_out, 4, 2, 1, bias=False)
    return nn.Upsample(scale_factor=2.0, mode="nearest")


def _block(channels_in: int, channels_out: int, config: GeneratorConfig) -> nn.Sequential:
    """Make the layers after a doubling; a transposed convolution needs no other convolution."""
    layers: list[nn.Module] = [nn.BatchNorm2d(channels_out), nn.LeakyReLU(0.2, inplace=True)]
    if config.upsample == "nearest":
        layers.insert(0, nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False))
    return nn.Sequential(*layers)


def _conv_bn_relu(convolution: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    norm = nn.BatchNorm2d(convolution.out_channels)
    return nn.Sequential(convolution, norm, nn.ReLU(inplace=True))
