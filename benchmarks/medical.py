"""Measures what accuracy hides of ``table4-28px``'s students, on PneumoniaMNIST's test images.

    python benchmarks/medical.py --data PATH/pneumoniamnist.npz --work runs

It writes one record a run: the ROC curve, the reliability diagram, how alike the maps of teacher
and student are on real images, and the accuracy with a threshold set on synthetic images. It reads
the students and generators that ``dfkd run`` saved below --work, and passes over runs without one.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_curve
from torch import Tensor, nn
from tqdm import tqdm

from dfkd_lab.file import read_experiment
from dfkd_lab.records import RECORDS, environment, write_record
from dfkd_lab.runner import Place, load_data, teach_run
from dfkd_lite.cam import explain
from dfkd_lite.data import ImageData
from dfkd_lite.door import find_layers
from dfkd_lite.generator import AttentionGenerator
from dfkd_lite.measure.evaluate import accuracy, cam_consistency, evaluate, predict
from dfkd_lite.networks import NetworkSpec, normalise
from dfkd_lite.storage.weights import load_network, load_weights

EXPERIMENT = "table4-28px"
POINTS = 41  # of a ROC curve, evenly spaced in the false positive rate
SYNTHETIC = 1024  # images that the threshold is set on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="pneumoniamnist.npz")
    parser.add_argument("--work", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=RECORDS)
    options = parser.parse_args()
    place = Place({"pneumoniamnist": options.data}, RECORDS, options.work)
    for run in tqdm(read_experiment(EXPERIMENT)):
        weights = place.folder(run) / "student.safetensors"
        if not weights.exists() or (options.out / "medical" / f"{run.name}.json").exists():
            continue
        started = datetime.now(UTC).isoformat(timespec="seconds")
        data = load_data(run, place)
        teacher, spec, _ = teach_run(run, place, data)
        student, _ = load_network(weights)
        generator = AttentionGenerator(data.size, data.channels, run.method.generator)
        load_weights(weights.with_name("generator.safetensors"), generator)
        record = {
            "experiment": "medical",
            "name": run.name,
            "variant": run.variant,
            "seed": run.seed,
            "settings": {"of": EXPERIMENT, "points": POINTS},
            "environment": environment(),
            "started": started,
            "last": measure(
                teacher, student, generator.eval(), data, replace(spec, network=run.student)
            ),
        }
        write_record(record, options.out)


def measure(
    teacher: nn.Module, student: nn.Module, generator: nn.Module, data: ImageData, spec: NetworkSpec
) -> dict[str, dict[str, Any]]:
    """Return what `evaluate` and `curve` give of both networks; of the student also the threshold
    set on synthetic images, its accuracy with it, and the likeness of the maps."""
    report = {
        "teacher": evaluate(teacher, data.test, spec) | curve(teacher, data, spec),
        "student": evaluate(student, data.test, spec, teacher) | curve(student, data, spec),
    }
    logits, labels = predict(student, data.test, spec)
    threshold = matched_threshold(teacher, student, generator, spec)
    report["student"] |= {
        "matched_threshold": threshold,
        "matched_accuracy": at_threshold(logits, labels, threshold),
        "cam": consistency(teacher, student, data, spec),
    }
    return report


@torch.no_grad()
def matched_threshold(
    teacher: nn.Module, student: nn.Module, generator: nn.Module, spec: NetworkSpec
) -> float:
    """Return the lead in logits that the student must ask of class 1 to name it as often as the
    teacher does, on synthetic images; no real images are needed."""
    rng = torch.Generator().manual_seed(0)
    images = generator(torch.randn(SYNTHETIC, generator.config.z_dim, generator=rng))
    x = normalise(images, spec)
    share = (teacher(x).argmax(1) == 1).double().mean()
    return margins(student(x)).quantile(1 - share).item()


def margins(logits: Tensor) -> Tensor:
    return (logits[:, 1] - logits[:, 0]).double()


def at_threshold(logits: Tensor, labels: Tensor, threshold: float) -> float:
    return accuracy(logits - torch.tensor([0.0, threshold]), labels)


def curve(model: nn.Module, data: ImageData, spec: NetworkSpec) -> dict[str, Any]:
    """Return the true positive rates on a grid of false positive rates; the accuracy of the best
    threshold (no result, as test images choose it); and the threshold, with its accuracy, that
    follows from the classes' shares in the train and the test split alone."""
    logits, labels = predict(model, data.test, spec)
    margin = margins(logits)
    false, true, _ = roc_curve(labels, margin, drop_intermediate=False)
    grid = torch.linspace(0, 1, POINTS).double()
    at = torch.searchsorted(torch.tensor(false), grid, right=True) - 1
    prior = log_odds(data.train.labels) - log_odds(labels)
    return {
        "roc": torch.tensor(true)[at].tolist(),
        "best_threshold_accuracy": max(
            at_threshold(logits, labels, float(t)) for t in margin.unique()
        ),
        "prior_threshold": prior,
        "prior_accuracy": at_threshold(logits, labels, prior),
    }


def log_odds(labels: Tensor) -> float:
    """Return the log odds of class 1 against class 0 among labels."""
    share = (labels == 1).double().mean()
    return torch.logit(share).item()


def consistency(
    teacher: nn.Module, student: nn.Module, data: ImageData, spec: NetworkSpec
) -> dict[str, list[float]]:
    """Correlate the last stage's maps of student and teacher on test images, for each class that
    the teacher names (open point 7): of the same image ("same"), and, to compare, the teacher's of
    another image of that class ("other")."""
    found: dict[str, list[Tensor]] = {"teacher": [], "student": [], "named": []}
    for images, _ in data.test.batches(128):
        x = normalise(images, spec)
        named = teacher(x).argmax(1)
        found["named"].append(named)
        for name, model in (("teacher", teacher), ("student", student)):
            layers = find_layers(model, spec.image_shape)
            found[name].append(explain(model, x, layers, named)[1][-1])
    theirs, ours, named = (torch.cat(found[name]) for name in ("teacher", "student", "named"))
    likeness: dict[str, list[float]] = {"same": [], "other": []}
    for k in range(spec.classes):
        of_class = named == k
        likeness["same"].append(cam_consistency(ours[of_class], theirs[of_class]))
        likeness["other"].append(cam_consistency(ours[of_class], theirs[of_class].roll(1, 0)))
    return likeness


if __name__ == "__main__":
    main()
