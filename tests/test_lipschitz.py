"""Norms against the SVD of dense matrices, bounds on cases built to be tight, Eqs. 18-22."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from dense import dense, jacobian, spectral, unsettle
from torch import Tensor, nn

from dfkd_lite import lipschitz as lip
from dfkd_lite.errors import InputError
from dfkd_lite.networks import ResNet, WideResNet, build
from dfkd_lite.networks.resnet import BasicBlock
from dfkd_lite.networks.wide_resnet import PreActivationBlock
from dfkd_lite.spectral import linear_norm

# Whole networks: upper bounds


def scaled(conv: Any, bn: Any, side: int) -> float:
    """The norm of a convolution and the batch-norm after it, from dense matrices."""
    matrix = dense(conv, side, side)
    scale = (bn.weight / (bn.running_var + bn.eps).sqrt()).detach().numpy()
    return spectral(np.repeat(scale, len(matrix) // len(scale))[:, None] * matrix)


def alone(bn: Any) -> float:
    return (bn.weight.abs() / (bn.running_var + bn.eps).sqrt()).max().item()


def test_wide_resnet_bound_by_hand() -> None:
    torch.manual_seed(4)
    net: Any = unsettle(WideResNet(10, 1, classes=3, channels=2))
    expected = spectral(dense(net.conv1, 4, 4))
    side = 4
    for stage in (net.stage1, net.stage2, net.stage3):
        block = stage[0]
        first = scaled(block.conv1, block.bn2, side)
        out = side // block.conv1.stride[0]
        branch = first * spectral(dense(block.conv2, out, out))
        if block.shortcut is None:
            expected *= 1 + alone(block.bn1) * branch
        else:
            shortcut = spectral(dense(block.shortcut, side, side))
            expected *= alone(block.bn1) * (branch + shortcut)
        side = out
    expected *= alone(net.bn) / side * spectral(net.fc.weight.detach())
    assert side == 1 and net.stage2[0].shortcut is not None and net.stage1[0].shortcut is None
    assert lip.network_bound(net, (2, 4, 4)).bound == pytest.approx(expected, rel=1e-6)


def test_resnet_bound_by_hand() -> None:
    torch.manual_seed(5)
    net: Any = unsettle(ResNet((1, 2, 1, 1), classes=3, channels=2))
    side, expected = 4, scaled(net.conv1, net.bn1, 4)
    for block in (*net.stage1, *net.stage2, *net.stage3, *net.stage4):
        out = (side - 1) // block.conv1.stride[0] + 1
        branch = scaled(block.conv1, block.bn1, side) * scaled(block.conv2, block.bn2, out)
        shortcut = (
            1.0 if not len(block.shortcut) else scaled(block.shortcut[0], block.shortcut[1], side)
        )
        expected *= branch + shortcut
        side = out
    expected *= spectral(net.fc.weight.detach())
    assert lip.network_bound(net, (2, 4, 4)).bound == pytest.approx(expected, rel=1e-6)


def network(name: str) -> tuple[nn.Module, int]:
    torch.manual_seed(6)
    if name == "resnet":
        return unsettle(ResNet((1, 1, 1, 1), classes=4)), 8
    return unsettle(build(name, 4, size=16)), 16 if name == "vgg-11" else 8


NAMES = ["wrn-16-1", "resnet", "vgg-11"]


@pytest.mark.parametrize("name", NAMES)
def test_network_bound_is_above_every_slope_and_says_what_it_is_made_of(name: str) -> None:
    model, side = network(name)
    bounds = lip.network_bound(model, (3, side, side))
    images = torch.rand(4, 3, side, side, dtype=torch.float64)
    assert 0 < lip.local_lipschitz(model, images).max() < bounds.bound
    # Pairs of images, not only slopes: |f(a) - f(b)| / |a - b|.
    steps = (model(images) - model(images.roll(1, 0))).norm(dim=1)
    assert (steps <= bounds.bound * (images - images.roll(1, 0)).flatten(1).norm(dim=1)).all()
    assert math.prod(factor.norm for factor in bounds.factors) == pytest.approx(bounds.bound)
    # Every convolution, batch-norm and linear layer is in the table once (merged ones as one).
    table = [layer.kind for layer in bounds.layers]
    kinds = [type(module) for module in model.modules()]
    merged = table.count("convolution + batch-norm")
    assert table.count("convolution") + merged == kinds.count(nn.Conv2d)
    assert table.count("batch-norm") + merged == kinds.count(nn.BatchNorm2d)
    assert table.count("linear") == 1 and table.count("max-pooling") == kinds.count(nn.MaxPool2d)
    assert len({layer.name for layer in bounds.layers}) == len(table)
    assert {layer.name for layer in bounds.layers} <= dict(model.named_modules()).keys()


@pytest.mark.parametrize("name", NAMES)
def test_the_networks_run_their_children_in_order(name: str) -> None:
    # The product over the children rests on it.
    model, side = network(name)
    images = torch.rand(2, 3, side, side, dtype=torch.float64)
    torch.testing.assert_close(nn.Sequential(*model.children())(images), model(images))


def orthogonal(rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(max(rows, columns), max(rows, columns)).double())[0][
        :rows, :columns
    ]


def test_the_bound_is_reached_by_a_chain_of_orthogonal_layers() -> None:
    torch.manual_seed(7)
    bn = nn.BatchNorm2d(4)
    bn.weight.data.fill_(0.5)
    fc = nn.Linear(4, 3)
    chain = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), bn, nn.AdaptiveAvgPool2d(1)
    )
    model = nn.Sequential(chain, nn.Flatten(), nn.Dropout(0.5), fc).double()
    chain[0].weight.data = 2 * orthogonal(4, 4)[:, :, None, None]
    chain[2].weight.data = 3 * orthogonal(4, 4)[:, :, None, None]
    fc.weight.data = 5 * orthogonal(3, 4)
    images = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    expected = 2 * 3 * 0.5 * 5 / 6 / (1 + bn.eps)
    bounds = lip.network_bound(model, (4, 6, 6))
    assert bounds.bound == pytest.approx(expected, rel=1e-9)
    slopes = lip.local_lipschitz(model, images)
    torch.testing.assert_close(slopes, torch.full_like(slopes, expected))


@pytest.mark.parametrize("kind", [PreActivationBlock, BasicBlock])
def test_the_bound_is_reached_by_a_residual_block_of_scaled_identities(kind: Any) -> None:
    block = kind(2, 2, 1)
    for conv in (block.conv1, block.conv2):
        nn.init.dirac_(conv.weight)
        conv.weight.data *= 3
    model = nn.Sequential(block, nn.Flatten()).double()
    # Positive images pass every ReLU: the block is x -> x + 9 x, but for batch-norm's eps.
    scale = 1 / (1 + block.bn1.eps)
    slopes = lip.local_lipschitz(model, torch.rand(2, 2, 3, 3, dtype=torch.float64) + 1)
    torch.testing.assert_close(slopes, torch.full_like(slopes, 1 + 9 * scale))
    bound = lip.network_bound(model, (2, 3, 3)).bound
    assert bound == pytest.approx(1 + 9 * scale, rel=1e-9)


def test_a_layer_used_twice_counts_twice() -> None:
    conv = nn.Conv2d(2, 2, 1).double()
    conv.weight.data = 3 * torch.eye(2, dtype=torch.float64)[:, :, None, None]
    model = nn.Sequential(conv, nn.ReLU(), conv)
    assert lip.network_bound(model, (2, 4, 4)).bound == pytest.approx(9)


def test_pixels_are_further_from_the_logits_than_normalised_images() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 3, 4)).double()
    std = (0.5, 0.2)
    deviations = torch.tensor(std, dtype=torch.float64)[:, None, None]
    plain, pixels = (lip.network_bound(model, (2, 3, 3), s).bound for s in ((), std))
    assert pixels == pytest.approx(plain / 0.2)
    scaled = lambda x: model(x / deviations)  # noqa: E731
    slope = lip.local_lipschitz(scaled, torch.zeros(1, 2, 3, 3).double()).item()
    assert plain < slope <= pixels


# Whole networks: slopes


@pytest.mark.parametrize("name", ["wrn-16-1", "resnet"])
def test_local_lipschitz_is_that_of_the_dense_jacobian(name: str) -> None:
    model, side = network(name)
    images = torch.rand(3, 3, side, side, dtype=torch.float64)
    expected = [spectral(jacobian(model, image)) for image in images]
    np.testing.assert_allclose(lip.local_lipschitz(model, images).numpy(), expected, rtol=1e-9)
    few = lip.local_lipschitz(model, images, iterations=1)
    assert (few.numpy() < expected).all()


def test_local_lipschitz_in_single_precision_and_with_many_outputs() -> None:
    torch.manual_seed(8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 30))
    images = torch.randn(5, 3, 4, 4)
    expected = [spectral(jacobian(model, image)) for image in images]
    found = lip.local_lipschitz(model, images)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_local_lipschitz_is_exact_after_as_many_steps_as_logits() -> None:
    torch.manual_seed(9)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 11)).double()
    model[1].weight.data = torch.diag(
        torch.linspace(1, 1.01, 11, dtype=torch.float64)
    ) @ orthogonal(11, 48)
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    np.testing.assert_allclose(lip.local_lipschitz(model, images).numpy(), 1.01, rtol=1e-12)


def test_a_dead_network_has_no_slope() -> None:
    linear = nn.Linear(4, 3)
    nn.init.zeros_(linear.weight)
    model = nn.Sequential(nn.Flatten(), linear)
    assert lip.local_lipschitz(model, torch.rand(2, 1, 2, 2)).tolist() == [0, 0]


def test_measuring_leaves_the_network_as_it_was() -> None:
    model = build("wrn-10-1", 4, size=8).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.rand(2, 3, 8, 8)
    lip.local_lipschitz(model, images)
    lip.network_bound(model, (3, 8, 8))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


# Bad input


class Odd(nn.Sequential):
    """A subclass whose forward is not its children one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 7


def test_modules_without_a_rule_are_named() -> None:
    for module, name in [(nn.GELU(), "'1', a GELU"), (Odd(nn.ReLU()), "'1', a Odd")]:
        with pytest.raises(InputError, match=name):
            lip.network_bound(nn.Sequential(nn.Conv2d(3, 3, 1), module), (3, 4, 4))


def test_hooks_are_removed_when_the_network_fails() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(4, 3, 1)).train()
    with pytest.raises(InputError, match="cannot read 3x4x4 images"):
        lip.network_bound(model, (3, 4, 4))
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training


def test_networks_without_a_fixed_norm_are_refused() -> None:
    shared = nn.Conv2d(3, 3, 3, stride=2)
    no_statistics = nn.BatchNorm2d(3, track_running_stats=False)
    broken = nn.Conv2d(3, 3, 1)
    broken.weight.data[0] = math.nan
    broken_bn = nn.BatchNorm2d(3)
    broken_bn.weight.data[0] = math.inf
    for layers, message in [
        ((shared, shared), "^One Conv2d is used at two image sizes"),
        ((nn.Conv2d(3, 3, 1), no_statistics), "running statistics"),
        ((broken,), "weights hold NaN or infinite"),
        ((nn.Conv2d(3, 3, 1), broken_bn), "NaN or infinite"),
        ((nn.Conv2d(3, 3, 3, padding_mode="reflect", padding=1),), "padding_mode='reflect'"),
    ]:
        with pytest.raises(InputError, match=message):
            lip.network_bound(nn.Sequential(*layers), (3, 9, 9))
    with pytest.raises(InputError, match=r"^VGG-11 halves"):
        lip.network_bound(build("vgg-11", 3), (3, 8, 8))
    with pytest.raises(InputError, match="2 numbers for 3 channels"):
        lip.network_bound(nn.Sequential(nn.Flatten()), (3, 4, 4), std=(1.0, 1.0))
    with pytest.raises(InputError, match="std"):
        lip.network_bound(nn.Sequential(nn.Flatten()), (1, 4, 4), std=(0.0,))
    with pytest.raises(InputError, match="matrix"):
        linear_norm(torch.zeros(3))
    with pytest.raises(InputError, match="weights hold NaN or infinite"):
        linear_norm(torch.full((2, 2), math.nan))


def test_slopes_that_do_not_exist_are_refused() -> None:
    images = torch.zeros(2, 1, 2, 2)
    with pytest.raises(InputError, match="NaN or infinite"):
        lip.local_lipschitz(lambda x: x.flatten(1).sqrt(), images)
    with pytest.raises(InputError, match="NaN or infinite"):
        lip.local_lipschitz(lambda x: x.flatten(1) + math.nan, images)
    with pytest.raises(InputError, match="no images"):
        lip.local_lipschitz(lambda x: x.flatten(1), images[:0])
    with pytest.raises(InputError, match="iterations"):
        lip.local_lipschitz(lambda x: x.flatten(1), images, iterations=0)
