"""What accuracy does not say of the students of ``table4-28px``, on PneumoniaMNIST's test images.

    python benchmarks/medical.py --data PATH/pneumoniamnist.npz --work runs

One record a run: the ROC curve, the reliability diagram, and how alike teacher and student look at
the real images. Reads the students that ``dfkd run`` left below --work.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_curve
from torch import nn
from tqdm import tqdm

from dfkd_lite.cam import explain
from dfkd_lite.checkpoint import load_network
from dfkd_lite.data import ImageData
from dfkd_lite.evaluate import accuracy, cam_consistency, evaluate, predict
from dfkd_lite.experiment import read_experiment
from dfkd_lite.networks import NetworkSpec, find_layers
from dfkd_lite.records import RECORDS, environment, write_record
from dfkd_lite.runner import Place, load_data, teach_run

EXPERIMENT = "table4-28px"
POINTS = 41  # of a ROC curve, evenly over the false positive rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="pneumoniamnist.npz")
    parser.add_argument("--work", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=RECORDS)
    options = parser.parse_args()
    place = Place(data={"pneumoniamnist": options.data}, work=options.work)
    for run in tqdm(read_experiment(EXPERIMENT)):
        weights = place.folder(run) / "student.safetensors"
        if not weights.exists() or (options.out / "medical" / f"{run.name}.json").exists():
            continue
        started = datetime.now(UTC).isoformat(timespec="seconds")
        data = load_data(run, place)
        teacher, spec, _ = teach_run(run, place, data)
        student, _ = load_network(weights)
        record = {
            "experiment": "medical",
            "name": run.name,
            "variant": run.variant,
            "seed": run.seed,
            "settings": {"of": EXPERIMENT, "points": POINTS},
            "environment": environment(),
            "started": started,
            "last": measure(teacher, student, data, replace(spec, network=run.student)),
        }
        write_record(record, options.out)


def measure(
    teacher: nn.Module, student: nn.Module, data: ImageData, spec: NetworkSpec
) -> dict[str, dict[str, Any]]:
    """ROC, reliability and the rest for both, and the likeness of their maps for the student."""
    report = {
        "teacher": evaluate(teacher, data.test, spec) | roc(teacher, data, spec),
        "student": evaluate(student, data.test, spec, teacher) | roc(student, data, spec),
    }
    report["student"]["cam_consistency"] = cam_consistency(
        last_maps(student, data, spec), last_maps(teacher, data, spec)
    )
    return report


def roc(model: nn.Module, data: ImageData, spec: NetworkSpec) -> dict[str, Any]:
    """True positive rate on a grid of false positive rates; and the accuracy of the best threshold,
    which is found on the test images and so is no result."""
    logits, labels = predict(model, data.test, spec.mean, spec.std)
    margin = (logits[:, 1] - logits[:, 0]).double()
    false, true, _ = roc_curve(labels, margin, drop_intermediate=False)
    grid = torch.linspace(0, 1, POINTS).double()
    at = torch.searchsorted(torch.tensor(false), grid, right=True) - 1
    thresholds = margin.unique()
    best = max(accuracy(logits - torch.tensor([0.0, float(t)]), labels) for t in thresholds[::4])
    return {"roc": torch.tensor(true)[at].tolist(), "best_threshold_accuracy": best}


def last_maps(model: nn.Module, data: ImageData, spec: NetworkSpec) -> torch.Tensor:
    """Maps of the last stage for the network's own prediction, of all test images."""
    layers = find_layers(model, spec.image_shape)
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    maps = [
        explain(model, (images - mean) / std, layers)[1][-1] for images, _ in data.test.batches(128)
    ]
    return torch.cat(maps)


if __name__ == "__main__":
    main()
