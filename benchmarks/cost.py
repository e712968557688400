"""What the cells of the paper's tables cost on this machine: a few steps of each, multiplied.

    python benchmarks/cost.py --json data/records/cost/cpu.json
    python benchmarks/cost.py cifar10-jpeg table4-28px          # some experiments only

Times do not depend on what is in the images: they are blank here, in the numbers and sizes of the
real data sets, so that no data are needed. One seed of a cell is its teacher and its student.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from dfkd_lite.checkpoint import write_json
from dfkd_lite.cost import Cost, measure_cost
from dfkd_lite.data import ImageData, Split
from dfkd_lite.experiment import Run, read_experiment
from dfkd_lite.records import environment, plain
from dfkd_lite.runner import Place

#: channels, side, classes, training images
SHAPES = {
    "digits": (1, 16, 10, 1297),
    "cifar10": (3, 32, 10, 50_000),
    "cifar10-jpeg": (3, 32, 10, 50_000),
    "cifar100": (3, 32, 100, 50_000),
    "tiny-imagenet": (3, 64, 200, 100_000),
    "imagenette": (3, 224, 10, 9_469),
    "imagenet100": (3, 224, 100, 126_689),
    "pathmnist": (3, 28, 9, 89_996),
    "bloodmnist": (3, 28, 8, 11_959),
    "pneumoniamnist": (1, 28, 2, 4_708),
}
TABLES = ("table2", "table3", "table4", "table5-digits", "table4-28px", "cifar10-jpeg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiments", nargs="*", default=list(TABLES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    place = Place(data={}, device=options.device, progress=False)
    runs = [run for name in options.experiments for run in read_experiment(name)]
    runs = [replace(run, threads=options.threads) for run in runs if run.seed == 0]
    rows = []
    for run in tqdm(runs):
        cost = measure_cost(run, place, blank(run))
        rows.append(row(run, cost))
        tqdm.write(
            f"{run.experiment:14} {run.title:50} teacher {rows[-1]['teacher'] / 3600:7.2f} h, "
            f"student {rows[-1]['student'] / 3600:7.2f} h"
        )
    if options.json:
        where = environment(options.device if options.device != "auto" else "cpu")
        write_json(options.json, {"environment": plain(where), "rows": rows})


def blank(run: Run) -> ImageData:
    """Images of the data set's shape and number that take no memory."""
    channels, side, classes, count = SHAPES[run.data]
    side = run.size or side
    images = torch.zeros(1, channels, side, side, dtype=torch.uint8)
    labels = torch.arange(count) % classes
    train = Split(images.expand(count, -1, -1, -1), labels)
    names = tuple(map(str, range(classes)))
    return ImageData(
        run.data, names, channels, side, (0.5,) * channels, (0.25,) * channels, train, None, train
    )


def row(run: Run, cost: Cost) -> dict[str, object]:
    """Times in seconds."""
    return {
        "experiment": run.experiment,
        "variant": run.variant,
        "title": run.title,
        "pair": f"{run.teacher} > {run.student}",
        "size": SHAPES[run.data][1] if run.size is None else run.size,
        "precision": run.distill.precision,
        "threads": run.threads,
        "batch": run.distill.batch_size,
        "epoch": cost.epoch,
        "synthesis": cost.synthesis,
        "student_step": cost.student_step,
        "teacher": cost.teacher_seconds(run),
        "student": cost.student_seconds(run),
    }


if __name__ == "__main__":
    main()
