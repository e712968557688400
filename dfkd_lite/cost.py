"""What a run will cost on this machine: a few steps timed, the rest multiplied."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .data import ImageData
from .devices import resolve_device
from .distill import Distillation
from .experiment import Run
from .networks import build
from .runner import Place, threads
from .teach import Teaching


@dataclass(frozen=True)
class Cost:
    """Seconds: of one epoch of the teacher, one synthesis, one step of the student."""

    epoch: float
    synthesis: float
    student_step: float

    def teacher_seconds(self, run: Run) -> float:
        """Of training the run's teacher."""
        return run.teach.epochs * self.epoch

    def student_seconds(self, run: Run) -> float:
        """Of distilling the run's student, measurements left out."""
        loop = run.distill
        steps = (loop.episodes - loop.warm_up) * loop.student_steps
        return loop.episodes * self.synthesis + steps * self.student_step


def measure_cost(run: Run, place: Place, data: ImageData) -> Cost:
    """Time the parts of ``run`` with networks that have learnt nothing: that costs the same.

    The first of each is not counted; compilation is left out.
    """
    with threads(run.threads):
        return Cost(_epoch(run, place, data), *_episode(run, place, data))


def _epoch(run: Run, place: Place, data: ImageData) -> float:
    device = resolve_device(place.device)
    teaching = Teaching(run.teacher, data, replace(run.teach, compile=False), device)
    return teaching.time_step() * -(-len(data.train) // run.teach.batch_size)


def _episode(run: Run, place: Place, data: ImageData) -> tuple[float, float]:
    """Episodes of one step and of three: their difference is two steps."""
    short = replace(run.distill, episodes=6, warm_up=0, student_steps=1)
    times = []
    for steps in (1, 3):
        trial = Distillation(
            build(run.teacher, data.classes, data.channels, data.size),
            run.student,
            data.spec(run.teacher),
            replace(short, student_steps=steps),
            run.method,
            place.device,
        )
        trial.step()
        rows = [trial.step() for _ in range(2)]
        times.append(rows)
    one, three = (min(row["seconds"] - row["seconds_synthesise"] for row in r) for r in times)
    synthesis = min(row["seconds_synthesise"] for rows in times for row in rows)
    return synthesis, max(three - one, 0.0) / 2
