"""Measure a student on held-out images: is it right, is it sure, is it like its teacher?

The measures are functions of logits (N, K) and labels (N,), int64, so they fit the outputs of any
network. :func:`predict` makes the logits; :func:`evaluate` calls all measures.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import kd
from ..cam import upsample
from ..data.images import AnySplit, aligned
from ..devices import exact
from ..door import check_single, one_tensor
from ..errors import DivergedError, InputError, check_range
from ..networks import NetworkSpec, Statistics, evaluating, normalise


@torch.no_grad()
def predict(
    model: nn.Module,
    split: AnySplit,
    spec: Statistics,
    batch_size: int = 256,
) -> tuple[Tensor, Tensor]:
    """Run ``model`` over a split in evaluation mode, and restore its mode.

    Args:
        model: normalised images (B, C, H, W) -> logits (B, K), on any device.
        split: the images and labels, in order.
        spec: the normalisation of images in [0, 1]: a ``NetworkSpec``, or the data set itself.
            Where it names the classes and the split does too, labels follow the order of ``spec``.
        batch_size: images at a time; it changes the memory needed and nothing else.

    Returns:
        Logits (N, K) and labels (N,), both on the CPU.

    Raises:
        InputError: the classes are called otherwise, the split is empty, an output is not (B, K),
            a label is not one of the K classes, a logit is NaN or infinite (``DivergedError``), or
            ``batch_size`` is below 1.
    """
    logits, labels = [], []
    split = aligned(split, getattr(spec, "class_names", ()))
    check_single("The network", model)
    with evaluating(model):
        for images, wanted in split.batches(batch_size, device=_device(model)):
            logits.append(one_tensor(model(normalise(images, spec))).cpu())
            labels.append(wanted.cpu())
    if not logits:
        raise InputError("There are no images to evaluate on: the split is empty.")
    all_logits, all_labels = torch.cat(logits), torch.cat(labels)
    _check(all_logits, all_labels)
    return all_logits, all_labels


def evaluate(
    model: nn.Module,
    split: AnySplit,
    spec: NetworkSpec,
    teacher: nn.Module | None = None,
    batch_size: int = 256,
) -> dict[str, Any]:
    """Return every measure of ``model`` on ``split``, as plain numbers that JSON can hold.

    Args:
        model: the network, on any device.
        split: held-out images and labels.
        spec: the mean and standard deviation that both networks expect, and the classes.
        teacher: if given, the three measures of likeness to it are added.
        batch_size: images at a time.

    Returns:
        ``accuracy``, ``macro_f1``, ``auc`` (None where it does not apply), ``ece``, ``confusion``
        (K lists of K counts), ``reliability`` (three lists over 15 bins of confidence: the number
        of images, their summed confidence, the number that is right). With a teacher also
        ``agreement``, ``kl_to_teacher`` (temperature 1, nats) and ``mse_to_teacher`` (logits).

    Raises:
        InputError: as in :func:`predict`, or the number of outputs is not the spec's or teacher's.
    """
    logits, labels = predict(model, split, spec, batch_size)
    if logits.shape[1] != spec.classes:
        raise InputError(
            f"The network has {logits.shape[1]} outputs and the data {spec.classes} classes: "
            "build it with that number of classes."
        )
    report: dict[str, Any] = {
        "accuracy": accuracy(logits, labels),
        "macro_f1": macro_f1(logits, labels),
        "auc": auc(logits, labels),
        "ece": expected_calibration_error(logits, labels),
        "confusion": confusion_matrix(logits, labels).tolist(),
        "reliability": [sums.tolist() for sums in reliability(logits, labels)],
    }
    if teacher is not None:
        wanted, _ = predict(teacher, split, spec, batch_size)
        report["agreement"] = agreement(logits, wanted)
        report["kl_to_teacher"] = kd.kl_divergence(logits, wanted, temperature=1.0).item()
        report["mse_to_teacher"] = kd.mse_logits(logits, wanted).item()
    return report


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the fraction of images whose largest logit is the label's: top-1, Eq. 23 (0 to 1)."""
    _check(logits, labels)
    return exact(logits.argmax(dim=1) == labels).mean().item()


def macro_f1(logits: Tensor, labels: Tensor) -> float:
    """Return the F1 score of each class, averaged with equal weight, in [0, 1].

    A class that no image has and that is never predicted does not count.
    """
    from sklearn import metrics  # imported late: it takes two seconds

    _check(logits, labels)
    predicted = logits.argmax(dim=1).numpy(force=True)
    return float(metrics.f1_score(labels.numpy(force=True), predicted, average="macro"))


def auc(logits: Tensor, labels: Tensor) -> float | None:
    """Return the area under the ROC curve, in [0, 1]: each class against the rest, averaged.

    With two classes it is the usual area for class 1. It is None if a class has no image, because
    such a class has no curve.
    """
    from sklearn import metrics  # imported late: it takes two seconds

    _check(logits, labels)
    classes = logits.shape[1]
    if labels.unique().numel() < classes or classes < 2:
        return None
    # in double precision: otherwise a confident network's probabilities would be tied at 1
    scores = exact(logits).softmax(dim=1).numpy()
    wanted = labels.numpy(force=True)
    each = [metrics.roc_auc_score(wanted == k, scores[:, k]) for k in range(classes)]
    return float(sum(each) / classes)


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the distance between confidence and accuracy: the ECE of Guo et al. (2017), in [0, 1].

    Images are sorted by their largest probability into ``bins`` bins of equal width. The gaps
    between mean confidence and accuracy are averaged, weighted by the bins' shares of the images.

    Raises:
        InputError: as in :func:`accuracy`, or ``bins`` is below 1.
    """
    _, confident, right = reliability(logits, labels, bins)
    return ((right - confident).abs().sum() / len(labels)).item()


def reliability(logits: Tensor, labels: Tensor, bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three sums of a reliability diagram, each (bins,) on the CPU.

    They are the number of images, the sum of their largest probabilities, and the number that is
    right, in the bins (0, 1/bins], (1/bins, 2/bins], ... of the largest probability.

    Raises:
        InputError: as in :func:`expected_calibration_error`.
    """
    _check(logits, labels)
    check_range("bins", bins, low=1)
    confidence, predicted = exact(logits).softmax(dim=1).max(dim=1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1

    def summed(values: Tensor) -> Tensor:
        return torch.zeros(bins, dtype=torch.float64).index_add_(0, place, values.double())

    right = predicted == labels.cpu()
    return summed(torch.ones_like(confidence)), summed(confidence), summed(right)


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Return counts (K, K), int64: a row for each label, a column for each prediction."""
    from sklearn import metrics  # imported late: it takes two seconds

    _check(logits, labels)
    predicted = logits.argmax(dim=1).numpy(force=True)
    classes = range(logits.shape[1])
    counts = metrics.confusion_matrix(labels.numpy(force=True), predicted, labels=classes)
    return torch.as_tensor(counts)


def agreement(logits: Tensor, other_logits: Tensor) -> float:
    """Return the fraction of images (0 to 1) that two networks classify alike, right or wrong.

    Raises:
        InputError: the shapes differ.
    """
    if logits.shape != other_logits.shape:
        raise InputError(
            f"Logits of shapes {tuple(logits.shape)} and {tuple(other_logits.shape)} cannot be "
            "compared: give both networks the same images and the same number of classes."
        )
    return accuracy(logits, other_logits.argmax(dim=1))


def cam_consistency(student_maps: Tensor, teacher_maps: Tensor) -> float:
    """Return the Pearson correlation of two networks' class activation maps, averaged over images.

    The correlation ignores scale and offset, which may differ between networks. The student's maps
    are resized bilinearly to the teacher's. A constant map shows no place; its image counts 0.

    Args:
        student_maps: (B, h, w) floats.
        teacher_maps: (B, H, W) floats, with more than one position.

    Returns:
        A number in [-1, 1]; 1 if both networks look at the same places.

    Raises:
        InputError: the shapes are others, or a value is NaN or infinite.
    """
    shapes = student_maps.ndim == teacher_maps.ndim == 3 and len(student_maps) == len(teacher_maps)
    if not shapes or len(teacher_maps) == 0 or teacher_maps[0].numel() < 2:
        raise InputError(
            f"Maps of shapes {tuple(student_maps.shape)} and {tuple(teacher_maps.shape)} cannot be "
            "compared: give (images, height, width) for the same images, larger than 1x1."
        )
    if not (student_maps.isfinite().all() and teacher_maps.isfinite().all()):
        raise InputError("The maps hold NaN or infinite values: check the networks' weights.")
    student, teacher = exact(student_maps), exact(teacher_maps)
    student = upsample(student, (teacher.shape[1], teacher.shape[2]))
    product = _standardise(student.flatten(1)) * _standardise(teacher.flatten(1))
    return product.sum(dim=1).mean().item()


def _standardise(maps: Tensor) -> Tensor:
    """Give rows mean 0 and norm 1; rows that are constant up to rounding become 0."""
    centred = maps - maps.mean(dim=1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    constant = norm <= 1e-6 * maps.norm(dim=1, keepdim=True)
    return torch.where(constant, 0.0, centred / norm)


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or logits.numel() == 0:
        raise InputError(
            f"Logits (images, classes) and one label per image are needed, not shapes "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    if not logits.isfinite().all():
        raise DivergedError(
            "The network puts out NaN or infinite numbers: its training has diverged or its "
            "weights are damaged; lower the learning rate or load other weights."
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise InputError(
            f"The labels run from {labels.min()} to {labels.max()}, but the network knows classes "
            f"0 to {logits.shape[1] - 1}: build it with the data's number of classes."
        )


def _device(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device
