"""Estimates what cells of the paper's tables cost on this machine: times a few steps of each.

    python benchmarks/cost.py --json data/records/cost/cpu.json
    python benchmarks/cost.py cifar10-jpeg table4-28px          # some experiments only
    python benchmarks/cost.py table2 --only teacher=vgg-11      # some of their cells

Times do not depend on what images show, so blank ones in the sizes of the real data sets are used,
and no data are needed. The cost of a cell is that of one seed: its teacher and its student. Cells
whose steps cost the same are timed once: they differ only in the number of classes or of images, in
budgets, or in weights of losses that stay above zero.

Batches of more pixels than 128 images at 32 px take long and do not fit a small machine. They are
divided by a power of two, and the measured times are multiplied by it. This assumes a cost in
proportion to the batch: what a step costs whatever its batch (above all the optimiser) is counted
too often. Each row has one divided by the divisor as ``measured_fraction``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dfkd_lab.cost import Cost, measure_cost
from dfkd_lab.file import Run, read_experiment, select
from dfkd_lab.records import RECORDS, environment
from dfkd_lab.runner import Place
from dfkd_lite.data import ImageData, Split
from dfkd_lite.settings import plain
from dfkd_lite.storage.files import write_json

#: Data set -> channels, side in pixels, classes, training images.
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
#: Timed by default: the paper's tables (Table 6 is Table 2 with other lambda), and ours. Table 5 as
#: published would take as long as all of these, so it is timed only if it is named.
TABLES = (
    "table2", "table3", "table4", "table6",
    "table4-28px", "cifar10-jpeg", "table5-digits", "table6-digits",
)  # fmt: skip
PIXELS = 128 * 32**2  # largest number of pixels of a batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiments", nargs="*", default=list(TABLES))
    parser.add_argument("--only", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--pixels", type=int, default=PIXELS, help="of a batch (%(default)s)")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    place = Place(data={}, records=RECORDS, device=options.device, progress=False)
    runs = [run for name in options.experiments for run in read_experiment(name)]
    runs = [replace(run, threads=options.threads) for run in runs if run.seed == 0]
    known: dict[str, Cost] = {}
    rows = []
    for run in tqdm(select(runs, options.only)):
        divisor = dividing(run, options.pixels)
        measured = of_one_step(run, divisor)
        key = repr(replace(measured, experiment="", name="", variant="", title="", data="",
                           changes={}, paper=None)) + repr(shape(run)[:2])  # fmt: skip
        if key not in known:
            known[key] = measure_cost(measured, place, blank(measured))
        found = row(run, known[key], divisor)
        rows.append(found)
        tqdm.write(
            f"{run.experiment:14} {run.title:50} teacher {found['teacher'] / 3600:7.2f} h, "
            f"student {found['student'] / 3600:7.2f} h"
        )
    if options.json:
        where = environment(options.device if options.device != "auto" else "cpu")
        write_json(options.json, {"environment": plain(where), "rows": rows})


def shape(run: Run) -> tuple[int, int, int, int]:
    """Return channels, side, classes and number of training images of the run's data."""
    channels, side, classes, count = SHAPES[run.data]
    return channels, run.size or side, classes, count


def dividing(run: Run, pixels: int) -> int:
    """Return the power of two that divides the run's batches to at most ``pixels`` each, or the
    largest that leaves every batch a whole number of images, two at least."""
    sizes = (run.teach.batch_size, run.distill.batch_size, run.method.synthesis_batch)
    divisor = 1
    while max(sizes) * shape(run)[1] ** 2 > divisor * pixels and all(
        size % (2 * divisor) == 0 and size >= 4 * divisor for size in sizes
    ):
        divisor *= 2
    return divisor


def of_one_step(run: Run, divisor: int) -> Run:
    """Return ``run`` with divided batches, and without what does not change a step's cost."""
    method = run.method
    weights = ("kappa", "bn_weight", "class_weight", "adversarial_weight", "beta")
    simple: dict[str, Any] = {n: 1.0 for n in weights if getattr(method, n, 0) > 0}
    if method.generator.attention is not None and method.generator.attention.lam > 0:
        attention = replace(method.generator.attention, lam=1.0)
        simple["generator"] = replace(method.generator, attention=attention)
    batch = run.teach.batch_size // divisor
    student = run.distill.batch_size // divisor
    loop = replace(run.distill, episodes=20, warm_up=0, student_steps=1, batch_size=student)
    return replace(
        run,
        teach=replace(run.teach, epochs=20, batch_size=batch, lr=1e-6, compile=False),
        distill=replace(loop, lr=0.1, lr_final=0.1, lr_warm_up=0.0, pool_size=1000),
        method=replace(method, synthesis_batch=method.synthesis_batch // divisor, **simple),
    )


def blank(run: Run) -> ImageData:
    """Make one batch of blank images in the data set's shape, so that an epoch is one step."""
    channels, side, classes, _ = shape(run)
    count = run.teach.batch_size
    images = torch.zeros(count, channels, side, side, dtype=torch.uint8)
    train = Split(images, torch.arange(count) % classes)
    names = tuple(map(str, range(classes)))
    return ImageData(
        run.data, names, channels, side, (0.5,) * channels, (0.25,) * channels, train, None, train
    )


def row(run: Run, step: Cost, divisor: int) -> dict[str, Any]:
    """Return a row of the report (seconds); ``step`` has the times of the divided batches."""
    channels, side, classes, images = shape(run)
    teacher_step = step.epoch * divisor
    steps = -(-images // run.teach.batch_size)
    cost = Cost(teacher_step * steps, step.synthesis * divisor, step.student_step * divisor)
    return {
        "experiment": run.experiment,
        "variant": run.variant,
        "title": run.title,
        "data": run.data,
        "pair": f"{run.teacher} > {run.student}",
        "channels": channels,
        "size": side,
        "classes": classes,
        "images": images,
        "precision": run.distill.precision,
        "threads": run.threads,
        "batch": run.distill.batch_size,
        "measured_fraction": 1 / divisor,
        "teacher_step": teacher_step,
        "epoch": cost.epoch,
        "synthesis": cost.synthesis,
        "student_step": cost.student_step,
        "teacher": cost.teacher_seconds(run),
        "student": cost.student_seconds(run),
    }


if __name__ == "__main__":
    main()
