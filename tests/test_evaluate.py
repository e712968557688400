"""The measures against torchmetrics, scikit-learn, NumPy and numbers worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, rel_entr, softmax
from sklearn.calibration import calibration_curve
from torch import Tensor, nn
from torchmetrics.functional.classification import (
    multiclass_auroc,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
)

from dfkd_lite.data import Split
from dfkd_lite.errors import InputError
from dfkd_lite.measure.evaluate import (
    accuracy,
    agreement,
    auc,
    cam_consistency,
    confusion_matrix,
    evaluate,
    expected_calibration_error,
    macro_f1,
    predict,
    reliability,
)
from dfkd_lite.networks import NetworkSpec, build


def outputs(images: int = 400, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that know the labels a little, in double precision so that the references agree."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    noise = torch.randn(images, classes, generator=generator, dtype=torch.float64)
    return 1.5 * F.one_hot(labels, classes) + 1.5 * noise, labels


CASES = [(400, 2, 1), (400, 5, 2), (1000, 10, 3)]


@pytest.mark.parametrize("case", CASES)
def test_measures_against_torchmetrics(case: tuple[int, int, int]) -> None:
    logits, labels = outputs(*case)
    classes = case[1]
    assert accuracy(logits, labels) == np.mean(logits.numpy().argmax(1) == labels.numpy())
    f1 = multiclass_f1_score(logits, labels, classes, average="macro")
    assert macro_f1(logits, labels) == pytest.approx(f1.item(), rel=1e-6)
    area = multiclass_auroc(logits.softmax(1), labels, classes, average="macro")
    assert auc(logits, labels) == pytest.approx(area.item(), rel=1e-6)
    ece = multiclass_calibration_error(logits.softmax(1), labels, classes, n_bins=15, norm="l1")
    assert expected_calibration_error(logits, labels) == pytest.approx(ece.item(), rel=1e-5)
    ours = confusion_matrix(logits, labels)
    assert torch.equal(ours, multiclass_confusion_matrix(logits, labels, classes))


def test_ece_against_scikit_learns_reliability_curve() -> None:
    logits, labels = outputs(2000, 4, 4)
    confidence, predicted = logits.softmax(1).max(1)
    right = (predicted == labels).numpy()
    rate, mean = calibration_curve(right, confidence.numpy(), n_bins=10)
    edges = np.linspace(0, 1, 11)
    counts = np.histogram(confidence.numpy(), bins=edges)[0]
    expected = (counts[counts > 0] / 2000 * np.abs(rate - mean)).sum()
    assert expected_calibration_error(logits, labels, bins=10) == pytest.approx(expected)


def test_ece_by_hand() -> None:
    # Confidences 0.6 (right), 0.65 (wrong), 0.9 (right) and 1.0 (wrong), in bins of a tenth:
    # (0.5, 0.6], (0.6, 0.7], (0.8, 0.9] and (0.9, 1.0].
    p = torch.tensor([[0.6, 0.4], [0.35, 0.65], [0.1, 0.9], [1.0, 0.0]], dtype=torch.float64)
    logits = p.clamp_min(1e-300).log()
    labels = torch.tensor([0, 0, 1, 1])
    expected = (0.4 + 0.65 + 0.1 + 1.0) / 4
    assert expected_calibration_error(logits, labels, bins=10) == pytest.approx(expected)
    # One bin: the mean confidence against the accuracy.
    one = abs((0.6 + 0.65 + 0.9 + 1.0) / 4 - 0.5)
    assert expected_calibration_error(logits, labels, bins=1) == pytest.approx(one)


def test_f1_counts_only_classes_that_appear() -> None:
    logits = torch.eye(4)[[0, 0, 1, 1]]  # predictions 0, 0, 1, 1 of four classes
    # Class 0: precision 1/2, recall 1; class 1: precision 1, recall 2/3; classes 2, 3: absent.
    f1 = macro_f1(logits, torch.tensor([0, 1, 1, 1]))
    assert f1 == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_auc_where_a_class_is_absent_does_not_apply() -> None:
    logits, labels = outputs(50, 3, 5)
    assert auc(logits, labels.clamp(max=1)) is None
    assert auc(logits, labels) is not None


def test_auc_of_a_very_confident_network_is_not_lost_to_ties() -> None:
    # Single precision rounds all these probabilities to 1 or 0; the ranking is perfect but for one.
    margin = torch.tensor([20.0, 22.0, 24.0, 26.0])
    logits = torch.stack([torch.zeros(4), margin], dim=1)
    assert auc(logits, torch.tensor([0, 1, 0, 1])) == pytest.approx(3 / 4)


def test_confusion_rows_are_labels_and_all_classes_are_there() -> None:
    logits = torch.eye(3)[[1, 1, 0]]
    expected = [[0, 2, 0], [1, 0, 0], [0, 0, 0]]
    assert confusion_matrix(logits, torch.tensor([0, 0, 1])).tolist() == expected


def test_agreement_counts_equal_choices() -> None:
    a, b = torch.eye(3)[[0, 1, 2, 2]], 5 * torch.eye(3)[[0, 1, 2, 0]]
    assert agreement(a, b) == 0.75
    with pytest.raises(InputError, match="cannot be compared"):
        agreement(a, b[:, :2])


# CAM consistency


def maps(images: int, height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(images, height, width, generator=generator, dtype=torch.float64)


def test_cam_consistency_is_numpys_correlation() -> None:
    student, teacher = maps(6, 5, 7, 1), maps(6, 5, 7, 2)
    each = [np.corrcoef(s.ravel(), t.ravel())[0, 1] for s, t in zip(student, teacher, strict=True)]
    assert cam_consistency(student, teacher) == pytest.approx(np.mean(each))


def test_cam_consistency_resizes_the_student() -> None:
    student, teacher = maps(4, 4, 4, 3), maps(4, 8, 8, 4)
    resized = F.interpolate(student[:, None], (8, 8), mode="bilinear", align_corners=False)[:, 0]
    each = [np.corrcoef(s.ravel(), t.ravel())[0, 1] for s, t in zip(resized, teacher, strict=True)]
    assert cam_consistency(student, teacher) == pytest.approx(np.mean(each))


def test_cam_consistency_ignores_scale_and_offset_and_knows_opposites() -> None:
    teacher = maps(3, 4, 4, 5)
    assert cam_consistency(7 * teacher + 3, teacher) == pytest.approx(1)
    assert cam_consistency(-teacher, teacher) == pytest.approx(-1)


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_constant_map_counts_as_0(value: float) -> None:
    teacher = maps(2, 4, 4, 6).float()
    student = teacher.clone()
    student[1] = value
    assert cam_consistency(student, teacher) == pytest.approx(0.5)
    # Resized, a constant map is constant but for rounding.
    blank = torch.full((2, 3, 3), value, dtype=torch.float64)
    assert cam_consistency(blank, maps(2, 7, 7, 7)) == 0


def test_maps_that_cannot_be_compared_are_refused() -> None:
    for student, teacher in [
        (maps(2, 4, 4, 0), maps(3, 4, 4, 0)),
        (maps(2, 4, 4, 0)[0], maps(2, 4, 4, 0)),
        (maps(2, 4, 4, 0), maps(2, 1, 1, 0)),
        (maps(0, 4, 4, 0), maps(0, 4, 4, 0)),
    ]:
        with pytest.raises(InputError, match="larger than 1x1"):
            cam_consistency(student, teacher)
    with pytest.raises(InputError, match="NaN"):
        cam_consistency(maps(2, 4, 4, 0) / 0, maps(2, 4, 4, 0))


# Whole networks


class Linear(nn.Module):
    """Logits by one matrix, with a dropout and a batch-norm that would show a wrong mode."""

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.norm: Any = nn.BatchNorm2d(2)
        self.drop = nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.randn(classes, 2 * 4 * 4, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(x)).flatten(1) @ self.weight.T


MEAN, STD = (0.2, 0.6), (0.5, 0.25)
SPEC = NetworkSpec("mine", 3, 2, 4, MEAN, STD)


def split(images: int = 23, classes: int = 3) -> Split:
    generator = torch.Generator().manual_seed(9)
    pixels = torch.randint(256, (images, 2, 4, 4), generator=generator, dtype=torch.uint8)
    return Split(pixels, torch.randint(classes, (images,), generator=generator))


def by_hand(model: Linear, data: Split) -> np.ndarray:
    x = data.images.numpy() / 255.0
    x = (x - np.reshape(MEAN, (1, 2, 1, 1))) / np.reshape(STD, (1, 2, 1, 1))
    x = x / np.sqrt(1 + model.norm.eps)  # batch-norm as it starts: mean 0, variance 1
    return x.reshape(len(x), -1) @ model.weight.detach().numpy().T


def test_predict_normalises_and_uses_every_image_once_in_order() -> None:
    model, data = Linear(3, 0), split()
    model.train()
    model.drop.eval()  # a mixed state, to be put back as it was
    logits, labels = predict(model, data, SPEC, batch_size=5)
    np.testing.assert_allclose(logits.numpy(), by_hand(model, data), rtol=1e-4, atol=1e-5)
    assert torch.equal(labels, data.labels)
    assert not logits.requires_grad
    assert (model.training, model.norm.training, model.drop.training) == (True, True, False)
    assert torch.equal(model.norm.running_mean, torch.zeros(2))


def test_the_mode_comes_back_when_the_network_fails() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(7, 3))
    with pytest.raises(RuntimeError):
        predict(model, split(), SPEC)
    assert model.training and model[1].training


def test_evaluate_gives_every_measure_of_both_networks() -> None:
    student, teacher, data = Linear(3, 1), Linear(3, 2), split(60)
    report = evaluate(student, data, SPEC, teacher, batch_size=16)
    s, t, labels = by_hand(student, data), by_hand(teacher, data), data.labels.numpy()
    assert report["accuracy"] == np.mean(s.argmax(1) == labels)
    assert report["agreement"] == np.mean(s.argmax(1) == t.argmax(1))
    kl = rel_entr(softmax(t, 1), softmax(s, 1)).sum(1).mean()
    assert report["kl_to_teacher"] == pytest.approx(kl, rel=1e-4)
    assert report["mse_to_teacher"] == pytest.approx(np.mean((s - t) ** 2), rel=1e-4)
    logits = torch.as_tensor(log_softmax(s, 1))
    assert report["macro_f1"] == pytest.approx(macro_f1(logits, data.labels))
    assert report["auc"] == pytest.approx(auc(logits, data.labels), abs=1e-3)
    ece = expected_calibration_error(logits, data.labels)
    assert report["ece"] == pytest.approx(ece, abs=1e-4)
    assert report["confusion"] == confusion_matrix(logits, data.labels).tolist()
    assert json.loads(json.dumps(report)) == report
    alone = evaluate(student, data, SPEC)
    assert alone == {name: report[name] for name in alone}
    assert not any("teacher" in name or name == "agreement" for name in alone)


def test_a_network_of_ours_is_evaluated_the_same_in_any_batch_size() -> None:
    torch.manual_seed(0)
    model = build("wrn-10-1", 3, channels=2, size=8)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (7, 2, 8, 8), generator=generator, dtype=torch.uint8)
    data = Split(pixels, torch.arange(7) % 3)
    one, _ = predict(model, data, SPEC, batch_size=1)
    all_at_once, _ = predict(model, data, SPEC)
    torch.testing.assert_close(one, all_at_once, rtol=1e-4, atol=1e-5)


# Bad input


class Fixed(nn.Module):
    def __init__(self, value: float, classes: int = 3) -> None:
        super().__init__()
        self.value, self.classes = value, classes

    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), self.classes), self.value)


def test_networks_and_data_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="NaN or infinite"):
        evaluate(Fixed(float("nan")), split(), SPEC)
    with pytest.raises(InputError, match="4 outputs and the data 3"):
        evaluate(Fixed(1.0, classes=4), split(), SPEC)
    with pytest.raises(InputError, match="classes 0 to 1"):
        evaluate(Fixed(1.0, classes=2), split(), SPEC)
    with pytest.raises(InputError, match="same number of classes"):
        evaluate(Fixed(1.0), split(), SPEC, teacher=Fixed(1.0, classes=4))
    with pytest.raises(InputError, match="empty"):
        predict(Fixed(1.0), split(0), SPEC)
    with pytest.raises(InputError, match="batch_size"):
        predict(Fixed(1.0), split(), SPEC, batch_size=0)


@pytest.mark.parametrize(
    "measure",
    [accuracy, macro_f1, auc, expected_calibration_error, confusion_matrix],
)
def test_logits_without_a_label_each_are_refused(measure) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="one label per image"):
        measure(torch.zeros(4, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InputError, match="labels run from -1"):
        measure(torch.zeros(2, 3), torch.tensor([-1, 0]))


def test_bins_below_1_are_refused() -> None:
    with pytest.raises(InputError, match="bins"):
        expected_calibration_error(*outputs(), bins=0)


def test_reliability_by_hand():
    # largest probabilities 0.55 (right), 0.55 (wrong), 0.9 (right), in bins of a fifth
    probabilities = torch.tensor([[0.55, 0.45], [0.45, 0.55], [0.1, 0.9]])
    counts, confident, right = reliability(probabilities.log(), torch.tensor([0, 0, 1]), bins=5)
    torch.testing.assert_close(counts, torch.tensor([0, 0, 2, 0, 1]).double())
    torch.testing.assert_close(
        confident, torch.tensor([0, 0, 1.1, 0, 0.9]).double(), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(right, torch.tensor([0, 0, 1, 0, 1]).double())
