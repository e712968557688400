"""Eqs. 9 and 15 by loops over maps that this file makes itself."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dfkd_lite.cam import CamConfig
from dfkd_lite.errors import InputError
from dfkd_lite.msarc import MsarcConfig, MsarcLoss, map_distance
from dfkd_lite.networks import Layers, capture


def normal(*shape: int, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


class Net(nn.Module):
    """Stages s0, s1, ... (every one after the first halves the side), average, linear."""

    def __init__(self, widths: tuple[int, ...], seed: int, first_stride: int = 1) -> None:
        super().__init__()
        self.names = tuple(f"s{i}" for i in range(len(widths)))
        width = 2
        for i, (name, out) in enumerate(zip(self.names, widths, strict=True)):
            stride = 2 if i else first_stride
            conv = nn.Conv2d(width, out, 3, stride, 1)
            self.add_module(name, nn.Sequential(conv, nn.Tanh()))
            width = out
        self.fc = nn.Linear(width, 4)
        self.double().eval()
        for i, p in enumerate(self.parameters()):
            p.data.copy_(0.8 * normal(*p.shape, seed=seed + i))

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = getattr(self, name)(x)
        return self.fc(x.mean((2, 3)))

    @property
    def layers(self) -> Layers:
        return Layers(self.names, "fc", averaged=True)


def student(first_stride: int = 1) -> Net:
    return Net((3, 4), seed=100, first_stride=first_stride)


def teacher(stages: int = 3) -> Net:
    return Net((4, 5, 6)[:stages], seed=200).requires_grad_(False)


IMAGES = normal(3, 2, 12, 12)


def maps_by_loop(net: Net, classes: list[int], relu: bool = True) -> list[np.ndarray]:
    """Grad-CAM of all stages but the last, CAM of the last."""
    net = copy.deepcopy(net).requires_grad_(True)
    x, features = IMAGES, []
    for name in net.names:
        x = getattr(net, name)(x)
        features.append(x)
    logits = net.fc(x.mean((2, 3)))
    chosen = sum(logits[b, c] for b, c in enumerate(classes))
    grads = torch.autograd.grad(chosen, features)
    result = []
    for f, g in zip(features, grads, strict=True):
        f, g = f.detach().numpy(), g.numpy()
        last = f.shape[1:] == tuple(features[-1].shape[1:])
        m = np.zeros((len(classes), *f.shape[2:]))
        for b, c in enumerate(classes):
            for p in range(f.shape[1]):
                alpha = net.fc.weight[c, p].item() if last else g[b, p].mean()
                m[b] += alpha * f[b, p]
        result.append(m if last or not relu else np.maximum(m, 0))
    return result


def bilinear(m: np.ndarray, height: int, width: int) -> np.ndarray:
    """One map, by the position of each new pixel's centre among the old ones'."""
    result = np.zeros((height, width))
    for i, j in np.ndindex(height, width):
        y = min(max((i + 0.5) * m.shape[0] / height - 0.5, 0), m.shape[0] - 1)
        x = min(max((j + 0.5) * m.shape[1] / width - 0.5, 0), m.shape[1] - 1)
        top, left = int(y), int(x)
        low, right = min(top + 1, m.shape[0] - 1), min(left + 1, m.shape[1] - 1)
        a = m[top, left] * (1 - x + left) + m[top, right] * (x - left)
        b = m[low, left] * (1 - x + left) + m[low, right] * (x - left)
        result[i, j] = a * (1 - y + top) + b * (y - top)
    return result


def eq_15(student_map: np.ndarray, teacher_map: np.ndarray) -> float:
    total = 0.0
    for s, t in zip(student_map, teacher_map, strict=True):
        s = bilinear(s, *t.shape)
        total += sum((s[i] - t[i]) ** 2 for i in np.ndindex(t.shape)) / t.size
    return total / len(teacher_map)


def run(s: Net, t: Net, config: MsarcConfig | None = None) -> Tensor:
    loss = MsarcLoss(s.layers, t.layers, config)
    teacher_logits, maps = loss.teacher_maps(t, IMAGES)
    with capture(s, s.names) as features:
        logits = s(IMAGES)
    return loss(s, features, logits, teacher_logits, maps)


# ---------------------------------------------------------------- Eq. 15


@settings(max_examples=15)
@given(
    batch=st.integers(1, 3),
    small=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    large=st.tuples(st.integers(1, 7), st.integers(1, 7)),
)
def test_map_distance_is_eq_15_at_the_teachers_size(
    batch: int, small: tuple[int, int], large: tuple[int, int]
) -> None:
    s, t = normal(batch, *small), normal(batch, *large, seed=2)
    expected = eq_15(s.numpy(), t.numpy())
    assert map_distance(s, t).item() == pytest.approx(expected, rel=1e-9)


def test_normalised_maps_have_a_mean_square_of_1() -> None:
    s, t = normal(3, 4, 5), 7 * normal(3, 4, 5, seed=2)
    total = 0.0
    for a, b in zip(s.numpy(), t.numpy(), strict=True):
        a, b = a / np.sqrt((a**2).mean()), b / np.sqrt((b**2).mean())
        total += ((a - b) ** 2).mean() / 3
    assert map_distance(s, t, normalise=True).item() == pytest.approx(total, rel=1e-5)
    scales = torch.tensor([0.5, 3.0, 90.0]).double()[:, None, None]
    assert map_distance(scales * t, t, normalise=True).item() == pytest.approx(0, abs=1e-9)
    assert map_distance(scales * t, t).item() > 1
    resized = normal(3, 8, 9)
    again = map_distance(scales * resized, t, normalise=True)
    assert again.item() == pytest.approx(map_distance(resized, t, normalise=True).item(), rel=1e-5)


def test_black_maps_can_be_normalised() -> None:
    s = torch.zeros(2, 3, 3, requires_grad=True)
    loss = map_distance(s, torch.zeros(2, 3, 3), normalise=True)
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(s.grad).all()


# ---------------------------------------------------------------- Eq. 9


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    ("stages", "alphas"),
    [(None, None), (1, None), (2, (0.25, 3.0)), (None, (2.0, 0.0)), (None, (0.5,))],
)
def test_the_loss_is_eq_9_paired_from_the_last_stage_backwards(
    stages: int | None, alphas: tuple[float, ...] | None, relu: bool
) -> None:
    s, t = student(), teacher()  # sides 12, 6 and 12, 6, 3: no pair is of one size
    classes = t(IMAGES).argmax(1).tolist()
    assert len(set(classes)) > 1 and classes != s(IMAGES).argmax(1).tolist()
    config = MsarcConfig(stages=stages, alphas=alphas, cam=CamConfig(relu=relu))
    used = stages or (len(alphas) if alphas else 2)
    student_maps = maps_by_loop(s, classes, relu)[-used:]
    teacher_maps = maps_by_loop(t, classes, relu)[-used:]
    weights = alphas or (1.0,) * used
    expected = sum(
        a * eq_15(m, n) for a, m, n in zip(weights, student_maps, teacher_maps, strict=True)
    )
    assert run(s, t, config).item() == pytest.approx(expected, rel=1e-9)


def test_a_deeper_student_than_its_teacher() -> None:
    s, t = Net((3, 4, 3), seed=100), teacher(2)
    classes = t(IMAGES).argmax(1).tolist()
    pairs = zip(maps_by_loop(s, classes)[1:], maps_by_loop(t, classes), strict=True)
    assert run(s, t).item() == pytest.approx(sum(eq_15(m, n) for m, n in pairs), rel=1e-9)


def test_normalisation_reaches_the_loss() -> None:
    s, t = student(first_stride=2), teacher()  # sides 6, 3: as the teacher's last two
    classes = t(IMAGES).argmax(1).tolist()
    expected = 0.0
    for m, n in zip(maps_by_loop(s, classes), maps_by_loop(t, classes)[1:], strict=True):
        m, n = (k / np.sqrt((k**2).mean((1, 2), keepdims=True)) for k in (m, n))
        expected += eq_15(m, n)
    loss = run(s, t, MsarcConfig(normalise=True))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("second_order", [True, False])
def test_networks_that_are_the_same_are_consistent(second_order: bool) -> None:
    t = teacher()
    s = copy.deepcopy(t).requires_grad_(True)
    loss = run(s, t, MsarcConfig(second_order=second_order))
    assert loss.item() == pytest.approx(0, abs=1e-20)
    with torch.no_grad():
        s.s1[0].weight += 0.1
    assert run(s, t).item() > 1e-6


def test_teacher_maps_are_its_logits_and_maps() -> None:
    s, t = student(), teacher()
    logits, maps = MsarcLoss(s.layers, t.layers).teacher_maps(t, IMAGES)
    torch.testing.assert_close(logits, t(IMAGES))
    expected = maps_by_loop(t, logits.argmax(1).tolist())[-2:]
    for m, e in zip(maps, expected, strict=True):
        np.testing.assert_allclose(m.numpy(), e, rtol=1e-9, atol=1e-12)
    assert not any(k.requires_grad for k in (logits, *maps))


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("second_order", [True, False])
def test_the_gradient_reaches_the_student_and_never_the_teacher(second_order: bool) -> None:
    s, t = student(), teacher()
    images = IMAGES.clone().requires_grad_()
    loss = MsarcLoss(s.layers, t.layers, MsarcConfig(second_order=second_order))
    teacher_logits, maps = loss.teacher_maps(t.requires_grad_(True), images)
    with capture(s, s.names) as features:
        logits = s(images.detach())
    loss(s, features, logits, teacher_logits, maps).backward()
    assert all(p.grad is None for p in t.parameters()) and images.grad is None
    assert all(
        p.grad is not None and p.grad.any() for n, p in s.named_parameters() if "fc" not in n
    )
    weight = s.fc.weight.grad
    assert (weight is not None and bool(weight.any())) == second_order


@pytest.mark.parametrize(
    ("name", "index"),
    [("s0.0.weight", (2, 1, 1, 2)), ("s1.0.weight", (1, 0, 2, 1)), ("fc.weight", (1, 2))],
)
def test_second_order_is_the_whole_gradient_and_first_order_is_not(
    name: str, index: tuple[int, ...]
) -> None:
    s, t = student(), teacher()
    weight = s.get_parameter(name)
    alphas = (3000.0, 1.0)  # the gradients that make the early maps are small
    grads = []
    for second_order in (True, False):
        loss = run(s, t, MsarcConfig(alphas=alphas, second_order=second_order))
        (grad,) = torch.autograd.grad(loss, weight, materialize_grads=True)
        grads.append(grad[index].item())
    values = []
    for h in (1e-5, -2e-5):
        weight.data[index] += h
        values.append(run(s, t, MsarcConfig(alphas=alphas)).item())
    difference = (values[0] - values[1]) / 2e-5
    assert grads[0] == pytest.approx(difference, rel=1e-6)
    assert grads[1] != pytest.approx(difference, rel=1e-4)


def test_the_students_other_losses_can_use_the_same_pass() -> None:
    s, t = student(), teacher()
    loss = MsarcLoss(s.layers, t.layers)
    teacher_logits, maps = loss.teacher_maps(t, IMAGES)
    with capture(s, s.names) as features:
        logits = s(IMAGES)
    consistency = loss(s, features, logits, teacher_logits, maps)
    (consistency + logits.square().mean()).backward()
    assert s.fc.weight.grad.any()


# ---------------------------------------------------------------- bad options


@pytest.mark.parametrize(
    "config",
    [
        {"stages": 3},
        {"stages": 2, "alphas": (1.0,)},
        {"alphas": (1.0, 1.0, 1.0)},
        {"stages": 1, "alphas": (1.0, 1.0)},
    ],
)
def test_more_stages_or_weights_than_both_have_are_refused(config: dict) -> None:
    with pytest.raises(InputError):
        MsarcLoss(student().layers, teacher().layers, MsarcConfig(**config))


@pytest.mark.parametrize(
    "config",
    [{"stages": 0}, {"stages": -1}, {"alphas": (-1.0, 1.0)}, {"alphas": (1.0, float("nan"))}],
)
def test_options_out_of_range_are_refused(config: dict) -> None:
    with pytest.raises(InputError):
        MsarcConfig(**config)
