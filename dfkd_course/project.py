"""Checks assignment 6: distil a teacher that you have never seen, with a fixed budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dfkd_lab.records import Gaps
from dfkd_lite.errors import InputError
from dfkd_lite.measure.evaluate import accuracy
from dfkd_lite.networks import NetworkSpec, count_parameters, evaluating, normalise
from dfkd_lite.storage.weights import load_network

from .checking import Question, Wrong, measured, require

IMAGES = 24_000  # the teacher may be sent so many in all, to make images and to learn from
PARAMETERS = 80_000  # the student may have so many at most; WRN-10-1 has fewer
TEACHER = "teacher.safetensors"

Distil = Callable[[nn.Module, NetworkSpec, int], nn.Module]


class Meter:
    """Counts the images that a network is sent, and refuses more than the budget.

    A copy of the network shares the meter.
    """

    def __init__(self, budget: int = IMAGES) -> None:
        self.budget, self.seen = budget, 0

    def __call__(self, network: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.seen += len(given[0])
        if self.seen > self.budget:
            raise InputError(
                f"The budget is spent: {self.budget} images have been sent through the teacher. "
                "Make fewer, or let the student take fewer steps."
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Meter:
        return self


def metered(path: str | Path = TEACHER) -> tuple[nn.Module, NetworkSpec, Meter]:
    """Load the teacher of the project, with a meter on it."""
    teacher, spec = load_network(path)
    meter = Meter()
    teacher.register_forward_pre_hook(meter)
    return teacher, spec, meter


#: Students by function and seed; None where the function was called and gave no valid student.
_students: dict[tuple[Distil, int], tuple[nn.Module, NetworkSpec] | None] = {}
WITHHELD = Path("withheld.npz")  # images (N, H, W, C), uint8, and labels; only a grader has it


def distilled(distil: Distil, seed: int) -> tuple[nn.Module, NetworkSpec]:
    """Return the student that a function distils within the budget, and its spec; made once.

    Raises:
        Wrong: the student is no network, is too large, or does not return logits by itself.
        InputError: the function has sent the teacher more images than the budget.
    """
    key = distil, seed
    if key not in _students:
        _students[key] = None
        teacher, spec, meter = metered()
        student = _without_the_answers(distil, teacher, spec, seed)
        meter.budget = meter.seen  # from now on the teacher refuses to answer
        require(isinstance(student, nn.Module), "`distil` has to return the student, a network.")
        size = count_parameters(student)
        require(
            size <= PARAMETERS,
            f"the student has {size:,} parameters; {PARAMETERS:,} are allowed.",
        )
        measured["images"] = meter.seen
        _require_answers(student, spec)
        _students[key] = student, spec
    made = _students[key]
    if made is None:
        raise Wrong("`distil` was called before, and did not return a student.")
    return made


def _require_answers(student: nn.Module, spec: NetworkSpec) -> None:
    """Refuse a student that asks the teacher, or returns no logits for a batch of images."""
    images = torch.zeros(2, spec.channels, spec.size, spec.size)
    try:
        with evaluating(student), torch.no_grad():
            logits = student(images)
    except InputError:
        raise Wrong("the student asks the teacher: it has to answer by itself.") from None
    require(
        isinstance(logits, Tensor) and logits.shape == (2, spec.classes),
        f"the student has to return {spec.classes} logits for each image.",
    )


def _without_the_answers(
    distil: Distil, teacher: nn.Module, spec: NetworkSpec, seed: int
) -> nn.Module:
    """Run a student's code while the withheld images are not on the disk."""
    answers = WITHHELD.read_bytes() if WITHHELD.exists() else None
    WITHHELD.unlink(missing_ok=True)
    try:
        return distil(teacher, spec, seed)
    finally:
        if answers is not None:
            WITHHELD.write_bytes(answers)


def withheld_accuracy(distil: Distil) -> float:
    """Measure the accuracy in [0, 1] of a function's student on the withheld images."""
    student, spec = distilled(distil, seed=1)
    with np.load(WITHHELD, allow_pickle=False) as archive:
        images, labels = archive["images"], archive["labels"]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with evaluating(student), torch.no_grad():
        logits = student(normalise(pixels, spec))
    right = accuracy(logits, torch.from_numpy(labels))
    measured["accuracy"] = right
    return right


@Question
def q1(distil: Distil) -> None:
    """Check that a student keeps to the budget: this takes as long as your method does."""
    _students.pop((distil, 0), None)  # distil anew: helpers of the function may have changed
    distilled(distil, seed=0)


@Question
def q2(answer: Callable[[list[float], list[float]], str]) -> None:
    """Check what is said of two variants that were run with the same seeds."""
    compare_verdict(answer, [90.0, 91.0, 92.0, 91.5, 90.5], [85.0, 86.5, 86.0, 86.0, 85.5])
    compare_verdict(answer, [90.0, 91.0, 92.0, 91.5, 90.5], [91.0, 89.0, 92.5, 90.0, 91.0])


def verdict(ours: list[float], others: list[float]) -> str:
    """Return ``better``, ``worse`` or ``open``: the answer to question 2."""
    gaps = Gaps(tuple(float(a - b) for a, b in zip(ours, others, strict=True)))
    return "open" if not gaps.clear else "better" if np.mean(gaps.values) > 0 else "worse"


def compare_verdict(
    answer: Callable[[list[float], list[float]], str], ours: list[float], others: list[float]
) -> None:
    """Compare an answer with the verdict by both intervals of the paired differences."""
    wanted = verdict(ours, others)
    got = answer(list(ours), list(others))
    if got != wanted:
        gaps = [round(a - b, 1) for a, b in zip(ours, others, strict=True)]
        raise Wrong(
            f"the differences {gaps} allow to say '{wanted}', "
            f"not {got!r}: a claim needs both intervals on one side of zero."
        )


@Question
def q3(ablation: dict[str, list[float]]) -> None:
    """Check an ablation: at least two variants, each with the same three or more seeds."""
    check_ablation(ablation)


def check_ablation(ablation: dict[str, list[float]]) -> None:
    """Check lists of accuracies in percent, by the name of the variant.

    Raises:
        Wrong: fewer than two variants or three seeds, lists of unequal length, no accuracies, or
            the same numbers for all seeds.
    """
    require(len(ablation) >= 2, "an ablation compares at least two variants.")
    lengths = {name: len(values) for name, values in ablation.items()}
    require(len(set(lengths.values())) == 1, f"every variant needs the same seeds: {lengths}.")
    require(min(lengths.values()) >= 3, "one or two seeds tell nothing: take three or more.")
    for name, values in ablation.items():
        inside = all(0 <= v <= 100 for v in values) and max(values) > 1
        require(inside, f"'{name}': accuracies in percent are expected, not {values}.")
        require(len(set(values)) > 1, f"'{name}': all seeds gave {values[0]}; is the seed used?")
