"""The attention generator against NumPy, hand computations and finite differences."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dfkd_lite.errors import InputError
from dfkd_lite.generator import (
    ATTENTION_SOURCE,
    AttentionConfig,
    AttentionGenerator,
    GeneratorConfig,
    SpatialAttention,
)

SMALL = GeneratorConfig(z_dim=6, width=4)


def attention(channels: int = 3, seed: int = 0, **options: object) -> SpatialAttention:
    """In double precision, every weight away from its initial value."""
    module = SpatialAttention(channels, AttentionConfig(**options)).double()
    rng = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data += 0.5 * torch.randn(p.shape, generator=rng, dtype=p.dtype)
    return module


def normal(*shape: int, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


# ---------------------------------------------------------------- Eqs. 4 to 6 by loops


def conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Zero-padded convolution by the sum of shifted images; weight (out, in, k, k)."""
    pad = weight.shape[2] // 2
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    total = np.zeros((x.shape[0], weight.shape[0], height, width)) + bias[:, None, None]
    for i, j in itertools.product(range(weight.shape[2]), range(weight.shape[3])):
        shifted = padded[:, :, i : i + height, j : j + width]
        total += np.einsum("bchw,oc->bohw", shifted, weight[:, :, i, j])
    return total


def conv_bn_relu(x: np.ndarray, block: nn.Sequential) -> np.ndarray:
    """In train mode: the batch's own mean and biased variance."""
    weight, bias = block[0].weight.detach().numpy(), block[0].bias.detach().numpy()
    if isinstance(block[0], nn.ConvTranspose2d):  # the adjoint: swapped channels, turned kernel
        weight = weight.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
    x = conv(x, weight, bias)
    x = x - x.mean((0, 2, 3), keepdims=True)
    x = x / np.sqrt((x**2).mean((0, 2, 3), keepdims=True) + 1e-5)
    gamma, beta = block[1].weight.detach().numpy(), block[1].bias.detach().numpy()
    return np.maximum(gamma[:, None, None] * x + beta[:, None, None], 0)


def scores(module: SpatialAttention, features: Tensor) -> np.ndarray:
    """A_s of Eqs. 4 and 5."""
    f = features.detach().numpy()
    psi = conv_bn_relu(
        conv(f, module.reduce.weight.detach().numpy(), module.reduce.bias.detach().numpy()),
        module.encode1,
    )
    batch, hidden, height, width = psi.shape
    pooled = np.zeros((batch, hidden, height // 2, width // 2))
    places = {}
    for b, c, i, j in np.ndindex(pooled.shape):
        window = psi[b, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        row, column = divmod(int(window.argmax()), 2)
        pooled[b, c, i, j] = window[row, column]
        places[b, c, i, j] = (b, c, 2 * i + row, 2 * j + column)
    decoded = conv_bn_relu(conv_bn_relu(pooled, module.encode2), module.decode1)
    unpooled = np.zeros(psi.shape)
    for here, there in places.items():
        unpooled[there] = decoded[here]
    out = module.expand
    return conv(
        conv_bn_relu(unpooled, module.decode2),
        out.weight.detach().numpy(),
        out.bias.detach().numpy(),
    )


def softmax(x: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


@settings(max_examples=25)
@given(
    height=st.integers(4, 17),
    width=st.integers(2, 17),
    channels=st.sampled_from([1, 3, 40]),
    lam=st.floats(0, 5),
)
def test_attention_is_eqs_4_to_6_at_any_size(
    height: int, width: int, channels: int, lam: float
) -> None:
    module = attention(channels, lam=lam)
    f = normal(2, channels, height, width)
    expected = softmax(scores(module, f), (2, 3))
    with torch.no_grad():
        weights, out = module.attend(f), module(f)
    assert weights.shape == (2, 1, height, width)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-8, atol=1e-14)
    np.testing.assert_allclose(out.numpy(), (lam * expected + 1) * f.numpy(), rtol=1e-9)


def test_attention_over_channels() -> None:
    module = attention(5, lam=0.7, softmax="channel")
    f = normal(2, 5, 7, 4)
    a_s = scores(module, f)
    assert a_s.shape == f.shape
    expected = softmax(a_s, 1)
    with torch.no_grad():
        np.testing.assert_allclose(module.attend(f).numpy(), expected, rtol=1e-9)
        np.testing.assert_allclose(module(f).numpy(), (0.7 * expected + 1) * f.numpy(), rtol=1e-9)


@pytest.mark.parametrize(
    ("reduction", "growth", "widths"), [(2, 3, (20, 60, 180)), (9, 2, (4, 8, 16))]
)
def test_a_map_for_each_channel_and_widths_that_grow(
    reduction: int, growth: int, widths: tuple[int, int, int]
) -> None:
    options = {"softmax": "spatial-per-channel", "reduction": reduction, "growth": growth}
    module = attention(40 if reduction == 2 else 9, lam=0.7, **options)
    outs = [
        module.reduce,
        module.encode1[0],
        module.encode2[0],
        module.decode1[0],
        module.decode2[0],
    ]
    small, middle, large = widths
    assert [m.out_channels for m in outs] == [small, middle, large, middle, small]
    f = normal(2, module.reduce.in_channels, 7, 4)
    a_s = scores(module, f)
    assert a_s.shape == f.shape
    expected = softmax(a_s, (2, 3))
    with torch.no_grad():
        np.testing.assert_allclose(module.attend(f).numpy(), expected, rtol=1e-8, atol=1e-14)
        np.testing.assert_allclose(module(f).numpy(), (0.7 * expected + 1) * f.numpy(), rtol=1e-9)


def set_by_hand(module: SpatialAttention) -> SpatialAttention:
    """Every 3x3 kernel an identity, batch-norms off: A_s = 2 * unpool(pool(relu(F_0)))."""
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
        module.reduce.weight[0, 0] = 1
        for block in (module.encode1, module.encode2, module.decode1, module.decode2):
            block[0].weight[0, 0, 1, 1] = 1
            block[1].weight.fill_(1)
            block[1].eps = 0.0
        module.expand.weight[0, 0] = 2
    return module.eval()


def test_attention_on_a_tiny_tensor_by_hand() -> None:
    module = set_by_hand(SpatialAttention(2, AttentionConfig(lam=3.0)).double())
    first = [[1.0, -1.0, 0.5, 0.25, 9.0], [0.0, 0.5, -2.0, 0.125, 9.0], [9.0, 9.0, 9.0, 9.0, 9.0]]
    f = torch.tensor([[first, [[2.0] * 5] * 3]], dtype=torch.float64)
    # the pooling keeps 1 of the left window and 0.5 of the right; the odd row and column are cut
    e = np.ones((3, 5))
    e[0, 0], e[0, 2] = np.exp(2 * 1.0), np.exp(2 * 0.5)
    expected = f.numpy() * (1 + 3.0 * e / (13 + np.exp(2) + np.exp(1)))
    np.testing.assert_allclose(module(f).detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("softmax", "rescale", "factor"),
    [
        ("spatial", False, 1 / 12),
        ("spatial-per-channel", False, 1 / 12),
        ("channel", False, 1 / 5),
        ("spatial", True, 1.0),
        ("channel", True, 1.0),
    ],
)
def test_without_preference_the_softmax_is_uniform(
    softmax: str, rescale: bool, factor: float
) -> None:
    module = SpatialAttention(5, AttentionConfig(0.3, softmax, rescale)).double()
    nn.init.zeros_(module.expand.weight)
    nn.init.zeros_(module.expand.bias)
    f = normal(2, 5, 3, 4)
    torch.testing.assert_close(module(f), f * (1 + 0.3 * factor), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(
    ("axis", "dims", "length"),
    [("spatial", (2, 3), 35), ("spatial-per-channel", (2, 3), 35), ("channel", (1,), 6)],
)
def test_the_softmax_sums_to_1_over_its_axis_or_has_mean_1(
    axis: str, dims: tuple[int, ...], length: int, rescale: bool
) -> None:
    module = attention(6, lam=1.0, softmax=axis, rescale=rescale)
    f = normal(2, 6, 5, 7)
    with torch.no_grad():
        weights = (module(f) / f - 1).numpy()  # as felt in the output: (B, C, H, W)
        given = module.attend(f).expand_as(f).numpy()
    np.testing.assert_allclose(weights, given, atol=1e-9)
    mean = 1.0 if rescale else 1 / length
    np.testing.assert_allclose(weights.mean(axis=dims), mean, rtol=1e-8)
    assert weights.std(axis=dims).min() > 1e-4  # not uniform
    one_map_for_all_channels = np.ptp(weights, axis=1).max() < 1e-9
    assert one_map_for_all_channels == (axis == "spatial")


# ---------------------------------------------------------------- lambda


def test_lambda_moves_the_output_linearly_and_at_run_time() -> None:
    module = attention(4)
    assert module.lam == 0.03  # Table 1
    f = normal(3, 4, 6, 5)
    with torch.no_grad():
        unit = module(f) - f
        for lam in (0.0, 0.06, 0.3, 30.0):
            module.lam = lam
            torch.testing.assert_close(module(f) - f, unit * lam / 0.03, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("size", "upsample"), [(16, "nearest"), (19, "transposed")])
def test_lambda_0_is_exactly_the_plain_generator(size: int, upsample: str, train: bool) -> None:
    options = {"z_dim": 6, "width": 4, "upsample": upsample}
    ours = AttentionGenerator(size, 2, GeneratorConfig(**options))
    plain = AttentionGenerator(size, 2, GeneratorConfig(attention=None, **options))
    assert not any(isinstance(m, SpatialAttention) for m in plain.modules())
    ours.lam = 0.0
    weights = ours.state_dict()
    plain.load_state_dict({k: weights[k] for k in plain.state_dict()})
    z = torch.randn(3, 6)
    assert torch.equal(ours.train(train)(z), plain.train(train)(z))
    ours.lam = 1.0
    assert not torch.equal(ours(z), plain(z))


def test_the_same_seed_gives_both_generators_the_same_images_at_lambda_0() -> None:
    torch.manual_seed(5)
    ours = AttentionGenerator(16, 1, GeneratorConfig(6, 4, AttentionConfig(lam=0.0)))
    torch.manual_seed(5)
    plain = AttentionGenerator(16, 1, GeneratorConfig(6, 4, attention=None))
    z = torch.randn(2, 6)
    assert torch.equal(ours(z), plain(z))


def test_the_generators_lambda_is_that_of_all_its_blocks() -> None:
    generator = AttentionGenerator(32, 3, SMALL)
    blocks = [m for m in generator.modules() if isinstance(m, SpatialAttention)]
    assert generator.lam == 0.03 and len(blocks) == len(generator.blocks) == 2
    generator.lam = 0.25
    assert generator.lam == 0.25 and [b.lam for b in blocks] == [0.25, 0.25]
    assert AttentionGenerator(16, 1, GeneratorConfig(6, 4, attention=None)).lam == 0


def test_names_of_the_attention_maps() -> None:
    generator = AttentionGenerator(28, 1, SMALL).eval()
    kept = {}
    for name in generator.attention_names:
        module = generator.get_submodule(name)
        module.register_forward_hook(lambda m, i, out, name=name: kept.update({name: out}))
    generator(torch.randn(2, 6))
    assert [tuple(kept[n].shape) for n in generator.attention_names] == [
        (2, 1, 14, 14),
        (2, 1, 28, 28),
    ]
    for weights in kept.values():
        torch.testing.assert_close(weights.sum((2, 3)), torch.ones(2, 1))


# ---------------------------------------------------------------- images of any size


@settings(max_examples=12)
@given(
    size=st.integers(16, 64),
    channels=st.integers(1, 4),
    upsample=st.sampled_from(["nearest", "transposed", "transposed-3x3"]),
    softmax=st.sampled_from(["spatial", "spatial-per-channel", "channel"]),
)
def test_any_size_from_16_to_64(size: int, channels: int, upsample: str, softmax: str) -> None:
    config = GeneratorConfig(5, 4, AttentionConfig(softmax=softmax), upsample)
    generator = AttentionGenerator(size, channels, config)
    first = []
    generator.stem_bn.register_forward_hook(lambda m, i, out: first.append(out.shape[-1]))
    with torch.no_grad():
        x = generator(3 * torch.randn(2, 5))
    assert x.shape == (2, channels, size, size) and x.dtype == torch.float32
    assert x.min() >= 0 and x.max() <= 1 and x.std() > 0
    assert 4 <= first[0] <= 8
    assert first[0] == -(-size // 2 ** len(generator.blocks))  # rounded up


@pytest.mark.parametrize("size", [111, 128, 224])
def test_larger_sizes(size: int) -> None:
    with torch.no_grad():
        x = AttentionGenerator(size, 1, GeneratorConfig(5, 4))(torch.randn(2, 5))
    assert x.shape == (2, 1, size, size) and x.min() >= 0 and x.max() <= 1


def test_images_fill_the_range_and_differ() -> None:
    generator = AttentionGenerator(16, 3, SMALL)
    with torch.no_grad():
        generator.to_image.weight.mul_(100)
        x = generator(torch.randn(8, 6))
    assert x.min() < 0.05 and x.max() > 0.95
    assert (x[0] - x[1]).abs().max() > 0.1


@pytest.mark.parametrize("size", [-1, 0, 8, 15, 225, 512])
def test_a_size_that_cannot_be_made_is_refused(size: int) -> None:
    with pytest.raises(InputError, match="16"):
        AttentionGenerator(size, 3, SMALL)


def doublings(generator: AttentionGenerator) -> list[nn.Module]:
    """What doubles the side of a map, in order; the attention's own modules do not."""
    outside = (m for n, m in generator.named_modules() if not n.startswith("attentions"))
    return [m for m in outside if isinstance(m, nn.Upsample | nn.ConvTranspose2d)]


def test_upsampling_by_neighbours_or_by_transposed_convolutions() -> None:
    nearest = doublings(AttentionGenerator(32, 3, SMALL))
    assert [type(m) for m in nearest] == [nn.Upsample] * 2
    for upsample, side in {"transposed": 4, "transposed-3x3": 3}.items():
        config = GeneratorConfig(6, 4, upsample=upsample)
        transposed = doublings(AttentionGenerator(32, 3, config))
        assert [type(m) for m in transposed] == [nn.ConvTranspose2d] * 2
        assert [(m.stride, m.kernel_size) for m in transposed] == [((2, 2), (side, side))] * 2
    x = normal(1, 8, 2, 3)
    expected = x.numpy().repeat(2, axis=2).repeat(2, axis=3)
    np.testing.assert_array_equal(nearest[0](x).numpy(), expected)


@pytest.mark.parametrize("upsample", ["nearest", "transposed"])
def test_spectral_normalisation_makes_norms_of_1(upsample: str) -> None:
    config = GeneratorConfig(6, 4, None, upsample, spectral_norm=True)
    generator = AttentionGenerator(32, 1, config)
    with torch.no_grad():
        for _ in range(100):
            generator(torch.randn(2, 6))
    normalised = [n for n, m in generator.named_modules() if parametrize.is_parametrized(m)]
    of_the_blocks = ["blocks.0.0", "blocks.1.0"]
    assert normalised == (
        of_the_blocks if upsample == "nearest" else ["doublings.0", "doublings.1"]
    )
    normalised = [generator.get_submodule(name) for name in normalised]
    for module in normalised:
        weight = module.eval().weight.detach()
        if isinstance(module, nn.ConvTranspose2d):
            weight = weight.transpose(0, 1)
        norm = np.linalg.svd(weight.flatten(1).numpy(), compute_uv=False)[0]
        assert norm == pytest.approx(1, abs=0.02)
    plain = AttentionGenerator(16, 1, GeneratorConfig(6, 4, None, upsample))
    assert not any(parametrize.is_parametrized(m) for m in plain.modules())


# ---------------------------------------------------------------- the paper's source


class TheirAttention(nn.Module):
    """The right half of Table 6 of Shao et al. (ICCV 2023), line by line; and Eq. 6."""

    def __init__(self, c: int, r: int) -> None:
        super().__init__()
        s = c // r
        self.layer1 = nn.Conv2d(c, s, 1)
        self.layer2, self.bn2 = nn.Conv2d(s, 2 * s, 3, padding=1), nn.BatchNorm2d(2 * s)
        self.layer3, self.bn3 = nn.Conv2d(2 * s, 4 * s, 3, padding=1), nn.BatchNorm2d(4 * s)
        self.layer4, self.bn4 = (
            nn.ConvTranspose2d(4 * s, 2 * s, 3, padding=1),
            nn.BatchNorm2d(2 * s),
        )
        self.layer5, self.bn5 = nn.ConvTranspose2d(2 * s, s, 3, padding=1), nn.BatchNorm2d(s)
        self.layer6 = nn.Conv2d(s, c, 1)

    def forward(self, f: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.layer2(self.layer1(f))))
        x, indices = F.max_pool2d(x, 2, return_indices=True)
        x = F.relu(self.bn4(self.layer4(F.relu(self.bn3(self.layer3(x))))))
        x = self.layer6(F.relu(self.bn5(self.layer5(F.max_unpool2d(x, indices, 2)))))
        weights = x.exp() / x.exp().sum((2, 3), keepdim=True)
        return 0.03 * weights * f + f


class TheirGenerator(nn.Module):
    """The left half of that table for images of 32 px, ``width`` in the place of its 64."""

    def __init__(self, z_dim: int, width: int, r: int) -> None:
        super().__init__()
        channels = [8 * width, 4 * width, 2 * width, width, width]
        self.fc, self.bn = nn.Linear(z_dim, channels[0] * 2 * 2), nn.BatchNorm2d(channels[0])
        self.deconvolutions = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=1, bias=False)
            for a, b in itertools.pairwise(channels)
        )
        self.image = nn.Conv2d(width, 3, 3, padding=1)
        self.attentions = nn.ModuleList(TheirAttention(c, r) for c in channels[1:])

    def forward(self, z: Tensor) -> Tensor:
        x = self.bn(self.fc(z).reshape(len(z), -1, 2, 2))
        for deconvolution, attention in zip(self.deconvolutions, self.attentions, strict=True):
            weight = deconvolution.weight
            norm = torch.linalg.matrix_norm(weight.transpose(0, 1).flatten(1), 2)
            options = {"stride": 2, "padding": 1, "output_padding": 1}
            x = attention(F.leaky_relu(F.conv_transpose2d(x, weight / norm, **options), 0.2))
        return torch.tanh(self.image(x))  # in [-1, 1]


@pytest.mark.parametrize("train", [True, False])
def test_attention_source_is_the_generator_of_shao_et_al(train: bool) -> None:
    config = dataclasses.replace(ATTENTION_SOURCE, z_dim=6, width=32)
    ours = AttentionGenerator(32, 3, config).double()
    theirs = TheirGenerator(6, 32, config.attention.reduction).double()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        b.data = a.data.clone()
    with torch.no_grad():
        for _ in range(300):  # the norms converge with each forward pass
            ours(normal(2, 6))
        ours.stem_bn.reset_running_stats()
        for module in ours.attentions.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        z = normal(4, 6, seed=3)
        made = ours.train(train)(z)
        torch.testing.assert_close(made, (1 + theirs.train(train)(z)) / 2, rtol=1e-9, atol=1e-12)
        ours.lam = 0.0
        assert (made - ours(z)).abs().max() > 1e-6  # the attention is felt in this comparison


@pytest.mark.parametrize(("size", "first"), [(16, 1), (28, 2), (33, 3), (64, 4), (224, 14)])
def test_the_source_has_four_blocks_at_any_size(size: int, first: int) -> None:
    config = dataclasses.replace(ATTENTION_SOURCE, z_dim=6, width=4)
    generator = AttentionGenerator(size, 1, config)
    assert generator.sizes[0] == first and len(generator.blocks) == 4
    with torch.no_grad():
        x = generator(torch.randn(2, 6))
    assert x.shape == (2, 1, size, size) and x.min() >= 0 and x.max() <= 1


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("softmax", ["spatial", "spatial-per-channel", "channel"])
def test_gradient_of_the_attention(softmax: str, train: bool) -> None:
    module = attention(3, lam=2.0, softmax=softmax, rescale=True).train(train)
    f = normal(2, 3, 5, 4).requires_grad_()

    def call(f: Tensor, *weights: Tensor) -> Tensor:
        values = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(module, values, (f,))

    names = ["reduce.weight", "encode2.0.weight", "decode1.0.weight", "expand.weight"]
    weights = [module.get_parameter(n).detach().clone().requires_grad_() for n in names]
    assert torch.autograd.gradcheck(call, (f, *weights), fast_mode=True)
    assert torch.autograd.gradcheck(module, (f,))


@pytest.mark.parametrize("upsample", ["nearest", "transposed"])
def test_gradient_of_the_images_to_z(upsample: str) -> None:
    config = GeneratorConfig(3, 4, AttentionConfig(lam=1.0, rescale=True), upsample)
    generator = AttentionGenerator(17, 1, config).double()
    weights = normal(2, 1, 17, 17, seed=2)
    z = normal(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: (weights * generator(z)).sum(), (z,))
    (grad,) = torch.autograd.grad((weights * generator(z)).sum(), z)
    assert (grad != 0).all()


# ---------------------------------------------------------------- bad options


@pytest.mark.parametrize("lam", [-0.01, float("nan"), float("inf")])
def test_lambda_out_of_range_is_refused(lam: float) -> None:
    with pytest.raises(InputError, match="lam"):
        AttentionConfig(lam=lam)
    generator = AttentionGenerator(16, 1, SMALL)
    with pytest.raises(InputError, match="lam"):
        generator.lam = lam
    assert generator.lam == 0.03


def test_other_options_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="spatial"):
        AttentionConfig(softmax="spacial")
    with pytest.raises(InputError, match="transposed"):
        GeneratorConfig(upsample="transpose")
    with pytest.raises(InputError, match="tanh"):
        GeneratorConfig(output="relu")
    with pytest.raises(InputError, match="blocks"):
        GeneratorConfig(blocks=0)
    with pytest.raises(InputError, match="32"):
        AttentionGenerator(16, 1, GeneratorConfig(6, 4, blocks=5))
    for wrong in ({"reduction": 0}, {"growth": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            AttentionConfig(**wrong)
    with pytest.raises(InputError):
        GeneratorConfig(z_dim=0)
    with pytest.raises(InputError):
        GeneratorConfig(width=0)
    with pytest.raises(InputError):
        AttentionGenerator(16, 0, SMALL)
