"""Does one run and writes its record: teach or load, distil without data, measure, write."""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfkd_lite import parallel
from dfkd_lite.data import ImageData, load
from dfkd_lite.devices import resolve_device
from dfkd_lite.distill import Distillation
from dfkd_lite.errors import DivergedError, InputError
from dfkd_lite.measure.evaluate import accuracy, evaluate, predict
from dfkd_lite.measure.fidelity import IMAGES, image_report
from dfkd_lite.measure.signs import data_free_signs
from dfkd_lite.networks import NetworkSpec, build, count_parameters
from dfkd_lite.settings import plain
from dfkd_lite.storage.weights import save_network, save_weights

from .file import Run
from .records import (
    described,
    environment,
    peak_memory,
    record_names,
    record_path,
    write_record,
)
from .trained import as_taught, taught
from .viz.pictures import png, tile


@dataclass(frozen=True)
class Place:
    """Says where runs read and write, and on what device.

    ``data`` gives a path for a data set's name; ``records`` is the folder of finished runs,
    ``work`` that of checkpoints and students. ``watch`` is called after each episode with the run
    and its row of the history.
    """

    data: Mapping[str, str]
    records: Path
    work: Path = Path("runs")
    device: str = "auto"
    resume: bool = False
    download: bool = False
    progress: bool = True
    watch: Callable[[Distillation, dict[str, float]], None] | None = None

    def folder(self, run: Run) -> Path:
        """Give the folder of one run's checkpoints and student."""
        return self.work / run.experiment / run.name

    def record(self, run: Run) -> Path:
        """Give the path where the run's record is, or will be."""
        return record_path(run.experiment, run.name, self.records)

    def is_recorded(self, run: Run) -> bool:
        """Tell whether the run is finished: written as a file, or packed in the package."""
        return run.name in record_names(run.experiment, self.records)


def load_data(run: Run, place: Place) -> ImageData:
    """Load the run's data, under its own name wherever it lies.

    Raises:
        InputError: it is not here; the message says how to give its path.
    """
    source = place.data.get(run.data, run.data)
    try:
        return replace(_loaded(source, run.size, place.download), name=run.data)
    except InputError as error:
        hint = f"give its place with --data {run.data}=PATH" if source == run.data else source
        raise InputError(f"The data of '{run.experiment}': {error} ({hint})") from None


@lru_cache(maxsize=1)  # the runs of a grid, one after the other, mostly share it
def _loaded(source: str, size: int | None, download: bool) -> ImageData:
    return load(source, size=size, download=download)


def teach_run(run: Run, place: Place, data: ImageData | None = None) -> tuple[Any, ...]:
    """Load the run's teacher, spec and card; one process trains and keeps what is missing."""
    data = data or load_data(run, place)
    with threads(run.threads):
        if parallel.rank() == 0:
            found = taught(data, run.teacher, run.teach, place.device, place.progress)
        parallel.wait()
        if parallel.rank() > 0:
            found = taught(data, run.teacher, run.teach, place.device, False)
    return found


def execute(run: Run, place: Place) -> dict[str, Any]:
    """Do what is left of ``run``, write its record, and return the record.

    A run that diverges leaves a record that says so. With ``place.resume`` a run that was cut off
    goes on from its newest checkpoint, to the same result.

    Raises:
        InputError: the record exists; data or settings that cannot be used; a run that was cut
            off, without ``resume``.
    """
    if place.is_recorded(run):
        raise InputError(f"{place.record(run)} exists, and records are never overwritten.")
    where, started = environment(resolve_device(place.device)), _now()
    begun = time.perf_counter()
    data = load_data(run, place)
    loaded = time.perf_counter() - begun
    teacher, spec, card = teach_run(run, place, data)
    with threads(run.threads):
        record = _distil(run, place, data, teacher, spec)
    record |= {
        "experiment": run.experiment,
        "name": run.name,
        "variant": run.variant,
        "changes": run.changes,
        "paper": run.paper,
        "seed": run.seed,
        "networks": {"teacher": run.teacher, "student": run.student, "method": run.method_name},
        "data": described(data),
        "settings": {
            "teach": plain(as_taught(run.teach, card)),
            "distill": record.pop("settings"),
            "method": plain(run.method),
        },
        "parameters": {
            role: count_parameters(build(network, data.classes, data.channels, data.size))
            for role, network in (("teacher", run.teacher), ("student", run.student))
        },
        "teacher": {key: card[key] for key in ("sha256", "stored_as", "environment")},
        "environment": where | {"threads": run.threads},
        "started": started,
        "ended": _now(),
        "peak_memory_bytes": peak_memory(),
    }
    taught_in = {"teach": card["seconds"]} if "seconds" in card else {}
    record["seconds"] = {"load": loaded, **taught_in, **record["seconds"]}
    if parallel.rank() == 0:
        write_record(record, place.records)
        # removed because they hold the whole image pool; the record and the student stay
        shutil.rmtree(place.folder(run) / "checkpoints", ignore_errors=True)
    parallel.wait()
    return record


def _distil(
    run: Run, place: Place, data: ImageData, teacher: nn.Module, spec: NetworkSpec
) -> dict[str, Any]:
    """Distil the student, and return the part of the record that is measured."""
    batch = run.method.synthesis_batch

    def measure(student: nn.Module) -> dict[str, float]:
        newest = distillation.pool.newest(batch)
        signs = data_free_signs(teacher, student, newest, distillation.normalise(newest))
        return {"accuracy": accuracy(*predict(student, data.test, spec)), **signs}

    distillation = Distillation(
        teacher, run.student, spec, run.distill, run.method, place.device, measure
    )
    folder, diverged = place.folder(run), None
    last = {"teacher": evaluate(distillation.teacher, data.test, spec)}
    try:
        distillation.run(folder / "checkpoints", place.resume, place.progress, place.watch)
        student = distillation.evaluated_student
        report = evaluate(student, data.test, spec, distillation.teacher)
        if parallel.rank() == 0:
            for name, module in distillation.method.modules().items():
                save_weights(folder / f"{name}.safetensors", module, {"method": repr(run.method)})
            described_as = replace(spec, network=run.student)
            save_network(folder / "student.safetensors", student, described_as)
        last["student"] = report
    except DivergedError as error:  # a run that diverges is a result, too
        diverged = str(error)
    history = distillation.history
    problem = distillation.method.problem
    report_on = image_report(
        problem.teacher,
        problem.teacher_layers,
        data.train,
        distillation.pool.newest(IMAGES),
        problem.normalise,
    )
    sheet = tile(distillation.pool.newest(batch)[:16].cpu(), columns=8)
    return {
        "settings": plain(distillation.config),
        "seconds": phases(history),
        "resumed_after": distillation.resumed_after,
        "diverged": diverged,
        "last": last,
        "best_on_test": best_on_test(history),
        "history": history,
        "images": report_on,
        "images_png": base64.b64encode(png(sheet, zoom=1)).decode(),
    }


def best_on_test(history: list[dict[str, float]]) -> dict[str, Any] | None:
    """Find the best accuracy seen on the way; it is no result, as test images chose it."""
    rows = [row for row in history if row.get("accuracy") is not None]
    if not rows:
        return None
    best = max(rows, key=lambda row: row["accuracy"])
    note = "chosen by looking at test images: not a result"
    return {"accuracy": best["accuracy"], "episode": best["episode"], "note": note}


def phases(history: list[dict[str, float]]) -> dict[str, float]:
    """Add up the seconds of the whole run by phase, over all parts of a run that was cut off."""
    total = sum(row["seconds"] for row in history)
    synthesise = sum(row["seconds_synthesise"] for row in history)
    measure = sum(row.get("seconds_measure", 0.0) for row in history)
    return {
        "distil": total,
        "synthesise": synthesise,
        "transfer": total - synthesise,
        "measure": measure,
    }


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Set the number of torch's threads on the CPU for the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
