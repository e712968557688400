"""Does MSARC keep a student from a shortcut? One record a seed below data/records/shortcut/.

    python benchmarks/shortcut.py --seeds 0 1 2

The teacher never saw the shortcut. Students learn from its answers on a few real images, with a
white square that tells the class or without it, for several beta of Eq. 17; they are examined on
test images without a square, with one that tells the truth, and with one that lies.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfkd_lite.data import ImageData, Split, load
from dfkd_lite.data.shortcut import lying_marks, plant_shortcut
from dfkd_lite.distill import DistillConfig, distill
from dfkd_lite.experiments.trained import trained_teacher
from dfkd_lite.measure.evaluate import accuracy, predict
from dfkd_lite.methods import GivenConfig
from dfkd_lite.presets import preset
from dfkd_lite.records import RECORDS, environment, plain, write_record

IMAGES = 200
BETAS = (0.0, 0.01, 0.1, 0.3, 1.0)
CLEAN_BETAS = (0.0, 0.1)  # the same without a square: what MSARC does where there is no shortcut


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RECORDS)
    options = parser.parse_args()
    for seed in options.seeds:
        record = run(load("digits"), seed)
        print(write_record(record, options.out), flush=True)


def run(data: ImageData, seed: int) -> dict[str, Any]:
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
    for kind, pool, betas in (("planted", planted, BETAS), ("clean", images, CLEAN_BETAS)):
        for beta in betas:
            student = taught(teacher, lite.student, spec, config, pool, beta)
            last[f"{kind}, beta {beta:g}"] = examine(student)
            print(
                f"seed {seed}, {kind}, beta {beta:g}: {last[f'{kind}, beta {beta:g}']}", flush=True
            )
    return {
        "experiment": "shortcut",
        "name": f"digits_seed{seed}",
        "seed": seed,
        "data": {"name": data.name, "size": data.size, "test_images": len(data.test)},
        "settings": {"images": IMAGES, "side": 3, "distill": plain(config)},
        "environment": where,
        "started": started,
        "last": last,
    }


def taught(
    teacher: nn.Module, student: str, spec: Any, config: DistillConfig, pool: Any, beta: float
) -> nn.Module:
    method = GivenConfig(pool, config.batch_size, beta=beta)
    return distill(teacher, student, spec, config, method, progress=False).student


if __name__ == "__main__":
    main()
