"""Tests whether MSARC keeps a student from a shortcut; writes one record a seed.

    python benchmarks/shortcut.py --seeds 0 1 2              # data/records/shortcut
    python benchmarks/shortcut.py --seeds 0 1 2 --controls   # data/records/shortcut-controls

The teacher never saw the shortcut. Students learn from its answers on a few real images, with a
white square that tells the class or without it, for several beta of Eq. 17. They are measured on
test images without a square, with one that tells the class, and with one that tells a wrong class.
The controls learn without maps: they test if a stronger loss on logits, or more steps, helps too.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfkd_lab.records import RECORDS, environment, write_record
from dfkd_lab.trained import trained_teacher
from dfkd_lite.data import ImageData, Split, load
from dfkd_lite.data.shortcut import lying_marks, plant_shortcut
from dfkd_lite.distill import Distillation, DistillConfig
from dfkd_lite.kd import kl_divergence, squared_distance
from dfkd_lite.measure.evaluate import accuracy, predict
from dfkd_lite.methods import Given, GivenConfig
from dfkd_lite.presets import preset
from dfkd_lite.settings import plain

IMAGES = 200
BETAS = (0.0, 0.01, 0.1, 0.3, 1.0)
CLEAN_BETAS = (0.0, 0.1)  # for images without a square: what MSARC does without a shortcut


#: Losses without maps, on images with the square: weights of the KL and of the squared distance of
#: the logits, and how many times the episodes.
CONTROLS = {
    "KL + 0.1 squared distance": (1.0, 0.1, 1),
    "squared distance": (0.0, 1.0, 1),
    "10 KL": (10.0, 0.0, 1),
    "KL, twice the episodes": (1.0, 0.0, 2),
}


class Control(Given):
    """Distils with a loss on the logits alone; ``weights`` are those of its two terms."""

    weights = (1.0, 0.0)

    def transfer_loss(self, student: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Return the loss on normalised images (B, C, H, W)."""
        with torch.no_grad():
            wanted = self.problem.teacher(images)
        logits = student(images)
        kl, distance = self.weights
        total = kl * kl_divergence(logits, wanted, self.config.temperature)
        total = total + distance * squared_distance(logits, wanted)
        return total, {"kd": total.detach()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--controls", action="store_true")
    parser.add_argument("--out", type=Path, default=RECORDS)
    options = parser.parse_args()
    for seed in options.seeds:
        record = run(load("digits"), seed, options.controls)
        print(write_record(record, options.out), flush=True)


def run(data: ImageData, seed: int, controls: bool = False) -> dict[str, Any]:
    where, started = environment(), datetime.now(UTC).isoformat(timespec="seconds")
    lite, rng = preset("lite"), torch.Generator().manual_seed(seed)
    teacher, spec = trained_teacher(data, lite, seed)
    index = torch.randperm(len(data.train), generator=rng)[:IMAGES]
    images, labels = data.train.take(index), data.train.labels[index]
    test, truth = data.test.images, data.test.labels
    exams = {
        "without": test,
        "telling": plant_shortcut(test, truth),
        "lying": plant_shortcut(test, lying_marks(truth, data.classes, rng)),
    }

    def examine(model: nn.Module) -> dict[str, float]:
        splits = {name: Split(pixels, truth) for name, pixels in exams.items()}
        return {n: accuracy(*predict(model, s, spec)) for n, s in splits.items()}

    config = replace(lite.distill, episodes=30, warm_up=0, shift=0, seed=seed, measure_every=30)
    planted = plant_shortcut(images, labels)
    last: dict[str, Any] = {"teacher": examine(teacher)}
    pools = {"planted": planted} if controls else {"planted": planted, "clean": images}
    for kind, pool in pools.items():
        for beta in BETAS if kind == "planted" else CLEAN_BETAS:
            student = taught(teacher, lite.student, spec, config, pool, beta)
            last[f"{kind}, beta {beta:g}"] = examine(student)
    for name, control in CONTROLS.items() if controls else ():
        student = taught(teacher, lite.student, spec, config, planted, 0.0, control)
        last[f"planted, {name}"] = examine(student)
    for name, scores in last.items():
        print(f"seed {seed}, {name}: {scores}", flush=True)
    return {
        "experiment": "shortcut-controls" if controls else "shortcut",
        "name": f"digits_seed{seed}",
        "seed": seed,
        "data": {"name": data.name, "size": data.size, "test_images": len(data.test)},
        "settings": {"images": IMAGES, "side": 3, "distill": plain(config)},
        "environment": where,
        "started": started,
        "last": last,
    }


def taught(
    teacher: nn.Module,
    student: str,
    spec: Any,
    config: DistillConfig,
    pool: Any,
    beta: float,
    control: tuple[float, float, int] | None = None,
) -> nn.Module:
    if control is not None:
        config = replace(config, episodes=control[2] * config.episodes)
    method = GivenConfig(pool, config.batch_size, beta=beta)
    started = Distillation(teacher, student, spec, config, method)
    if control is not None:
        started.method = Control(started.method.problem, method)
        started.method.weights = control[:2]
    return started.run(progress=False).student


if __name__ == "__main__":
    main()
