"""L_BN, L_cls, the adversarial loss and the image priors against loops, SciPy and differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor, nn

from dfkd_lite.errors import InputError
from dfkd_lite.inversion import (
    BatchNormLoss,
    adversarial_loss,
    batch_statistics,
    class_loss,
    l2_prior,
    statistics_distance,
    total_variation,
)
from dfkd_lite.networks import build


def normal(*shape: int, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def small_teacher() -> nn.Sequential:
    """Two batch-norms in series, with statistics of their own; frozen, eval, double."""
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    return frozen(model)


def frozen(model: nn.Module) -> nn.Module:
    for i, bn in enumerate(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        bn.running_mean.copy_(normal(bn.num_features, seed=10 + i))
        bn.running_var.copy_(0.3 + normal(bn.num_features, seed=30 + i) ** 2)
    return model.double().eval().requires_grad_(False)


def inputs_of_batch_norms(model: nn.Module, x: Tensor) -> list[tuple[nn.BatchNorm2d, Tensor]]:
    """What each batch-norm reads, by hooks of our own."""
    read: list[tuple[nn.BatchNorm2d, Tensor]] = []
    handles = [
        m.register_forward_pre_hook(lambda m, args: read.append((m, args[0].clone())))
        for m in model.modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return read


def moments(f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance of each channel, by a loop."""
    means, variances = np.zeros(f.shape[1]), np.zeros(f.shape[1])
    for c in range(f.shape[1]):
        values = [float(v) for v in f[:, c].ravel()]
        means[c] = sum(values) / len(values)
        variances[c] = sum((v - means[c]) ** 2 for v in values) / len(values)
    return means, variances


def distance(means: np.ndarray, variances: np.ndarray, bn: nn.BatchNorm2d) -> float:
    d_mean = bn.running_mean.numpy() - means
    d_var = bn.running_var.numpy() - variances
    return float(np.sqrt((d_mean**2).sum()) + np.sqrt((d_var**2).sum()))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# ---------------------------------------------------------------- L_BN


@settings(max_examples=10)
@given(
    batch=st.integers(1, 4),
    channels=st.integers(1, 5),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    last=st.booleans(),
)
def test_batch_statistics_are_the_mean_and_the_biased_variance(
    batch: int, channels: int, height: int, width: int, last: bool
) -> None:
    x = 3 * normal(batch, channels, height, width) + 2
    layout = torch.channels_last if last else torch.contiguous_format
    mean, variance = batch_statistics(x.contiguous(memory_format=layout))
    expected = moments(x.numpy())
    np.testing.assert_allclose(mean.numpy(), expected[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(variance.numpy(), expected[1], rtol=1e-10, atol=1e-12)


def test_batch_statistics_in_single_precision_survive_a_large_mean() -> None:
    x = (normal(8, 2, 9, 9) + 300).float()
    mean, variance = batch_statistics(x)
    expected = moments(x.double().numpy())
    np.testing.assert_allclose(mean.numpy(), expected[0], rtol=1e-5)
    np.testing.assert_allclose(variance.numpy(), expected[1], rtol=1e-3)


@pytest.mark.parametrize("last", [False, True])
def test_first_and_second_derivatives_of_batch_statistics(last: bool) -> None:
    x = normal(2, 3, 2, 3)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    assert torch.autograd.gradcheck(batch_statistics, (x,))
    assert torch.autograd.gradgradcheck(batch_statistics, (x,))
    assert torch.autograd.gradcheck(lambda x: batch_statistics(x)[0], (x,))
    assert torch.autograd.gradcheck(lambda x: batch_statistics(x)[1], (x,))


def test_distance_of_one_layer_by_hand() -> None:
    bn = nn.BatchNorm2d(2).double()
    bn.running_mean.copy_(torch.tensor([1.0, 2.0]))
    bn.running_var.copy_(torch.tensor([4.0, 5.0]))
    mean = torch.tensor([4.0, -2.0], dtype=torch.float64)  # off by 3 and 4: 5
    variance = torch.tensor([9.0, 17.0], dtype=torch.float64)  # off by 5 and 12: 13
    assert statistics_distance(mean, variance, bn).item() == pytest.approx(18.0)


@pytest.mark.parametrize("name", ["small", "wrn-16-1", "vgg-11"])
def test_l_bn_is_the_formulas_sum_over_layers(name: str) -> None:
    teacher = small_teacher() if name == "small" else frozen(build(name, 3, 2))
    x = normal(3, 2, 16, 16)
    layers = inputs_of_batch_norms(teacher, x)
    expected = sum(distance(*moments(f.numpy()), bn) for bn, f in layers)
    with BatchNormLoss(teacher) as bn_loss:
        teacher(x)
        loss = bn_loss.loss()
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_gradient_of_l_bn_to_the_images() -> None:
    teacher = small_teacher()

    def loss(x: Tensor) -> Tensor:
        with BatchNormLoss(teacher) as bn_loss:
            teacher(x)
            return bn_loss.loss()

    assert torch.autograd.gradcheck(loss, (normal(2, 2, 6, 5).requires_grad_(),))


def test_the_loss_is_that_of_the_newest_pass() -> None:
    teacher = small_teacher()
    a, b = normal(2, 2, 7, 7), normal(2, 2, 7, 7, seed=2)
    with BatchNormLoss(teacher) as bn_loss:
        teacher(b)
        alone = bn_loss.loss().item()
        teacher(a)
        assert bn_loss.loss().item() != pytest.approx(alone)
        teacher(b)
        assert bn_loss.loss().item() == alone


def test_moving_averages_by_hand() -> None:
    teacher, m = small_teacher(), 0.7
    batches = [normal(2, 2, 7, 7, seed=s) * (1 + s) for s in range(3)]
    read = [inputs_of_batch_norms(teacher, x) for x in batches]
    first, second, third = ([moments(f.numpy()) for _, f in layers] for layers in read)
    norms = [bn for bn, _ in read[0]]

    def blend(old: list, new: list) -> list:
        return [
            tuple(m * before + (1 - m) * now for before, now in zip(a, b, strict=True))
            for a, b in zip(old, new, strict=True)
        ]

    def total(statistics: list) -> float:
        return sum(distance(*s, bn) for s, bn in zip(statistics, norms, strict=True))

    with BatchNormLoss(teacher, momentum=m) as bn_loss:
        teacher(batches[0])  # nothing remembered yet: the batch alone
        assert bn_loss.loss().item() == pytest.approx(total(first), rel=1e-9)
        bn_loss.remember()
        teacher(batches[2])  # looked at, and not remembered
        assert bn_loss.loss().item() == pytest.approx(total(blend(first, third)), rel=1e-9)
        teacher(batches[1])
        assert bn_loss.loss().item() == pytest.approx(total(blend(first, second)), rel=1e-9)
        bn_loss.remember()
        teacher(batches[2])
        expected = total(blend(blend(first, second), third))
        assert bn_loss.loss().item() == pytest.approx(expected, rel=1e-9)


def test_averages_carry_over_to_the_next_context_and_hold_no_graph() -> None:
    teacher, m = small_teacher(), 0.9
    x = normal(2, 2, 6, 6).requires_grad_()
    y = normal(2, 2, 6, 6, seed=2).requires_grad_()
    bn_loss = BatchNormLoss(teacher, momentum=m)
    with bn_loss:
        teacher(x)
        bn_loss.remember()
    with bn_loss:
        teacher(y)
        loss = bn_loss.loss()
    to_x, to_y = torch.autograd.grad(loss, (x, y), allow_unused=True)
    assert to_x is None or not to_x.any()
    old = [(f.detach(), bn) for bn, f in inputs_of_batch_norms(teacher, x)]
    new = [f for _, f in inputs_of_batch_norms(teacher, y)]
    expected = 0
    for (f, bn), g in zip(old, new, strict=True):
        mean = m * f.mean((0, 2, 3)) + (1 - m) * g.mean((0, 2, 3))
        var = m * f.var((0, 2, 3), False) + (1 - m) * g.var((0, 2, 3), False)
        expected = expected + (bn.running_mean - mean).norm() + (bn.running_var - var).norm()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(to_y, torch.autograd.grad(expected, y)[0])


def test_without_momentum_nothing_is_averaged() -> None:
    teacher = small_teacher()
    a, b = normal(2, 2, 7, 7), normal(2, 2, 7, 7, seed=2)
    with BatchNormLoss(teacher) as bn_loss:
        teacher(b)
        alone = bn_loss.loss().item()
        teacher(a)
        bn_loss.remember()
        teacher(b)
        assert bn_loss.loss().item() == pytest.approx(alone, rel=1e-12)


def test_hooks_are_gone_whatever_happens() -> None:
    teacher = small_teacher()
    bn_loss = BatchNormLoss(teacher)
    assert hooks(teacher) == 0
    with bn_loss:
        assert hooks(teacher) == 2
    assert hooks(teacher) == 0
    with pytest.raises(ZeroDivisionError), bn_loss:
        teacher(normal(1, 2, 6, 6))
        _ = 1 / 0
    assert hooks(teacher) == 0
    with pytest.raises(RuntimeError), bn_loss:
        teacher(normal(1, 9, 6, 6))  # wrong channels, in the middle of a pass
    assert hooks(teacher) == 0


def test_the_teachers_statistics_are_left_alone() -> None:
    teacher = small_teacher()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    with BatchNormLoss(teacher, momentum=0.9) as bn_loss:
        teacher(normal(2, 2, 6, 6))
        bn_loss.loss()
        bn_loss.remember()
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_a_teacher_without_stored_statistics_is_refused() -> None:
    bare = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2))
    without = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False))
    for teacher in (bare, without):
        with pytest.raises(InputError, match="batch-norm"):
            BatchNormLoss(teacher)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_momentum_out_of_range_is_refused(momentum: float) -> None:
    with pytest.raises(InputError, match="momentum"):
        BatchNormLoss(small_teacher(), momentum)


# ---------------------------------------------------------------- losses of logits


@settings(max_examples=10)
@given(batch=st.integers(1, 6), classes=st.integers(2, 12), seed=st.integers(0, 99))
def test_class_loss_is_the_cross_entropy(batch: int, classes: int, seed: int) -> None:
    logits = 4 * normal(batch, classes, seed=seed)
    labels = torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(seed))
    rows = log_softmax(logits.numpy(), axis=1)
    expected = -sum(rows[i, k] for i, k in enumerate(labels.tolist())) / batch
    assert class_loss(logits, labels).item() == pytest.approx(expected, rel=1e-9)


def adversarial_pair() -> tuple[Tensor, Tensor]:
    student, teacher = 2 * normal(7, 4), 2 * normal(7, 4, seed=2)
    student[:3] = teacher[:3] + 0.4 * normal(3, 4, seed=3)
    return student, teacher


@pytest.mark.parametrize("agree_only", [True, False])
def test_adversarial_loss_is_minus_the_divergence(agree_only: bool) -> None:
    student, teacher = adversarial_pair()
    p, q = softmax(teacher.numpy(), axis=1), softmax(student.numpy(), axis=1)
    divergence = rel_entr(p, q).sum(axis=1)
    agree = [int(a.argmax()) == int(b.argmax()) for a, b in zip(p, q, strict=True)]
    assert 0 < sum(agree) < 7
    counted = [d for d, a in zip(divergence, agree, strict=True) if a or not agree_only]
    expected = -sum(counted) / 7
    loss = adversarial_loss(student, teacher, agree_only)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    if agree_only:
        assert adversarial_loss(student, teacher).item() == loss.item()


def test_adversarial_loss_pushes_both_and_only_where_they_agree() -> None:
    student, teacher = (t.requires_grad_() for t in adversarial_pair())
    agree = student.argmax(1) == teacher.argmax(1)
    adversarial_loss(student, teacher).backward()
    for grad in (student.grad, teacher.grad):
        assert (grad[agree].abs().sum(1) > 0).all() and not grad[~agree].any()
    pair = [t.detach().requires_grad_() for t in (student, teacher)]
    assert torch.autograd.gradcheck(lambda s, t: adversarial_loss(s, t, True), pair)
    assert torch.autograd.gradcheck(lambda s, t: adversarial_loss(s, t, False), pair)


# ---------------------------------------------------------------- priors of images


@settings(max_examples=8)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 3),
    height=st.integers(2, 5),
    width=st.integers(2, 5),
)
def test_priors_against_loops(batch: int, channels: int, height: int, width: int) -> None:
    x = normal(batch, channels, height, width)
    variation, norms = 0.0, 0.0
    for image in x.numpy():
        norms += float(np.sqrt((image**2).sum()))
        for c, i, j in np.ndindex(image.shape):
            if i + 1 < height:
                variation += (image[c, i + 1, j] - image[c, i, j]) ** 2
            if j + 1 < width:
                variation += (image[c, i, j + 1] - image[c, i, j]) ** 2
    assert total_variation(x).item() == pytest.approx(variation / batch, rel=1e-9)
    assert l2_prior(x).item() == pytest.approx(norms / batch, rel=1e-9)


def test_gradients_of_the_priors() -> None:
    x = normal(2, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(total_variation, (x,))
    assert torch.autograd.gradcheck(l2_prior, (x,))
