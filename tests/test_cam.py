"""CAM and Grad-CAM against grad-cam, Captum, closed forms and plain autograd."""

from __future__ import annotations

import copy
from functools import cache

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from captum.attr import LayerGradCam
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from dfkd_lite.cam import (
    CamConfig,
    cam,
    channel_weights,
    classifier_weight,
    explain,
    graded_capture,
    stage_maps,
    upsample,
    weighted_map,
)
from dfkd_lite.door import find_layers
from dfkd_lite.errors import InputError
from dfkd_lite.networks import Layers, build, capture

ARCHITECTURES = ["wrn-16-1", "resnet-18", "mobilenet_v2"]
SIZES = {"wrn-16-1": 16, "resnet-18": 16, "mobilenet_v2": 64}


def normal(*shape: int, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


@cache
def subject(name: str) -> tuple[nn.Module, Layers, Tensor]:
    """A random network in double precision, its layers, and three images."""
    torch.manual_seed(3)
    if name == "mobilenet_v2":
        model = torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.25)
    else:
        model = build(name, 5)
    size = SIZES[name]
    x = normal(3, 3, size, size)
    model = model.double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(x)  # statistics that fit
    return model.eval(), find_layers(model, (3, size, size)), x


def fresh(name: str) -> tuple[nn.Module, Layers, Tensor]:
    """Hooks and gradients of one reference must not reach the next."""
    model, layers, x = subject(name)
    return copy.deepcopy(model), layers, x


def read(model: nn.Module, names: tuple[str, ...], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the outputs of the named modules by hooks of our own."""
    kept: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(n).register_forward_hook(lambda m, i, out, n=n: kept.update({n: out}))
        for n in names
    ]
    logits = model(x)
    for handle in handles:
        handle.remove()
    return logits, [kept[n] for n in names]


# ---------------------------------------------------------------- the formulas, by loops


@settings(max_examples=10)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    classes=st.integers(2, 5),
)
def test_formulas_against_loops(
    batch: int, channels: int, height: int, width: int, classes: int
) -> None:
    f, g = normal(batch, channels, height, width), normal(batch, channels, height, width, seed=2)
    w = normal(classes, channels, seed=3)
    chosen = torch.arange(batch) % classes
    eq10, eq14 = np.zeros((batch, height, width)), np.zeros((batch, height, width))
    eq12, eq13 = np.zeros((batch, channels)), np.zeros((batch, channels))
    for b, p, i, j in np.ndindex(f.shape):
        eq10[b, i, j] += w[chosen[b], p].item() * f[b, p, i, j].item()
        eq12[b, p] += g[b, p, i, j].item() / (height * width)
        eq13[b, p] += g[b, p, i, j].item() * f[b, p, i, j].item() / (height * width)
    for b, p, i, j in np.ndindex(f.shape):
        eq14[b, i, j] += eq12[b, p] * f[b, p, i, j].item()
    close = {"rtol": 1e-9, "atol": 1e-12}
    np.testing.assert_allclose(cam(f, w, chosen).numpy(), eq10, **close)
    np.testing.assert_allclose(channel_weights(f, g).numpy(), eq12, **close)
    np.testing.assert_allclose(channel_weights(f, g, "gradient-x-activation"), eq13, **close)
    alphas = torch.from_numpy(eq12)
    np.testing.assert_allclose(weighted_map(f, alphas, relu=False).numpy(), eq14, **close)
    np.testing.assert_allclose(weighted_map(f, alphas).numpy(), np.maximum(eq14, 0), **close)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_eq_13_on_networks(name: str) -> None:
    model, layers, x = fresh(name)
    classes = torch.tensor([0, 3, 1])
    logits, features = read(model, layers.stages, x)
    chosen = logits[torch.arange(3), classes].sum()
    grads = torch.autograd.grad(chosen, features)
    config = CamConfig("gradient-x-activation")
    _, maps = explain(model, x, layers, classes, config)
    for f, g, ours in list(zip(features, grads, maps, strict=True))[:-1]:
        f, g = f.detach().numpy(), g.numpy()
        expected = np.zeros((3, *f.shape[2:]))
        for b in range(3):
            for p in range(f.shape[1]):
                alpha = (g[b, p] * f[b, p]).sum() / f[b, p].size
                expected[b] += alpha * f[b, p]
        expected = np.maximum(expected, 0)
        assert np.abs(expected).max() > 0
        scale = np.abs(expected).max()
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-7, atol=1e-9 * scale)


# ---------------------------------------------------------------- other packages


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_grad_cam_is_captums(name: str) -> None:
    model, layers, x = fresh(name)
    classes = torch.tensor([4, 0, 2])
    _, maps = explain(model, x, layers, classes, CamConfig(relu=False))
    for stage, ours in zip(layers.stages, maps, strict=True):
        reference = LayerGradCam(model, model.get_submodule(stage))
        theirs = reference.attribute(x, target=classes).detach()[:, 0]
        if stage == layers.stages[-1]:  # Eq. 10: the mean's gradient is w / (H W)
            theirs = theirs * theirs[0].numel()
        scale = theirs.abs().max().item()
        assert scale > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9 * scale)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_grad_cam_is_the_grad_cam_packages(name: str) -> None:
    model, layers, x = fresh(name)
    classes = [1, 1, 4]
    _, maps = explain(model, x, layers, torch.tensor(classes))
    targets = [ClassifierOutputTarget(c) for c in classes]
    for stage, ours in zip(layers.stages, maps, strict=True):
        with GradCAM(model, [model.get_submodule(stage)]) as reference:
            shown = reference(x, targets)  # scaled to [0, 1] and to the image
            kept = reference.activations_and_grads
            f, g = kept.activations[0].numpy(), kept.gradients[0].numpy()
            alphas = reference.get_cam_weights(x, None, targets, f, g)
            raw = reference.get_cam_image(x, None, targets, f, g)
        if stage == layers.stages[-1]:
            ours = ours.clamp(min=0) / ours[0].numel()
        else:
            f, g = torch.from_numpy(f), torch.from_numpy(g)
            np.testing.assert_allclose(channel_weights(f, g).numpy(), alphas, rtol=1e-9)
        np.testing.assert_allclose(
            ours.numpy(), np.maximum(raw, 0), rtol=1e-7, atol=1e-9 * np.abs(raw).max()
        )
        scaled = scale_cam_image(scale_cam_image(ours.numpy(), x.shape[-2:]))
        np.testing.assert_allclose(scaled, shown, atol=1e-4)


@settings(max_examples=10)
@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    high=st.integers(6, 20),
    wide=st.integers(6, 20),
)
def test_upsampling_is_opencvs_bilinear(height: int, width: int, high: int, wide: int) -> None:
    maps = normal(2, height, width)
    ours = upsample(maps, (high, wide))
    assert ours.shape == (2, high, wide)
    for a, b in zip(maps.numpy(), ours.numpy(), strict=True):
        theirs = cv2.resize(a, (wide, high), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(b, theirs, atol=1e-5)


def test_upsampling_by_hand() -> None:
    maps = torch.tensor([[[0.0, 4.0]]])
    torch.testing.assert_close(upsample(maps, (1, 4)), torch.tensor([[[0.0, 1.0, 3.0, 4.0]]]))
    assert upsample(maps, 3).shape == (1, 3, 3)


# ---------------------------------------------------------------- closed forms


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_mean_of_a_cam_and_the_bias_are_the_logit(name: str) -> None:
    model, layers, x = fresh(name)
    bias = model.get_submodule(layers.classifier).bias.detach()
    for classes in (torch.tensor([0, 1, 2]), torch.tensor([3, 4, 0])):
        logits, maps = explain(model, x, layers, classes)
        expected = logits.gather(1, classes[:, None])[:, 0]
        torch.testing.assert_close(maps[-1].mean((1, 2)) + bias[classes], expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_grad_cam_of_the_last_stage_is_the_cam_over_its_positions(name: str) -> None:
    model, layers, x = fresh(name)
    logits, features = read(model, layers.stages, x)
    f = features[-1]
    (g,) = torch.autograd.grad(logits[:, 2].sum(), f)
    gradcam = weighted_map(f, channel_weights(f, g), relu=False)
    expected = cam(f, classifier_weight(model, layers), torch.full((3,), 2))
    torch.testing.assert_close(gradcam * f[0, 0].numel(), expected, rtol=1e-8, atol=1e-12)


# ---------------------------------------------------------------- a net of which all is known


class Tiny(nn.Module):
    """Two stages with smooth bends; pooled, or flattened so that Eq. 10 does not apply."""

    def __init__(self, pooled: bool = True) -> None:
        super().__init__()
        self.pooled = pooled
        self.one = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Softplus())
        self.two = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Tanh())
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 if pooled else 36, 3)
        self.double()
        for i, p in enumerate(self.parameters()):
            p.data.copy_(0.6 * normal(*p.shape, seed=40 + i))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(x))
        x = self.bn(x).mean((2, 3)) if self.pooled else x.flatten(1)
        return self.fc(x)


def layers_of(tiny: Tiny) -> Layers:
    return Layers(("one", "bn") if tiny.pooled else ("one", "two"), "fc", tiny.pooled)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("weights", ["gradient", "gradient-x-activation"])
@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("second_order", [True, False])
def test_gradient_of_the_maps_with_and_without_that_of_their_weights(
    second_order: bool, pooled: bool, weights: str, relu: bool
) -> None:
    model = Tiny(pooled)
    layers, x, classes = layers_of(model), normal(3, 2, 5, 5), torch.tensor([0, 2, 2])
    goals = [normal(3, 5, 5, seed=5), normal(3, 3, 3, seed=6)]

    def loss(maps: list[Tensor]) -> Tensor:
        return sum((m * m * t).sum() + (m * t).sum() for m, t in zip(maps, goals, strict=True))

    with capture(model, layers.stages) as features:
        logits = model(x)
    config = CamConfig(weights, relu)
    maps = stage_maps(features, logits, classes, layers, model, config, second_order)
    parameters = [p for n, p in model.named_parameters() if n != "fc.bias"]
    ours = torch.autograd.grad(loss(maps), parameters, materialize_grads=True)

    y, (f1, f2) = read(model, layers.stages, x)
    chosen = y.gather(1, classes[:, None]).sum()
    g1, g2 = torch.autograd.grad(chosen, (f1, f2), create_graph=True)

    def grad_cam(f: Tensor, g: Tensor) -> Tensor:
        alpha = (g if weights == "gradient" else g * f).mean((2, 3), keepdim=True)
        alpha = alpha if second_order else alpha.detach()
        m = (alpha * f).sum(1)
        return F.relu(m) if relu else m

    w = model.fc.weight if second_order else model.fc.weight.detach()
    last = torch.einsum("bp,bphw->bhw", w[classes], f2) if pooled else grad_cam(f2, g2)
    expected_maps = [grad_cam(f1, g1), last]
    expected = torch.autograd.grad(loss(expected_maps), parameters, materialize_grads=True)
    for m, e in zip(maps, expected_maps, strict=True):
        torch.testing.assert_close(m, e)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)
    if pooled:  # w feels the loss in the second order only (the alphas of stage one aside)
        assert bool(ours[-1].any()) == second_order


def test_second_order_gradient_by_finite_differences() -> None:
    model, x, classes = Tiny(), normal(2, 2, 5, 5), torch.tensor([1, 0])
    layers = layers_of(model)

    def total(weight: Tensor) -> Tensor:
        changed = copy.deepcopy(model)
        changed.one[0].weight = nn.Parameter(weight.detach().clone())
        with capture(changed, layers.stages) as features:
            logits = changed(x)
        maps = stage_maps(features, logits, classes, layers, changed, None, True)
        value = sum(m.square().sum() for m in maps)
        (grad,) = torch.autograd.grad(value, changed.one[0].weight)
        return value.item(), grad

    weight = model.one[0].weight.detach()
    grad = total(weight)[1]
    for index in [(0, 0, 0, 0), (1, 1, 2, 0), (2, 0, 1, 1)]:
        step = torch.zeros_like(weight)
        step[index] = 1e-6
        difference = (total(weight + step)[0] - total(weight - step)[0]) / 2e-6
        assert grad[index].item() == pytest.approx(difference, rel=1e-5)


def test_a_classifier_that_does_not_read_the_channels_gets_grad_cam_at_the_last_stage() -> None:
    model, x = Tiny(pooled=False), normal(2, 2, 5, 5)
    layers = layers_of(model)
    logits, (f1, f2) = read(model, layers.stages, x)
    best = logits.argmax(1)
    grads = torch.autograd.grad(logits.gather(1, best[:, None]).sum(), (f1, f2))
    _, maps = explain(model, x, layers)
    for f, g, m in zip((f1, f2), grads, maps, strict=True):
        expected = F.relu((g.mean((2, 3), keepdim=True) * f).sum(1)).detach()
        torch.testing.assert_close(m, expected)


@pytest.mark.parametrize("kind", ["hidden layer", "largest value"])
def test_eq_10_is_for_averages_read_by_the_classifier_itself(kind: str) -> None:
    """As many channels as classifier inputs, yet its weights are not those of the channels."""

    class Head(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            x = self.bn(self.two(self.one(x)))
            if kind == "largest value":
                return self.fc(x.amax((2, 3)))
            return self.fc(torch.tanh(self.hidden(x.mean((2, 3)))))

    model, x, layers = Head(), normal(2, 2, 5, 5), Layers(("one", "bn"), "fc")
    model.hidden = nn.Linear(4, 4).double()
    logits, (_, f) = read(model, layers.stages, x)
    (g,) = torch.autograd.grad(logits[:, 0].sum(), f)
    expected = F.relu((g.mean((2, 3), keepdim=True) * f).sum(1)).detach()
    torch.testing.assert_close(explain(model, x, layers, torch.tensor([0, 0]))[1][-1], expected)


# ---------------------------------------------------------------- manners


def test_explain_takes_the_predicted_classes_and_leaves_nothing_behind() -> None:
    model, layers, x = fresh("wrn-16-1")
    with torch.no_grad():
        expected = model(x)
    model.train()
    model.stage2[0].bn1.eval()
    next(model.parameters()).requires_grad_(False)
    modes = {n: m.training for n, m in model.named_modules()}
    wants = [p.requires_grad for p in model.parameters()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    logits, maps = explain(model, x, layers)
    named = explain(model, x, layers, expected.argmax(1))[1]
    other = explain(model, x, layers, (expected.argmax(1) + 1) % 5)[1]
    torch.testing.assert_close(logits, expected)  # in eval mode
    for m, n, o in zip(maps, named, other, strict=True):
        assert torch.equal(m, n) and not torch.equal(m, o)
        assert not m.requires_grad
    assert not logits.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == wants
    assert {n: m.training for n, m in model.named_modules()} == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not x.requires_grad


def test_explain_restores_the_modes_when_it_fails() -> None:
    model, layers, x = fresh("wrn-16-1")
    model.train()
    with pytest.raises(RuntimeError):
        explain(model, x[:, :2], layers)
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("outside", [torch.enable_grad, torch.no_grad])
def test_explain_works_on_a_frozen_network_with_and_without_gradients_around(outside) -> None:
    model, layers, x = fresh("wrn-16-1")
    expected = explain(model, x, layers)[1]
    model.requires_grad_(False)
    with outside():
        maps = explain(model, x, layers)[1]
    for m, e in zip(maps, expected, strict=True):
        torch.testing.assert_close(m, e)


def test_graded_capture_starts_at_the_first_stage() -> None:
    model, layers, x = fresh("wrn-16-1")
    logits, features = read(model, layers.stages, x)
    expected = torch.autograd.grad(logits[:, 1].sum(), features)
    model.requires_grad_(False)
    with graded_capture(model, layers) as kept:
        again = model(x)
    start = kept[layers.stages[0]].grad_fn  # a copy of a leaf: nothing before it is in the graph
    assert [type(node).__name__ for node, _ in start.next_functions] == ["AccumulateGrad"]
    torch.testing.assert_close(again, logits)
    stages = [kept[s] for s in layers.stages]
    for g, e in zip(torch.autograd.grad(again[:, 1].sum(), stages), expected, strict=True):
        torch.testing.assert_close(g, e)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(ZeroDivisionError), graded_capture(model, layers):
        _ = 1 / 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_classifier_weight_is_that_of_the_named_layer() -> None:
    model, layers, _ = fresh("mobilenet_v2")
    assert torch.equal(classifier_weight(model, layers), model.classifier[1].weight)


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(InputError, match="gradient-x-activation"):
        CamConfig(weights="gradient-x-activations")
    model, layers, x = fresh("wrn-16-1")
    with pytest.raises(InputError, match="stage1"):
        explain(model, x, Layers(("stagee1", "relu"), "fc"))
    with pytest.raises(InputError):
        explain(model, x, Layers(layers.stages, "conv1"))  # no linear layer
