"""Checks assignment 4: where do they look? (Eqs. 9 to 15)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_lite import cam as package
from dfkd_lite.door import find_layers
from dfkd_lite.msarc import MsarcConfig, MsarcLoss
from dfkd_lite.msarc import map_distance as _map_distance
from dfkd_lite.networks import capture, evaluating

from .checking import Question, Wrong, drawn, expect, require
from .stages import Straight, look, small, stage_maps

Loss = Callable[[nn.Module, nn.Module, Tensor, Sequence[float]], Tensor]


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Answer question 4, for the question after it: maps (B, h, w) bilinearly to ``size``."""
    return package.upsample(maps, (size[0], size[1]))


def map_distance(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Answer question 5, for the question after it: Eq. 15, averaged over images."""
    return _map_distance(student_map, teacher_map)


@Question
def q1(cam: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check the map of Eq. 10."""
    compare_cam(cam, drawn(2, 3, 4, 5), drawn(4, 3, seed=1), torch.tensor([3, 1]))


def compare_cam(
    answer: Callable[[Tensor, Tensor, Tensor], Tensor],
    features: Tensor,
    weight: Tensor,
    classes: Tensor,
) -> None:
    """Compare the maps of features (B, P, H, W), weights (K, P) and classes (B,)."""
    what = f"`cam` of features of the shape {tuple(features.shape)}"
    wanted = package.cam(features, weight, classes)
    by_number = package.cam(features, weight, torch.arange(len(classes)))
    try:
        got = answer(features.clone(), weight.clone(), classes.clone())
    except (RuntimeError, IndexError) as error:
        raise Wrong(
            f"{what}: {type(error).__name__}: {error}. The weights are (K, P), a row for each "
            "class: image b needs row `classes[b]`, and each of its numbers meets a whole channel."
        ) from None
    expect(
        got,
        wanted,
        what,
        {
            "the row of the image's number instead of the row of its class": by_number,
            "the weights of the first image's class for all images": package.cam(
                features, weight, classes[:1].expand_as(classes)
            ),
            "the mean over the channels; Eq. 10 has a sum": wanted / features.shape[1],
            "the sum over all classes": torch.einsum("kp,bphw->bhw", weight, features),
            "a ReLU; Eq. 10 has none": wanted.relu(),
            "no sum over the channels": weight[classes][:, :, None, None] * features,
        },
    )


def compare_with_logit(
    answer: Callable[[Tensor, Tensor, Tensor], Tensor], images: Tensor, classes: Tensor
) -> None:
    """Check that the mean of a network's map, plus the bias, is its logit."""
    network = small(10, favourite=0)
    stages, logits, weight = look(network, images)
    maps = answer(stages[-1].detach(), weight, classes)
    require(isinstance(maps, Tensor) and maps.dim() == 3, "maps (B, H, W) were expected.")
    bias = network.fc.bias[classes]
    expect(maps.mean((1, 2)), pick(logits, classes) - bias, "the mean of the map", atol=1e-4)


def pick(values: Tensor, classes: Tensor) -> Tensor:
    """Pick from each row (B, K) the value of its class (B,)."""
    return values.gather(1, classes[:, None])[:, 0]


@Question
def q2(gradient_weights: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check Eq. 12, averaged over the places."""
    network = Straight((1.0, -2.0, 0.5), stride=2)
    images, classes = drawn(2, 1, 6, 4, seed=2), torch.tensor([1, 2])
    wanted = network.weights(images, classes)
    compare_weights(gradient_weights, network, images, classes, wanted)


def compare_weights(
    answer: Callable[[Tensor, Tensor, Tensor], Tensor],
    network: nn.Module,
    images: Tensor,
    classes: Tensor,
    wanted: Sequence[Tensor] | None = None,
) -> None:
    """Compare every stage's weights from one pass with the package's, unless they are given."""
    stages, logits, _ = look(network, images)
    for number, features in enumerate(stages):
        what = f"the weights at stage {number + 1} of {len(stages)}"
        gradient = _gradient(network, images, number, lambda y: pick(y, classes).sum())
        alpha = package.channel_weights(features.detach(), gradient)
        try:
            got = answer(logits, classes.clone(), features)
        except RuntimeError as error:
            if "second time" in str(error):
                hint = "an earlier stage has used up the graph of this pass. `retain_graph=True`"
            elif "scalar" in str(error):
                hint = "one number is needed: the scores of all images, added up"
            else:
                raise
            raise Wrong(f"{what}: {hint}.") from None
        expect(
            got,
            alpha if wanted is None else wanted[number],
            what,
            _other_weights(network, images, classes, number, gradient, features.detach()),
            atol=1e-5 * alpha.abs().max().item(),
        )
        require(
            not got.requires_grad,
            f"{what}: the values are right, but they carry a gradient of their own; they are to "
            "be constants (open point 8).",
        )
        require(
            all(p.grad is None for p in network.parameters()),
            f"{what}: the values are right, but gradients were left in the network's weights, "
            "where an optimiser would find them: use `torch.autograd.grad` instead of `backward`.",
        )


def _gradient(
    network: nn.Module, images: Tensor, number: int, score: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the gradient of a score of the logits at a stage, from a new pass."""
    stages, logits, _ = look(network, images)
    return torch.autograd.grad(score(logits), stages[number])[0]


def _other_weights(
    network: nn.Module,
    images: Tensor,
    classes: Tensor,
    number: int,
    gradient: Tensor,
    features: Tensor,
) -> dict[str, Tensor | float]:
    def mean_gradient(score: Callable[[Tensor], Tensor]) -> Tensor:
        return _gradient(network, images, number, score).mean((2, 3))

    return {
        "the gradient of the softmax's probability; y^c is the logit": mean_gradient(
            lambda y: pick(y.softmax(1), classes).sum()
        ),
        "the gradient of the log-probability; y^c is the logit": mean_gradient(
            lambda y: pick(y.log_softmax(1), classes).sum()
        ),
        "the class that the network names itself, not the one in `classes`": mean_gradient(
            lambda y: y.amax(1).sum()
        ),
        "the logits of all classes added up": mean_gradient(lambda y: y.sum()),
        "the scores averaged over the images, which divides every gradient by their number": (
            mean_gradient(lambda y: pick(y, classes).mean())
        ),
        "the gradient times the activation (Eq. 13 as printed)": package.channel_weights(
            features, gradient, "gradient-x-activation"
        ),
        "the sum over the places; Grad-CAM takes the mean": gradient.sum((2, 3)),
        "the gradient at each place, not yet averaged": gradient,
        "the mean over the channels as well": gradient.mean((1, 2, 3)),
    }


@Question
def q3(grad_cam: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check the map of Eq. 14."""
    compare_grad_cam(grad_cam, drawn(2, 3, 4, 5), drawn(2, 3, seed=1))


def compare_grad_cam(
    answer: Callable[[Tensor, Tensor], Tensor], features: Tensor, alpha: Tensor
) -> None:
    """Compare the map of features (B, P, H, W) and weights (B, P), and its gradient."""
    what = f"`grad_cam` of features of the shape {tuple(features.shape)}"
    shares = alpha[:, :, None, None] * features
    wanted = package.weighted_map(features, alpha)
    f = features.clone().requires_grad_()
    try:
        got = answer(f, alpha.clone())
    except RuntimeError as error:
        raise Wrong(
            f"{what}: {type(error).__name__}: {error}. The weights are (B, P): each number meets "
            "a whole channel (H, W)."
        ) from None
    expect(
        got,
        wanted,
        what,
        {
            "no ReLU": shares.sum(1),
            "the ReLU before the sum: what speaks against the class must be able to cancel": (
                shares.relu().sum(1)
            ),
            "the ReLU on the weights": package.weighted_map(features, alpha.relu()),
            "the absolute value instead of the ReLU": shares.sum(1).abs(),
            "the mean over the channels; Eq. 14 has a sum": wanted / features.shape[1],
        },
    )
    require(got.requires_grad, f"{what}: the features carry gradient, and the map has lost it.")
    (reached,) = torch.autograd.grad(got.sum(), f)
    open_places = (wanted > 0)[:, None]
    expect(reached, alpha[:, :, None, None] * open_places, "the gradient of the map's sum")


@Question
def q4(resize: Callable[[Tensor, tuple[int, int]], Tensor]) -> None:
    """Check that maps are resized."""
    compare_resized(resize, drawn(2, 3, 4), (6, 9))


def compare_resized(
    answer: Callable[[Tensor, tuple[int, int]], Tensor], maps: Tensor, size: tuple[int, int]
) -> None:
    """Compare maps (B, h, w) that are resized bilinearly to a size (H, W)."""
    what = f"maps of the shape {tuple(maps.shape)} resized to {size}"
    try:
        got = answer(maps.clone(), size)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise Wrong(
            f"{what}: {type(error).__name__}: {error}. `F.interpolate` wants (B, C, h, w) for "
            "pictures: give the maps an axis of one channel, and take it away again."
        ) from None
    images = maps[:, None]
    expect(
        got,
        package.upsample(maps, size),
        what,
        {
            "each place repeated (`mode='nearest'`), not bilinear": F.interpolate(images, size)[
                :, 0
            ],
            "`align_corners=True`": F.interpolate(
                images, size, mode="bilinear", align_corners=True
            )[:, 0],
            "the means of areas (`mode='area'`), not bilinear": F.interpolate(
                images, size, mode="area"
            )[:, 0],
            "height and width exchanged": package.upsample(maps, (size[1], size[0])),
            "the axis of one channel still there": package.upsample(maps, size)[:, None],
        },
    )


@Question
def q5(map_distance: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check Eq. 15, averaged over images."""
    compare_distance(map_distance, drawn(2, 4, 5), drawn(2, 4, 5, seed=1))
    compare_distance(map_distance, drawn(2, 3, 4), drawn(2, 6, 5, seed=1))


def compare_distance(
    answer: Callable[[Tensor, Tensor], Tensor], student_map: Tensor, teacher_map: Tensor
) -> None:
    """Compare the distance of maps (B, h, w) to a teacher's (B, H, W), and its gradient."""
    student_size, teacher_size = student_map.shape[1:], teacher_map.shape[1:]
    what = f"a student's map of {tuple(student_size)} and a teacher's of {tuple(teacher_size)}"
    s = student_map.clone().requires_grad_()
    try:
        got = answer(s, teacher_map.clone())
    except RuntimeError as error:
        raise Wrong(
            f"{what}: {type(error).__name__}: {error}. Maps can be compared place by place once "
            "the student's has the size of the teacher's."
        ) from None
    fitted = resize(student_map, (teacher_size[0], teacher_size[1]))
    shrunk = resize(teacher_map, (student_size[0], student_size[1]))
    gap, wanted = fitted - teacher_map, map_distance(student_map, teacher_map)
    expect(
        got,
        wanted,
        what,
        {
            "the teacher's map resized to the student's": (student_map - shrunk).square().mean(),
            "the sum over places and images; Eq. 15 has a mean": gap.square().sum(),
            "the sum over the places, averaged over the images": gap.square().sum((1, 2)).mean(),
            "the mean over the places, summed over the images": gap.square().mean((1, 2)).sum(),
            "one number for each image: average them": gap.square().mean((1, 2)),
            "absolute values instead of squares": gap.abs().mean(),
            "the root of Eq. 15": wanted.sqrt(),
        },
    )
    carries = isinstance(got, Tensor) and got.requires_grad
    require(carries, f"{what}: no gradient leads back to the student's map.")
    (reached,) = torch.autograd.grad(got, s)
    s = student_map.clone().requires_grad_()
    expect(
        reached,
        torch.autograd.grad(map_distance(s, teacher_map), s)[0],
        f"{what}: the gradient to the student's map",
    )


@Question
def q6(msarc_loss: Loss) -> None:
    """Check the loss of Eq. 9."""
    # the teacher names class 1 on positive images, class 0 on negative ones; the student other ones
    teacher, student = Straight((-1.0, 3.0, 2.0), stride=2), Straight((2.0, 0.5, -1.5), stride=3)
    images = drawn(2, 1, 8, 6, seed=4).abs() * torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    classes = torch.tensor([1, 0])
    pairs = [*zip(student.maps(images, classes), teacher.maps(images, classes), strict=True)]
    first, last = (map_distance(s, t) for s, t in pairs)
    compare_loss(msarc_loss, student, teacher, images, (2.0,), 2.0 * last)
    # maps of the first stage are smaller by the number of places, and their squares by its square
    weights = (images[0].numel() ** 2 / 3.0, 0.5)
    wanted = weights[0] * first + weights[1] * last
    compare_loss(msarc_loss, student, teacher, images, weights, wanted)


def compare_loss(
    answer: Loss,
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    alphas: Sequence[float],
    wanted: Tensor | None = None,
) -> None:
    """Compare with the package's loss, unless its value is given."""
    what = f"`msarc_loss` with {len(alphas)} α"
    try:
        got = answer(student, teacher, images, list(alphas))
    except (ValueError, IndexError, RuntimeError) as error:
        raise Wrong(
            f"{what}: {type(error).__name__}: {error}. There are as many pairs as α, the last so "
            "many maps of each network, and `check.map_distance` compares maps of any size."
        ) from None
    expect(
        got,
        reference(student, teacher, images, alphas) if wanted is None else wanted,
        what,
        _other_losses(student, teacher, images, alphas),
        rtol=1e-3,
    )


def reference(
    student: nn.Module, teacher: nn.Module, images: Tensor, alphas: Sequence[float]
) -> Tensor:
    """Return the package's loss with these α, with its graph to the student's weights."""
    shape = (images.shape[1], images.shape[2], images.shape[3])
    layers = find_layers(student, shape), find_layers(teacher, shape)
    loss = MsarcLoss(*layers, MsarcConfig(alphas=tuple(alphas)))
    with evaluating(student), evaluating(teacher):
        logits, maps = loss.teacher_maps(teacher, images)
        with capture(student, loss.student_layers.stages) as features:
            student_logits = student(images)
        return loss(student, features, student_logits, logits, maps)


def _other_losses(
    student: nn.Module, teacher: nn.Module, images: Tensor, alphas: Sequence[float]
) -> dict[str, Tensor | float]:
    with torch.no_grad():
        named, own = teacher(images).argmax(1), student(images).argmax(1)
        of_teacher, of_student = (stage_maps(n, images, named) for n in (teacher, student))
        strayed = stage_maps(student, images, own)
        crossed = stage_maps(teacher, images, own)
    count, ones = len(alphas), [1.0] * len(alphas)

    def total(ours: list[Tensor], theirs: list[Tensor], weights: Sequence[float]) -> Tensor:
        terms = zip(weights, ours, theirs, strict=True)
        return torch.stack([a * map_distance(s, t) for a, s, t in terms]).sum()

    late_s, late_t = of_student[-count:], of_teacher[-count:]
    return {
        "the student's own class for its maps: it has to be the teacher's for both networks": total(
            strayed[-count:], late_t, alphas
        ),
        "the student's class for both networks: it has to be the teacher's": total(
            strayed[-count:], crossed[-count:], alphas
        ),
        "all α = 1": total(late_s, late_t, ones),
        "the mean over the stages; Eq. 9 has a sum": total(late_s, late_t, alphas) / count,
        "the α in the opposite order": total(late_s, late_t, alphas[::-1]),
        "the stages paired from the first one on": total(
            of_student[:count], of_teacher[:count], alphas
        ),
        "the student's and the teacher's maps exchanged": total(late_t, late_s, alphas),
    }


def balanced(student: nn.Module, teacher: nn.Module, images: Tensor, count: int) -> list[float]:
    """Return weights with which the last ``count`` stages contribute 1, 2, 3, ... to the loss."""
    with torch.no_grad():
        classes = teacher(images).argmax(1)
        ours, theirs = (stage_maps(n, images, classes)[-count:] for n in (student, teacher))
        terms = [map_distance(s, t).item() for s, t in zip(ours, theirs, strict=True)]
    return [number / term for number, term in enumerate(terms, 1)]


def check_student_gradient(answer: Loss, images: Tensor) -> None:
    """Compare the gradient of all of the student's weights; both networks name the same class."""
    student, teacher = small(10, favourite=1), small(16, favourite=1, seed=1)
    twin = copy.deepcopy(student)
    got: Any = answer(student, teacher, images, [1.0, 1.0, 1.0])
    carries = isinstance(got, Tensor) and got.requires_grad
    require(carries, "`msarc_loss`: no gradient leads back to anything.")
    found, wanted = (
        _all_gradients(loss, network)
        for loss, network in ((got, student), (reference(twin, teacher, images, [1.0] * 3), twin))
    )
    scale = wanted.abs().max().item()
    expect(found, wanted, "the gradient of the student's weights", rtol=1e-3, atol=1e-4 * scale)


def _all_gradients(loss: Tensor, network: nn.Module) -> Tensor:
    parameters = list(network.parameters())
    found = torch.autograd.grad(
        loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([gradient.flatten() for gradient in found])


def check_teacher_untouched(answer: Loss, images: Tensor) -> None:
    """Check the value, and that going back from it leaves nothing in the teacher's weights."""
    student, teacher = small(10, favourite=1), small(16, favourite=1, seed=1)
    got: Any = answer(student, teacher, images, [1.0, 1.0, 1.0])
    expect(got, reference(student, teacher, images, [1.0] * 3), "`msarc_loss`", rtol=1e-3)
    if isinstance(got, Tensor) and got.requires_grad:
        got.backward()
    untouched = all(p.grad is None for p in teacher.parameters())
    require(untouched, "the teacher's weights got a gradient: its maps are to be constants.")
