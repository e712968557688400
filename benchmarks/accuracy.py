"""Teach, forget the data, distil, measure: one record a seed below data/records/.

    python benchmarks/accuracy.py digits --seeds 0 1 2 3 4
    python benchmarks/accuracy.py pneumoniamnist --data PATH/pneumoniamnist.npz --seeds 0 1 2

The seed governs teacher and student alike. Reported is the last step, whatever came before it;
the history shows what came before.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from dfkd_lite.data import load
from dfkd_lite.distill import DistillConfig, distill
from dfkd_lite.errors import choose
from dfkd_lite.evaluate import accuracy, evaluate, predict
from dfkd_lite.generator import GeneratorConfig
from dfkd_lite.meta import MetaConfig
from dfkd_lite.methods import FsscConfig, NoiseConfig
from dfkd_lite.networks import build, count_parameters
from dfkd_lite.presets import Preset, preset
from dfkd_lite.records import RECORDS, environment, peak_memory, plain, write_record
from dfkd_lite.teach import TeachConfig, teach

EXPERIMENTS = {
    "digits": preset("lite"),
    "pneumoniamnist": Preset(
        teacher="wrn-16-1",
        student="wrn-16-1",
        teach=TeachConfig(epochs=20, shift=2),
        distill=DistillConfig(
            episodes=100,
            warm_up=5,
            student_steps=30,
            batch_size=64,
            lr=0.1,
            lr_warm_up=0.05,
            pool_size=20_000,
            shift=2,
        ),
        method=FsscConfig(
            meta=MetaConfig(steps=4),
            class_weight=5.0,  # at 1 the generator does not heed two classes
            adversarial_weight=1.5,
            beta=0.1,
            generator=GeneratorConfig(width=32),
        ),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", help=" or ".join(EXPERIMENTS))
    parser.add_argument("--data", help="name or path of the data (the experiment's name)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=RECORDS)
    options = parser.parse_args()
    for seed in options.seeds:
        record = run(options.experiment, options.data or options.experiment, seed)
        path = write_record(record, options.out)
        last = {name: report["accuracy"] for name, report in record["last"].items()}
        print(f"seed {seed}: {last}, distilled in {record['seconds']['distil']:.0f} s -> {path}")


def run(experiment: str, source: str, seed: int) -> dict[str, Any]:
    """One record: teacher, student, and the student taught on noise, all of one seed."""
    chosen = EXPERIMENTS[choose("experiment", experiment, EXPERIMENTS)]
    data = load(source)
    # Asked now: the code may have changed on disk by the time that a long run ends.
    where, seconds = environment(), {}
    started = datetime.now(UTC).isoformat(timespec="seconds")

    start = time.perf_counter()
    teacher, spec, _ = teach(chosen.teacher, data, replace(chosen.teach, seed=seed))
    seconds["teach"] = time.perf_counter() - start

    def measure(model: torch.nn.Module) -> dict[str, float]:
        return {"accuracy": accuracy(*predict(model, data.test, spec.mean, spec.std))}

    config = replace(chosen.distill, seed=seed)
    start = time.perf_counter()
    result = distill(teacher, chosen.student, spec, config, chosen.method, measure=measure)
    seconds["distil"] = time.perf_counter() - start
    noise_method = NoiseConfig(chosen.method.synthesis_batch, chosen.method.temperature)
    noise = distill(teacher, chosen.student, spec, config, noise_method)
    students = {"student": result.student, "noise": noise.student}
    last = {"teacher": evaluate(teacher, data.test, spec)}
    last |= {name: evaluate(model, data.test, spec, teacher) for name, model in students.items()}
    return {
        "experiment": experiment,
        "name": f"{chosen.teacher}_{chosen.student}_seed{seed}",
        "seed": seed,
        "data": {"name": experiment, "size": data.size, "test_images": len(data.test)},
        "settings": {
            "teach": plain(replace(chosen.teach, seed=seed)),
            "distill": plain(config),
            "method": plain(chosen.method),
        },
        "parameters": {
            name: count_parameters(build(network, data.classes, data.channels, data.size))
            for name, network in (("teacher", chosen.teacher), ("student", chosen.student))
        },
        "environment": where,
        "started": started,
        "seconds": seconds,
        "peak_memory_bytes": peak_memory(),
        "last": last,
        "history": result.history,
    }


if __name__ == "__main__":
    main()
