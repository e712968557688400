"""The generator of the method: a DCGAN with spatial attention in each block (Eqs. 3 to 6).

The paper takes it from its reference 27: R. Shao, W. Zhang, J. Yin, J. Wang, "Data-free knowledge
distillation for fine-grained visual categorization", ICCV 2023. "Shao et al." below means their
Table 6. Built in chapter 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from .devices import full
from .errors import InputError, check_range, choose


@dataclass(frozen=True)
class AttentionConfig:
    """Settings of the attention. Where the paper is silent, options are the readings it allows."""

    lam: float = 0.03  # lambda of Eq. 6; Table 1. Shao et al. take 0.05
    # "spatial": one map, over places. "spatial-per-channel": a map for each channel, each over
    # places. "channel": a map for each channel, over channels. Neither paper names the axis; Shao
    # et al. have a map for each channel.
    softmax: str = "spatial"
    rescale: bool = False  # True: the softmax times its length, so that its mean is 1 (ours)
    reduction: int = 8  # r: A_d has C / r channels, at least 4; neither paper has a number
    # Each of the encoder's two 3x3 convolutions multiplies the channels by this, and the decoder
    # divides them again. 1: all alike (ours); 2: Shao et al.
    growth: int = 1

    def __post_init__(self) -> None:
        check_range("lam (lambda of Eq. 6)", self.lam, 0, 1000)
        choose("softmax axis", self.softmax, ("spatial", "spatial-per-channel", "channel"))
        check_range("reduction (r of Eq. 4)", self.reduction, 1)
        check_range("growth", self.growth, 1, 4)


@dataclass(frozen=True)
class GeneratorConfig:
    """Settings of the generator. ``attention=None`` gives the plain DCGAN of Table 5."""

    z_dim: int = 256  # length of z: FastDFKD, CMI
    width: int = 64  # channels of the last block; the others have twice as many: FastDFKD, CMI
    # None: no attention module. Else:
    attention: AttentionConfig | None = field(default_factory=AttentionConfig)  # Eqs. 4 to 6
    # "nearest": doubled pixels, then a 3x3 convolution, as in FastDFKD. "transposed": transposed
    # 4x4 convolutions, as in many DCGANs. "transposed-3x3": 3x3 ones, Shao et al.
    upsample: str = "nearest"
    spectral_norm: bool = False  # of the blocks' convolutions: Shao et al.; here named in Fig. 1
    batch_norm: bool = True  # in the blocks: FastDFKD. False: Shao et al.
    blocks: int | None = None  # None: until the first map is 5 to 8 px wide. 4: Shao et al.
    halving: bool = False  # True: each block but the last halves the channels, Shao et al.
    output: str = "sigmoid"  # FastDFKD; or "tanh", moved to [0, 1]: Shao et al.

    def __post_init__(self) -> None:
        check_range("z_dim", self.z_dim, 1)
        check_range("width", self.width, 4)
        choose("upsampling", self.upsample, ("nearest", "transposed", "transposed-3x3"))
        choose("output", self.output, ("sigmoid", "tanh"))
        if self.blocks is not None:
            check_range("blocks", self.blocks, 1, 7)


#: The generator of Shao et al. (their Table 6 and Section 5.5) with the lambda of this paper's
#: Table 1. What they leave open is as elsewhere here: r, z_dim, the softmax's axis (over places).
#: With Table 1's two steps, students on the digits stay far behind those of the default generator;
#: with the default's number of blocks they do not (chapter 4).
ATTENTION_SOURCE = GeneratorConfig(
    attention=AttentionConfig(softmax="spatial-per-channel", growth=2),
    upsample="transposed-3x3",
    spectral_norm=True,
    batch_norm=False,
    blocks=4,
    halving=True,
    output="tanh",
)


class SpatialAttention(nn.Module):
    """Eqs. 4 to 6: features F (B, C, H, W) -> lam * softmax(A_s) * F + F, of the same shape.

    ``lam`` can be changed at any time; at 0 the features come back unchanged. Max-unpooling puts
    each value back where the pooling found it, also for odd sizes. H and W must be at least 2.
    """

    def __init__(self, channels: int, config: AttentionConfig | None = None) -> None:
        super().__init__()
        config = config or AttentionConfig()
        small = max(channels // config.reduction, 4)
        middle, large = small * config.growth, small * config.growth**2
        maps = 1 if config.softmax == "spatial" else channels
        self.lam = config.lam
        self.reduce = nn.Conv2d(channels, small, 1)  # F -> A_d
        self.encode1 = _conv_bn_relu(nn.Conv2d(small, middle, 3, padding=1))  # A_d -> Psi
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.encode2 = _conv_bn_relu(nn.Conv2d(middle, large, 3, padding=1))  # -> Gamma
        self.decode1 = _conv_bn_relu(nn.ConvTranspose2d(large, middle, 3, padding=1))
        self.unpool = nn.MaxUnpool2d(2)  # -> Psi'
        self.decode2 = _conv_bn_relu(nn.ConvTranspose2d(middle, small, 3, padding=1))
        self.expand = nn.Conv2d(small, maps, 1)  # -> A_s
        self.softmax = _Softmax(config.softmax, config.rescale)

    def forward(self, features: Tensor) -> Tensor:
        if self.lam == 0:
            return features
        return self.lam * (self.attend(features) * features) + features  # Eq. 6

    def attend(self, features: Tensor) -> Tensor:
        """Return softmax(A_s) of Eqs. 4 and 5: (B, maps, H, W), of one map or C."""
        psi = self.encode1(self.reduce(features))  # (B, growth * C / r, H, W)
        pooled, indices = self.pool(psi)  # (B, growth * C / r, H // 2, W // 2)
        gamma = self.encode2(pooled)
        unpooled = self.unpool(self.decode1(gamma), indices, output_size=psi.shape[-2:])
        return self.softmax(self.expand(self.decode2(unpooled)))


class _Softmax(nn.Module):
    """The softmax over positions or channels. It is a module, so that a hook can read its map."""

    def __init__(self, axis: str, rescale: bool) -> None:
        super().__init__()
        self.axis, self.rescale = axis, rescale

    def forward(self, scores: Tensor) -> Tensor:
        if self.axis == "channel":
            weights, length = scores.softmax(1), scores.shape[1]
        else:
            weights, length = scores.flatten(2).softmax(2).view_as(scores), scores[0, 0].numel()
        return weights * length if self.rescale else weights


class AttentionGenerator(nn.Module):
    """The generator of Eq. 3: z (B, z_dim) -> images (B, ``channels``, size, size) in [0, 1].

    A linear layer makes the first map, 5 to 8 px wide unless ``blocks`` is given. Each block
    doubles it (cuts one row and one column if the size is odd), convolves it and attends. ``size``
    is from 16 to 224 px, and at least 2 to the power of ``blocks``.

    Raises:
        InputError: the size or an option is out of range.
    """

    def __init__(self, size: int, channels: int = 3, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GeneratorConfig()
        check_range("image size of the generator", size, max(16, 2 ** (config.blocks or 0)), 224)
        if size != int(size):
            raise InputError(f"An image is a whole number of pixels wide, not {size}.")
        check_range("channels", channels, 1)
        self.sizes = _sizes(size, config.blocks)
        widths = _widths(len(self.sizes) - 1, config)
        self.stem = nn.Linear(config.z_dim, widths[0] * self.sizes[0] ** 2)
        self.stem_bn = nn.BatchNorm2d(widths[0])
        pairs = list(pairwise(widths))
        self.doublings = nn.ModuleList(_doubling(i, o, config) for i, o in pairs)
        self.blocks = nn.ModuleList(_block(i, o, config) for i, o in pairs)
        self.to_image = nn.Conv2d(config.width, channels, 3, padding=1)
        # made last, so that the plain generator of the same seed starts from the same weights
        self.attentions = nn.ModuleList(
            SpatialAttention(out, config.attention) for out in widths[1:] if config.attention
        )
        if config.spectral_norm:
            for module in [*self.doublings.modules(), *self.blocks.modules()]:
                if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
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
        """Make the first map (B, channels of the first map, s, s) from z (B, z_dim)."""
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
        pixels = full(self.to_image(x))
        return pixels.sigmoid() if self.config.output == "sigmoid" else (1 + pixels.tanh()) / 2


def _sizes(size: int, blocks: int | None) -> list[int]:
    """Return the sides of all maps, from the first map to the image: 28 -> [7, 14, 28]."""
    sizes = [size]
    while sizes[0] > 8 if blocks is None else len(sizes) <= blocks:
        sizes.insert(0, (sizes[0] + 1) // 2)
    return sizes


def _widths(blocks: int, config: GeneratorConfig) -> list[int]:
    """Return the channels of all maps, from the first map to the last block's."""
    if config.halving:  # 64, four blocks: [512, 256, 128, 64, 64]
        return [config.width * 2**n for n in reversed(range(blocks))] + [config.width]
    return [2 * config.width] * blocks + [config.width]


def _doubling(channels_in: int, channels_out: int, config: GeneratorConfig) -> nn.Module:
    if config.upsample == "transposed":
        return nn.ConvTranspose2d(channels_in, channels_out, 4, 2, 1, bias=False)
    if config.upsample == "transposed-3x3":
        return nn.ConvTranspose2d(channels_in, channels_out, 3, 2, 1, 1, bias=False)
    return nn.Upsample(scale_factor=2.0, mode="nearest")


def _block(channels_in: int, channels_out: int, config: GeneratorConfig) -> nn.Sequential:
    """Make the layers after a doubling; a transposed convolution needs no other convolution."""
    layers: list[nn.Module] = [nn.LeakyReLU(0.2, inplace=True)]
    if config.batch_norm:
        layers.insert(0, nn.BatchNorm2d(channels_out))
    if config.upsample == "nearest":
        layers.insert(0, nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False))
    return nn.Sequential(*layers)


def _conv_bn_relu(convolution: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    norm = nn.BatchNorm2d(convolution.out_channels)
    return nn.Sequential(convolution, norm, nn.ReLU(inplace=True))
