"""Checks assignment 1: distillation on data, then on noise (Eq. 1)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from dfkd_lab.trained import trained_teacher
from dfkd_lite import kd
from dfkd_lite.data import load
from dfkd_lite.measure.evaluate import accuracy, predict
from dfkd_lite.measure.signs import effective_classes
from dfkd_lite.networks import NetworkSpec, batch_norms, normalise
from dfkd_lite.presets import preset

from .checking import Question, Wrong, drawn, expect, require

ENOUGH = 0.8  # share of test images to get right, as question 4 says; our solutions reach over 0.9


# --- The answers to questions 2 and 3, for the questions after them ---------------------------


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, tau: float) -> Tensor:
    """Answer question 2, for the question after it: Eq. 1 of logits (B, K)."""
    return kd.kl_divergence(student_logits, teacher_logits, tau)


def training_step(
    teacher: nn.Module, student: nn.Module, optimiser: Any, x: Tensor, tau: float
) -> float:
    """Answer question 3, for the question after it: one step, and its loss."""
    teacher.eval()
    student.train()
    with torch.no_grad():
        wanted = teacher(x)
    loss = kd_loss(student(x), wanted, tau)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()


# --- What the checks compare with --------------------------------------------------------------


def two_logits(images: int, classes: int, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, ...]:
    """Draw a student's and a teacher's logits, each (images, classes)."""
    return (scale * drawn(2, images, classes, seed=seed)).unbind()


def _network(channels: int, classes: int, seed: int, sureness: float = 5.0) -> nn.Module:
    """Make a small network whose batch-norms have statistics of their own, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in ((channels, 8), (8, 16)):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after)]
            layers.append(nn.ReLU())
        head = nn.Linear(16, classes)
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        with torch.no_grad():
            head.weight.mul_(sureness)
            for layer in batch_norms(network).values():
                mean, variance = layer.running_mean, layer.running_var
                assert mean is not None and variance is not None
                nn.init.normal_(mean, 0.0, 0.3)
                nn.init.uniform_(variance, 0.2, 0.8)
    return network.train()


def _spec(channels: int, classes: int, size: int = 8) -> NetworkSpec:
    middle = [0.2 + 0.6 * c / max(channels - 1, 1) for c in range(channels)]
    spread = [0.3 - 0.2 * c / max(channels - 1, 1) for c in range(channels)]
    return NetworkSpec("of a check", classes, channels, size, tuple(middle), tuple(spread))


# --- Questions ---------------------------------------------------------------------------------


@Question
def q1(soften: Callable[[Tensor, float], Tensor]) -> None:
    """Check a softmax over the classes, at a temperature."""
    compare_soften(soften, 3 * drawn(4, 6), tau=4.0)


def compare_soften(answer: Callable[[Tensor, float], Tensor], logits: Tensor, tau: float) -> None:
    """Compare the probabilities of logits (B, K), and name what slips give."""
    expect(
        answer(logits.clone(), tau),
        F.softmax(logits / tau, dim=1),
        f"the softened answers for logits of the shape {tuple(logits.shape)} and τ = {tau:g}",
        {
            "a softmax over the images of the batch": F.softmax(logits / tau, dim=0),
            "a softmax over images and classes together": (logits / tau)
            .flatten()
            .softmax(0)
            .view_as(logits),
            "the logits multiplied by τ": F.softmax(logits * tau, dim=1),
            "no temperature": F.softmax(logits, dim=1),
            "the probabilities divided by τ, in place of the logits": F.softmax(logits, dim=1)
            / tau,
            "the logarithms of the probabilities": F.log_softmax(logits / tau, dim=1),
        },
    )


@Question
def q2(loss: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """Check Eq. 1 as a KL divergence, and its gradient."""
    student, teacher = two_logits(5, 10)
    compare_loss(loss, student, teacher, tau=4.0)
    s = student.clone().requires_grad_()
    value = loss(s, teacher, 4.0)
    if not (isinstance(value, Tensor) and value.requires_grad):
        raise Wrong(
            "the loss: no gradient leads back to the student's logits. Return a tensor, without "
            "`item()`, `detach()` or `no_grad` on the way."
        )
    (found,) = torch.autograd.grad(value, s)
    difference = F.softmax(student / 4.0, dim=1) - F.softmax(teacher / 4.0, dim=1)
    expect(found, 4.0 * difference / len(s), "the gradient for the student's logits", rtol=1e-3)


def compare_loss(
    answer: Callable[[Tensor, Tensor, float], Tensor], student: Tensor, teacher: Tensor, tau: float
) -> None:
    """Compare the loss of logits (B, K) of both networks; tau is other than 1."""
    wanted = kd.kl_divergence(student, teacher, tau)
    images, classes = student.shape
    at_one = kd.kl_divergence(student, teacher, 1.0)
    crossed = F.cross_entropy(student / tau, F.softmax(teacher / tau, dim=1))
    expect(
        answer(student.clone(), teacher.clone(), tau),
        wanted,
        f"the loss for logits of the shape {tuple(student.shape)} and τ = {tau:g}",
        {
            "the factor τ² left out": wanted / tau**2,
            "a factor τ in place of τ²": wanted / tau,
            "a mean over images and classes: the classes are summed": wanted / classes,
            "the factor τ² left out and a mean over the classes": wanted / tau**2 / classes,
            "a sum over the images in place of a mean": wanted * images,
            "the divergence the wrong way round, weighted by the student's probabilities": (
                kd.kl_divergence(teacher, student, tau)
            ),
            "no temperature in the softmax": at_one * tau**2,
            "no temperature at all": at_one,
            "a cross-entropy: the teacher's own ln p is missing": tau**2 * crossed,
            "a minus sign": -wanted,
            "one number an image, and no mean": kd.kl_divergence(
                student, teacher, tau, reduce=False
            ),
        },
        rtol=1e-3,
        atol=1e-5,
    )


Step = Callable[[nn.Module, nn.Module, Any, Tensor, float], float]


@Question
def q3(step: Step) -> None:
    """Check one step: the teacher stays, the student learns."""
    check_teacher(step, channels=1, classes=5, tau=4.0)
    compare_steps(step, channels=1, classes=5, tau=4.0, steps=2, momentum=0.0)


def _sgd(network: nn.Module, momentum: float = 0.0) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), lr=0.05, momentum=momentum)


def _weights(network: nn.Module) -> Tensor:
    return parameters_to_vector(network.parameters()).detach().clone()


def _statistics(network: nn.Module) -> Tensor:
    """Return the means that a network's batch-norms have stored, in a row."""
    means = (layer.running_mean for layer in batch_norms(network).values())
    return torch.cat([mean for mean in means if mean is not None]).clone()


def check_teacher(step: Step, channels: int, classes: int, tau: float) -> None:
    """Check that a step does not change a teacher that arrives in training mode, unfrozen."""
    teacher, student = _network(channels, classes, seed=0), _network(channels, classes, seed=1)
    before, start = copy.deepcopy(teacher.state_dict()), _weights(student)
    value = step(teacher, student, _sgd(student), drawn(12, channels, 8, 8, seed=2), tau)
    after = teacher.state_dict()
    moved = [name for name, value in before.items() if not torch.equal(value, after[name])]
    require(
        not any("running" in name for name in moved),
        "the teacher's batch-norm statistics have moved. It arrived in training mode, and has to "
        "be put into evaluation mode.",
    )
    require(not moved, f"the teacher has changed: {', '.join(moved)}.")
    require(
        all(parameter.grad is None for parameter in teacher.parameters()),
        "the teacher's weights have got gradients: ask it inside `torch.no_grad()`, or detach "
        "its answers.",
    )
    require(
        all(parameter.requires_grad for parameter in teacher.parameters()),
        "the teacher's weights have been frozen for good: it has to come out as it went in.",
    )
    require(
        not torch.equal(start, _weights(student)),
        "the student's weights have not moved: is there a `backward()` and a step of the "
        "optimiser?",
    )
    require(isinstance(value, float), "the loss has to come back as a number: `.item()`.")


def compare_steps(
    step: Step, channels: int, classes: int, tau: float, steps: int, momentum: float
) -> None:
    """Compare weights and loss after each step; the student arrives in evaluation mode."""
    teacher, fresh = _network(channels, classes, seed=3), _network(channels, classes, seed=4).eval()
    wrong = "gradients added to those of the step before: they have to be set to zero first"
    students = {name: copy.deepcopy(fresh) for name in ("student's", "right", wrong)}
    optimisers = {name: _sgd(network, momentum) for name, network in students.items()}
    optimisers[wrong].zero_grad = lambda set_to_none=True: None  # type: ignore[method-assign]
    mine = students["student's"]
    for number in range(1, steps + 1):
        x = drawn(12, channels, 8, 8, seed=10 + number)
        seen, old = _statistics(mine), _weights(mine)
        losses = {
            name: (step if name == "student's" else training_step)(
                copy.deepcopy(teacher), students[name], optimisers[name], x, tau
            )
            for name in students
        }
        require(
            not torch.equal(seen, _statistics(mine)),
            "the student's batch-norm statistics have not moved: while it learns, it has to be in "
            "training mode.",
        )
        weights = {name: _weights(network) for name, network in students.items()}
        expect(
            weights["student's"],
            weights["right"],
            f"the student's weights after step {number}",
            {wrong: weights[wrong], "no step of the optimiser": old},
            rtol=2e-4,
            atol=1e-5,
        )
        what = f"what step {number} returns"
        expect(losses["student's"], losses["right"], what, rtol=1e-3, atol=1e-5)


Draw = Callable[[], Tensor]


@Question
def q4(train_student: Callable[..., nn.Module]) -> None:
    """Check that each step takes a new, normalised batch, and that the student has learnt."""
    check_batches(train_student, steps=3, channels=1)
    check_accuracy(train_student, seed=0)


def check_batches(answer: Callable[..., nn.Module], steps: int, channels: int) -> None:
    """Check what the teacher is asked, in a few steps on images that are noted."""
    spec = _spec(channels, classes=4)
    teacher, student = _network(channels, 4, seed=5), _network(channels, 4, seed=6)
    rng, drawn, asked = torch.Generator().manual_seed(0), list[Tensor](), list[Tensor]()
    teacher.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0].detach().clone()))

    def draw() -> Tensor:
        drawn.append(torch.rand(8, *spec.image_shape, generator=rng))
        return drawn[-1].clone()

    trained = answer(teacher, student, spec, draw, steps, 4.0)
    require(isinstance(trained, nn.Module), "`train_student` has to return the trained student.")
    require(trained is not teacher, "this is the teacher: return the student.")
    require(
        len(drawn) == steps,
        f"`draw()` was called {len(drawn)} times for {steps} steps: each step takes a new batch.",
    )
    require(
        len(asked) == steps,
        f"the teacher was asked {len(asked)} times in {steps} steps: once a step is wanted.",
    )
    plain = torch.cat(drawn)
    once = normalise(plain, spec)
    expect(
        torch.cat(asked),
        once,
        "the images that the teacher gets",
        {
            "images in [0, 1], which were not normalised": plain,
            "images that were normalised twice": normalise(once, spec),
        },
    )
    require(not trained.training, "the student has to come back in evaluation mode.")
    _require_temperature(answer)


def _require_temperature(answer: Callable[..., nn.Module]) -> None:
    """Require that another temperature, with all else alike, gives other weights."""
    spec, ends = _spec(1, classes=4), []
    for tau in (1.0, 20.0):
        rng = torch.Generator().manual_seed(0)
        draw = functools.partial(torch.rand, 8, *spec.image_shape, generator=rng)
        trained = answer(_network(1, 4, seed=5), _network(1, 4, seed=6), spec, draw, 3, tau)
        ends.append(_weights(trained))
    require(not torch.equal(*ends), "`tau` makes no difference: hand it on to the step.")


def small_student(channels: int, classes: int) -> nn.Module:
    """Make three convolutions, each with a batch-norm and a ReLU, and a linear layer."""
    layers: list[nn.Module] = []
    for before, after, stride in ((channels, 16, 2), (16, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)]
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(after, classes))


def check_accuracy(answer: Callable[..., nn.Module], seed: int) -> None:
    """Check a small network on the digits' test images, after 100 steps on the digits."""
    data = load("digits")
    teacher, spec = trained_teacher(data, preset("lite"), 0)
    rng = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        chosen = torch.randint(len(data.train), (32,), generator=rng)
        return data.train.take(chosen).float() / 255

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = small_student(spec.channels, spec.classes)
        trained = answer(teacher, student, spec, draw, 100, 20.0)
    right = accuracy(*predict(trained, data.test, spec))
    require(
        right >= ENOUGH,
        f"after 100 steps the student is right on {right:.0%} of the test images; at least "
        f"{ENOUGH:.0%} are wanted. Are the optimiser's weights the student's, and is its learning "
        "rate neither too small nor too large (for Adam about 0.01)?",
    )


@Question
def q5(noise_images: Callable[..., Tensor]) -> None:
    """Check independent normal pixels with the data's mean and deviation, clipped."""
    compare_noise(noise_images, _spec(1, 10, size=16), seed=0)
    compare_noise(noise_images, _spec(3, 10, size=9), seed=1)


def clipped_normal(mean: float, std: float) -> tuple[float, float]:
    """Return mean and standard deviation of a normal number that is clipped to [0, 1]."""
    shares = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    x = (mean + std * torch.special.ndtri(shares)).clamp(0, 1)  # values at even quantiles
    return x.mean().item(), x.std(correction=0).item()


def compare_noise(answer: Callable[..., Tensor], spec: NetworkSpec, seed: int) -> None:
    """Check shape, range, each channel's mean and deviation, independence, and use of ``rng``."""
    count = 100_000 // spec.size**2
    rng = torch.Generator().manual_seed(seed)
    images = answer(count, spec, rng)
    what = f"noise for {spec.channels} channel{'s' if spec.channels > 1 else ''}"
    if not isinstance(images, Tensor):
        raise Wrong(f"{what}: a tensor was expected, not {type(images).__name__}.")
    shape = (count, *spec.image_shape)
    require(images.shape == shape, f"{what}: the shape should be {shape}, not {(*images.shape,)}.")
    x = images.detach().double()
    inside = bool(((x >= 0) & (x <= 1)).all())
    require(inside, f"{what}: some pixels are outside [0, 1], or no numbers.")

    channels = list(zip(spec.mean, spec.std, strict=True))
    found = torch.stack([x.mean((0, 2, 3)), x.std((0, 2, 3), correction=0)])
    alike = torch.ones(spec.channels)
    expect(
        found,
        _moments([clipped_normal(m, s) for m, s in channels]),
        f"{what}: mean (first row) and standard deviation of the pixels of each channel",
        {
            "a uniform distribution": torch.stack([alike * 0.5, alike / 12**0.5]),
            "the first channel's mean and deviation in all channels": _moments(
                [clipped_normal(*channels[0])] * spec.channels
            ),
            "mean 0 and deviation 1, as normalised images have them": _moments(
                [clipped_normal(0.0, 1.0)] * spec.channels
            ),
            "the square of the deviation": _moments([clipped_normal(m, s**2) for m, s in channels]),
            "the mean left out": _moments([clipped_normal(0.0, s) for _, s in channels]),
        },
        rtol=0,
        atol=0.015,
    )
    standard = (x - found[0].view(-1, 1, 1)) / found[1].view(-1, 1, 1)
    axes = [(0, "of neighbouring images"), (2, "one above the other"), (3, "in a row")]
    if spec.channels > 1:
        axes.append((1, "of neighbouring channels"))
    for axis, name in axes:
        size = standard.shape[axis] - 1
        product = standard.narrow(axis, 0, size) * standard.narrow(axis, 1, size)
        require(product.mean().abs().item() < 0.05, f"{what}: pixels {name} depend on each other.")
    again = answer(count, spec, torch.Generator().manual_seed(seed))
    require(torch.equal(images, again), f"{what}: `rng` is not what the pixels are drawn with.")
    require(
        not torch.equal(images, answer(count, spec, rng)),
        f"{what}: two calls gave the same images. Is `rng` seeded anew inside?",
    )


def _moments(pairs: list[tuple[float, float]]) -> Tensor:
    return torch.tensor(pairs).T


@Question
def q6(answer: Callable[..., float]) -> None:
    """Check exp(entropy) of the mean answer."""
    compare_effective(answer, channels=1, classes=10, sureness=30.0, seed=0)


def compare_effective(
    answer: Callable[..., float], channels: int, classes: int, sureness: float, seed: int
) -> None:
    """Compare the number on uniform noise; the network arrives in training mode."""
    spec = _spec(channels, classes)
    network = _network(channels, classes, seed, sureness)
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(200, *spec.image_shape, generator=rng)
    x = normalise(images, spec)
    with torch.no_grad():
        training = effective_classes(copy.deepcopy(network)(x))
        got = answer(copy.deepcopy(network), spec, images.clone())
        logits, plain = network.eval()(x), network(images)
    wanted = effective_classes(logits)
    each = torch.special.entr(logits.softmax(1)).sum(1)
    named = logits.argmax(1).bincount(minlength=classes) / len(logits)
    expect(
        got,
        wanted,
        "the number of effective classes",
        {
            "images that were not normalised": effective_classes(plain),
            "a teacher in training mode": training,
            "the entropy, and no exponential": torch.tensor(wanted).log(),
            "an entropy of each image by itself, and the mean of those": each.mean().exp(),
            "exp(entropy) of each image by itself, and the mean of those": each.exp().mean(),
            "a mean of the logits, before the softmax": effective_classes(logits.mean(0)[None]),
            "the count of classes that are named at all": int((named > 0).sum()),
            "the classes named, in place of the probabilities": torch.special.entr(named)
            .sum()
            .exp(),
            "a minus sign too few": 1 / wanted,
        },
        rtol=1e-3,
    )
