"""Estimates what a run will cost on this machine: a few steps are timed, the rest multiplied."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dfkd_lite.data import ImageData
from dfkd_lite.devices import resolve_device
from dfkd_lite.distill import Distillation
from dfkd_lite.networks import build
from dfkd_lite.teach import Teaching

from .file import Run
from .runner import Place, threads

#: Seconds after which no more than two episodes are timed; else it is five.
ENOUGH = 5.0


@dataclass(frozen=True)
class Cost:
    """Holds seconds: of one epoch of the teacher, one synthesis, one step of the student."""

    epoch: float
    synthesis: float
    student_step: float

    def teacher_seconds(self, run: Run) -> float:
        """Give the seconds of training the run's teacher."""
        return run.teach.epochs * self.epoch

    def student_seconds(self, run: Run) -> float:
        """Give the seconds of distilling the run's student, measurements left out."""
        loop = run.distill
        return loop.episodes * self.synthesis + loop.all_student_steps * self.student_step


def measure_cost(run: Run, place: Place, data: ImageData) -> Cost:
    """Time the parts of ``run`` with untrained networks, which cost the same as trained ones.

    Each part is timed several times: the first is not counted, and the fastest of the others is
    taken. Compilation is left out.
    """
    device = resolve_device(place.device)
    with threads(run.threads):
        teaching = Teaching(run.teacher, data, replace(run.teach, compile=False), device)
        epoch = teaching.time_step() * -(-len(data.train) // run.teach.batch_size)
        return Cost(epoch, *_episode(run, place, data))


def _episode(run: Run, place: Place, data: ImageData) -> tuple[float, float]:
    """Time episodes of two steps; the learning rate is tiny, as new networks might diverge."""
    trial = Distillation(
        build(run.teacher, data.classes, data.channels, data.size),
        run.student,
        data.spec(run.teacher),
        replace(run.distill, warm_up=0, student_steps=2, lr=1e-6, lr_final=0.0),
        run.method,
        place.device,
    )
    trial.step()
    rows: list[dict[str, float]] = []
    while len(rows) < 2 or (len(rows) < 5 and sum(row["seconds"] for row in rows) < ENOUGH):
        rows.append(trial.step())
    synthesis = min(row["seconds_synthesise"] for row in rows)
    return synthesis, min(row["seconds"] - row["seconds_synthesise"] for row in rows) / 2
