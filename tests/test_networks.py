"""The networks against formulas, torchvision and timm; finding layers in anybody's classifier."""

from __future__ import annotations

import copy
from itertools import pairwise
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from dfkd_lite.door import find_layers
from dfkd_lite.errors import InputError
from dfkd_lite.networks import (
    NETWORKS,
    VGG,
    FromPixels,
    Layers,
    NetworkSpec,
    ResNet,
    WideResNet,
    batch_norms,
    build,
    capture,
    count_parameters,
    evaluating,
    normalise,
)


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Double precision, eval mode, and batch-norms that do something."""
    rng = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            shape = module.running_mean.shape
            module.running_mean.copy_(0.3 * torch.randn(shape, generator=rng))
            module.running_var.copy_(0.5 + torch.rand(shape, generator=rng))
            module.weight.data.copy_(0.5 + torch.rand(shape, generator=rng))
            module.bias.data.copy_(0.3 * torch.randn(shape, generator=rng))
    return model.double().eval()


def images(batch: int, channels: int, size: int, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, size, size, generator=rng, dtype=torch.float64)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# ---------------------------------------------------------------- parameter counts


def wrn_count(depth: int, k: int, classes: int, channels: int) -> int:
    total, width = 9 * channels * 16, 16
    for out in (16 * k, 32 * k, 64 * k):
        for _ in range((depth - 4) // 6):
            total += 2 * width + 9 * width * out + 2 * out + 9 * out * out
            total += width * out * (width != out)  # 1x1 shortcut
            width = out
    return total + 2 * width + width * classes + classes


def resnet_count(blocks: tuple[int, ...], classes: int, channels: int) -> int:
    total, width = 9 * channels * 64 + 2 * 64, 64
    for out, count in zip((64, 128, 256, 512), blocks, strict=True):
        for _ in range(count):
            total += 9 * width * out + 2 * out + 9 * out * out + 2 * out
            total += (width * out + 2 * out) * (width != out)
            width = out
    return total + 512 * classes + classes


def vgg_count(classes: int, channels: int) -> int:
    total, width = 0, channels
    for out in (64, 128, 256, 256, 512, 512, 512, 512):
        total += 9 * width * out + out + 2 * out  # convolution, its bias, batch-norm
        width = out
    return total + 512 * classes + classes


def expected_count(name: str, classes: int, channels: int) -> int:
    kind, *numbers = name.split("-")
    if kind == "wrn":
        return wrn_count(int(numbers[0]), int(numbers[1]), classes, channels)
    if kind == "vgg":
        return vgg_count(classes, channels)
    return resnet_count({"18": (2, 2, 2, 2), "34": (3, 4, 6, 3)}[numbers[0]], classes, channels)


@pytest.mark.parametrize(
    ("name", "millions", "exactly"),
    [
        ("wrn-40-2", "2.2", 2_243_546),
        ("wrn-40-1", "0.56", 563_930),
        ("wrn-16-2", "0.69", 691_674),
        ("wrn-16-1", "0.17", 175_066),
        ("resnet-34", "21.3", 21_282_122),
        ("resnet-18", "11.2", 11_173_962),
        ("vgg-11", "9.2", 9_231_114),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, millions: str, exactly: int) -> None:
    with torch.device("meta"):  # nothing is allocated: only shapes matter
        count = count_parameters(build(name, 10))
    assert count == exactly == expected_count(name, 10, 3)
    decimals = len(millions.split(".")[1])
    assert abs(count / 1e6 - float(millions)) < 10**-decimals


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("classes", "channels"), [(2, 1), (200, 4)])
def test_parameter_counts_with_other_classes_and_channels(
    name: str, classes: int, channels: int
) -> None:
    with torch.device("meta"):
        model = build(name, classes, channels)
    assert count_parameters(model) == expected_count(name, classes, channels)


def test_count_leaves_out_running_statistics() -> None:
    assert count_parameters(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm2d(7))) == 20 + 14


# ---------------------------------------------------------------- shapes


@settings(max_examples=8)
@given(size=st.integers(28, 64), channels=st.integers(1, 4), classes=st.integers(2, 12))
def test_logits_have_a_row_per_image_and_a_column_per_class(
    size: int, channels: int, classes: int
) -> None:
    model = build("wrn-16-1", classes, channels, size).eval()
    with torch.no_grad():
        logits = model(torch.zeros(2, channels, size, size))
    assert logits.shape == (2, classes)


@pytest.mark.parametrize(
    ("name", "size", "sides"),
    [
        ("wrn-16-1", 224, [224, 112, 56]),
        ("wrn-16-1", 29, [29, 15, 8]),
        ("resnet-18", 28, [28, 14, 7, 4]),
        ("resnet-18", 64, [64, 32, 16, 8]),
        ("vgg-11", 28, [28, 14, 7, 3, 1]),
        ("vgg-11", 64, [64, 32, 16, 8, 4]),
        ("vgg-11", 16, [16, 8, 4, 2, 1]),
    ],
)
def test_stages_shrink_as_the_architecture_says(name: str, size: int, sides: list[int]) -> None:
    model = build(name, 10, 1, size).eval()
    names = [f"stage{i + 1}" for i in range(len(sides))]
    with torch.no_grad(), capture(model, names) as features:
        logits = model(torch.zeros(1, 1, size, size))
    assert logits.shape == (1, 10)
    assert [tuple(features[n].shape[2:]) for n in names] == [(s, s) for s in sides]


# ---------------------------------------------------------------- forward passes


@pytest.mark.parametrize(
    ("blocks", "theirs"),
    [((2, 2, 2, 2), "resnet18"), ((3, 4, 6, 3), "resnet34")],
)
def test_resnet_is_torchvisions_with_a_3x3_stem(blocks: tuple[int, ...], theirs: str) -> None:
    ours = lively(ResNet(blocks, 7, 3))
    other = getattr(torchvision.models, theirs)(num_classes=7)
    other.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    other.maxpool = nn.Identity()
    renamed = {
        k.replace("stage", "layer").replace("shortcut", "downsample"): v
        for k, v in ours.state_dict().items()
    }
    other.double().load_state_dict(renamed)
    x = images(2, 3, 17)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), other.eval()(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ours.train()(x), other.train()(x), rtol=1e-9, atol=1e-9)


def test_vgg_names_the_side_that_is_too_small() -> None:
    with pytest.raises(InputError, match="16 px or more, not 8"):
        VGG(6, 3)(torch.zeros(1, 3, 8, 32))


def test_vgg_is_torchvisions_with_the_last_pooling_replaced_by_an_average() -> None:
    ours = lively(VGG(6, 3))
    theirs = make_layers(cfgs["A"], batch_norm=True)
    theirs[-1] = nn.AdaptiveAvgPool2d(1)
    other = nn.Sequential(theirs, nn.Flatten(), nn.Linear(512, 6)).double()
    values = list(ours.state_dict().values())
    keys = list(other.state_dict())
    other.load_state_dict(dict(zip(keys, values, strict=True)))
    x = images(2, 3, 35)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), other.eval()(x), rtol=1e-12, atol=1e-12)


def wrn_forward(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """A pre-activation network from its description, in eval mode."""

    def activate(x: Tensor, bn: str) -> Tensor:
        column = {k: w[f"{bn}.{k}"].view(-1, 1, 1) for k in ("weight", "bias")}
        mean, var = (w[f"{bn}.running_{k}"].view(-1, 1, 1) for k in ("mean", "var"))
        return ((x - mean) / (var + 1e-5).sqrt() * column["weight"] + column["bias"]).clamp(min=0)

    x = F.conv2d(x, w["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        block = 0
        while f"stage{stage}.{block}.conv1.weight" in w:
            name, stride = f"stage{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            first = activate(x, f"{name}.bn1")
            y = F.conv2d(first, w[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(activate(y, f"{name}.bn2"), w[f"{name}.conv2.weight"], padding=1)
            if f"{name}.shortcut.weight" in w:
                x = F.conv2d(first, w[f"{name}.shortcut.weight"], stride=stride)
            x, block = x + y, block + 1
    pooled = activate(x, "bn").mean((2, 3))
    return pooled @ w["fc.weight"].T + w["fc.bias"]


@pytest.mark.parametrize(("depth", "widen"), [(10, 1), (16, 2), (22, 1)])
def test_wrn_against_a_forward_pass_written_from_the_paper(depth: int, widen: int) -> None:
    model = lively(WideResNet(depth, widen, 5, 2))
    x = images(2, 2, 13)
    with torch.no_grad():
        expected = wrn_forward(model.state_dict(), x)
        torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-11)


# ---------------------------------------------------------------- finding layers


def make_model(name: str) -> nn.Module:
    where, _, what = name.partition(":")
    if where == "ours":
        return build(what, 5)
    if where == "timm":
        return timm.create_model(what, pretrained=False, num_classes=5)
    return getattr(torchvision.models, what)(num_classes=5)


@pytest.mark.parametrize(
    ("name", "classifier", "last"),
    [
        ("ours:wrn-16-1", "fc", "relu"),
        ("ours:resnet-18", "fc", "stage4"),
        ("ours:vgg-11", "fc", "stage5"),
        ("torchvision:resnet18", "fc", "layer4"),
        ("torchvision:mobilenet_v2", "classifier.1", "features"),
        ("torchvision:densenet121", "classifier", "features"),
        ("timm:resnet18", "fc", "layer4"),
        ("timm:regnetx_002", "head.fc", None),
        ("timm:efficientnet_lite0", "classifier", None),
    ],
)
def test_last_stage_is_what_is_pooled_before_the_classifier(
    name: str, classifier: str, last: str | None
) -> None:
    model = lively(make_model(name))
    layers = find_layers(model, (3, 64, 64))
    assert layers.classifier == classifier
    assert last is None or layers.stages[-1] == last
    with torch.no_grad(), capture(model, layers.stages) as features:
        logits = model(images(2, 3, 64))
    sides = [features[s].shape[-1] for s in layers.stages]
    assert len(sides) >= 3 and all(a > b for a, b in pairwise(sides))
    pooled = features[layers.stages[-1]].mean((2, 3))
    torch.testing.assert_close(model.get_submodule(classifier)(pooled), logits)


def test_torchvisions_vgg_has_its_last_linear_layer_as_classifier() -> None:
    with torch.device("meta"):
        model = torchvision.models.vgg11_bn(num_classes=5, init_weights=False)
        model.classifier[0] = nn.Linear(512 * 49, 8)  # the original's two wide ones: 0.5 GB
        model.classifier[3] = nn.Linear(8, 8)
        model.classifier[6] = nn.Linear(8, 5)
    model = model.to_empty(device="cpu").eval()
    for value in model.state_dict().values():
        value.fill_(0.5)
    layers = find_layers(model, (3, 64, 64))
    assert layers.classifier == "classifier.6"
    assert layers.stages[-1] == "features"  # (512, 2, 2): what avgpool sees


def test_stages_of_our_networks() -> None:
    assert find_layers(build("resnet-18", 10), (3, 32, 32)) == Layers(
        ("stage1", "stage2", "stage3", "stage4"), "fc", averaged=True
    )
    assert find_layers(build("wrn-16-1", 10, 1), (1, 28, 28)).stages == (
        "stage1",
        "stage2",
        "relu",
    )


def test_finding_layers_changes_nothing() -> None:
    model = build("wrn-16-1", 3).train()
    model.stage2.eval()
    before = copy.deepcopy(model.state_dict())
    modes = {n: m.training for n, m in model.named_modules()}
    find_layers(model, (3, 32, 32))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert {n: m.training for n, m in model.named_modules()} == modes
    assert hooks(model) == 0
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_finding_layers_where_there_are_none() -> None:
    with pytest.raises(InputError, match="Layers"):
        find_layers(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5)), (3, 8, 8))
    with pytest.raises(InputError, match="Layers"):
        find_layers(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()), (3, 8, 8))


def test_1x1_maps_count_only_where_there_are_no_larger_ones() -> None:
    deep = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 6), nn.Flatten(), nn.Linear(5, 2))
    assert find_layers(deep, (3, 8, 8)) == Layers(("0",), "3")
    flat = nn.Sequential(nn.Conv2d(3, 4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    assert find_layers(flat, (3, 8, 8)) == Layers(("1",), "3", averaged=True)  # of one place


def test_averaged_is_said_only_of_means_that_the_classifier_reads_itself() -> None:
    def head(*layers: nn.Module) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 4, 3), *layers, nn.Linear(4, 2))

    mean, largest = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
    for network, averaged in (
        (head(mean, nn.Flatten()), True),
        (head(mean, nn.Flatten(), nn.Dropout(0.5)), True),  # nothing in eval mode
        (head(largest, nn.Flatten()), False),
        (head(mean, nn.Flatten(), nn.Linear(4, 4)), False),
    ):
        assert find_layers(network, (3, 8, 8)).averaged == averaged, network


def test_images_that_the_network_cannot_read_are_refused() -> None:
    with pytest.raises(InputError, match="1x8x8"):
        find_layers(build("wrn-16-1", 3), (1, 8, 8))
    with pytest.raises(InputError, match="16"):
        VGG(3, 1)(torch.zeros(1, 1, 15, 15))


# ---------------------------------------------------------------- capture, evaluating


def test_capture_gives_the_newest_output_with_its_graph() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
    x = torch.randn(1, 1, 3, 3)
    with capture(model, ["0"]) as features:
        model(x)
        model(2 * x)
    expected = model[0](2 * x)
    torch.testing.assert_close(features["0"], expected)
    ours = torch.autograd.grad(features["0"].sum(), model[0].weight)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(expected.sum(), model[0].weight)[0])


def test_capture_removes_its_hooks_whatever_happens() -> None:
    model = build("wrn-16-1", 3)
    with capture(model, ["stage1", "relu"]):
        assert hooks(model) == 2
    assert hooks(model) == 0
    with pytest.raises(ZeroDivisionError), capture(model, ["stage1", "relu"]):
        _ = 1 / 0
    assert hooks(model) == 0
    with (
        pytest.raises(InputError, match=r"stage2") as error,
        capture(model, ["stage1", "stagee2"]),
    ):
        pass
    assert "stagee2" in str(error.value)
    assert hooks(model) == 0


def test_evaluating_gives_each_module_its_own_mode_back() -> None:
    model = build("wrn-16-1", 3).train()
    model.stage1[0].bn1.eval()
    model.stage3.eval()
    modes = {n: m.training for n, m in model.named_modules()}
    assert len(set(modes.values())) == 2
    with evaluating(model):
        assert not any(m.training for m in model.modules())
    assert {n: m.training for n, m in model.named_modules()} == modes
    with pytest.raises(ZeroDivisionError), evaluating(model):
        _ = 1 / 0
    assert {n: m.training for n, m in model.named_modules()} == modes


def test_evaluating_gives_a_module_used_twice_its_mode_back() -> None:
    twice = nn.ReLU()
    model = nn.Sequential(twice, nn.Sequential(twice)).train()
    twice.eval()
    with evaluating(model):
        pass
    assert model.training and not twice.training


def test_batch_norms_are_those_with_running_statistics_in_order() -> None:
    model = nn.Sequential()
    model.add_module("late", nn.BatchNorm2d(2))
    model.add_module("none", nn.BatchNorm2d(2, track_running_stats=False))
    model.add_module("early", nn.Sequential(nn.BatchNorm2d(3)))
    found = batch_norms(model)
    assert list(found) == ["late", "early.0"]
    assert found["late"] is model.late
    assert len(batch_norms(build("wrn-16-1", 3))) == 2 * 6 + 1


# ---------------------------------------------------------------- the zoo


def test_all_seven_networks_are_there_and_seeded() -> None:
    assert sorted(NETWORKS) == sorted(
        ["wrn-16-1", "wrn-16-2", "wrn-40-1", "wrn-40-2", "resnet-18", "resnet-34", "vgg-11"]
    )
    torch.manual_seed(3)
    first = build("wrn-16-1", 10).state_dict()
    torch.manual_seed(3)
    second = build("wrn-16-1", 10).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("wrn-16-l", "wrn-16-1"), ("resnet18", "resnet-18"), ("vgg11", "vgg-11")],
)
def test_an_unknown_network_offers_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(InputError, match=nearest):
        build(wrong, 10)


@pytest.mark.parametrize("depth", [3, 4, 15, 17, 41])
def test_a_depth_that_is_not_6n_plus_4_is_refused(depth: int) -> None:
    with pytest.raises(InputError, match=r"6n \+ 4"):
        WideResNet(depth, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"classes": 0},
        {"classes": 10, "channels": 0},
        {"classes": 10, "size": 0},
        {"classes": 10, "size": 15},
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InputError):
        build("vgg-11", **options)


def test_spec_knows_its_images_and_refuses_what_does_not_fit() -> None:
    spec = NetworkSpec("wrn-16-1", 3, 1, 28, (0.5,), (0.2,), ("a", "b", "c"))
    assert spec.image_shape == (1, 28, 28)
    with pytest.raises(InputError, match="mean"):
        NetworkSpec("wrn-16-1", 3, 3, 28, (0.5,), (0.2, 0.2, 0.2))
    with pytest.raises(InputError, match="std"):
        NetworkSpec("wrn-16-1", 3, 1, 28, (0.5,), (0.0,))


def test_a_spec_with_names_for_other_than_its_classes_is_refused() -> None:
    with pytest.raises(InputError, match="name"):
        NetworkSpec("wrn-16-1", 3, 1, 28, (0.5,), (0.2,), ("a", "b"))


def test_normalise_against_torchvision():
    from torchvision.transforms.functional import normalize

    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    spec = NetworkSpec("wrn-16-1", 10, 3, 8, (0.1, 0.5, 0.9), (0.2, 1.0, 0.3))
    wanted = normalize(images, spec.mean, spec.std)
    torch.testing.assert_close(normalise(images, spec), wanted)
    torch.testing.assert_close(FromPixels(nn.Identity(), spec)(images), wanted)
    double = normalise(images.double(), spec)
    assert double.dtype == torch.float64


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), (0.5,), "3 channels, but there are 1 means"),
        ((0.5,) * 3, (0.5, 0.0, 0.5), "above 0"),
    ],
)
def test_normalise_refuses(mean, std, message):
    with pytest.raises(InputError, match=message):
        normalise(torch.zeros(1, 3, 8, 8), SimpleNamespace(mean=mean, std=std))
