"""Runs experiments and reports on them: the commands ``dfkd run`` and ``dfkd report``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from dfkd_lite import parallel
from dfkd_lite.errors import InputError

from .cost import Cost, measure_cost
from .file import EXPERIMENTS, Run, read_experiment, select
from .records import RECORDS
from .runner import Place, execute, load_data, teach_run
from .table import rows, text_table, write_csv, write_html
from .trained import find_teacher


def add_commands(commands: Any, common: Callable[..., argparse.ArgumentParser]) -> None:
    """Add ``run`` and ``report`` to the commands; ``common`` makes the parser of one."""
    parser = common(commands, "run", run_file, "do the runs of an experiment file, one record each")
    parser.add_argument("file", help=f"a YAML file, or a name in {EXPERIMENTS.name}/")
    _selection(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would run and its cost")
    parser.add_argument("--teachers", action="store_true", help="train the teachers and stop")
    parser.add_argument("--resume", action="store_true", help="go on with runs that were cut off")
    parser.add_argument(
        "--data", action="append", default=[], metavar="NAME=PATH",
        help="where a data set lies: a folder of class folders or an .npz file; may be repeated",
    )  # fmt: skip
    parser.add_argument("--download", action="store_true", help="fetch data that is missing")
    parser.add_argument("--work", type=Path, default=Path("runs"), help="checkpoints (%(default)s)")
    parser.add_argument("--log", choices=("tensorboard",), help="also write event files to --work")

    parser = common(commands, "report", report, "set records beside the paper's numbers")
    parser.add_argument("file", nargs="*", help="experiment files or names (all that ship)")
    _selection(parser)
    parser.add_argument("--html", type=Path, help="also write a page with table and figure")
    parser.add_argument("--csv", type=Path, help="also write the numbers")


def _selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", action="append", default=[], metavar="KEY=VALUE",
        help="of these runs only, e.g. SEED=0 or VARIANT=without-msarc; may be repeated",
    )  # fmt: skip
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of records")


def run_file(options: argparse.Namespace) -> None:
    """Do all runs of a file that have no record yet, in order: ``dfkd run FILE``."""
    parallel.start(options.device)
    runs = select(read_experiment(options.file), options.only)
    place = Place(
        data=dict(_pair(text) for text in options.data),
        records=options.records,
        work=options.work,
        device=options.device,
        resume=options.resume,
        download=options.download,
    )
    if options.dry_run:
        if parallel.rank() == 0:
            _forecast(runs, place)
        return
    said: set[tuple[str, int | None]] = set()
    for number, run in enumerate(runs, start=1):
        label = f"[{number}/{len(runs)}] {run.experiment}/{run.name}"
        if options.teachers:
            _, _, card = teach_run(run, place)
            _say(f"{label}: teacher {run.teacher} with {card['test']['accuracy']:.2%}")
        elif place.is_recorded(run):
            _say(f"{label}: recorded already")
        else:
            _say(label, sys.stderr)
            if (run.data, run.size) not in said:  # what was read, once for all runs of it
                _say(str(load_data(run, place)), sys.stderr)
                said.add((run.data, run.size))
            with _watched(run, place, options.log) as watched:
                _say(f"{label}: {_outcome(execute(run, watched))} -> {place.record(run)}")


def _say(text: str, stream: TextIO | None = None) -> None:
    if parallel.rank() == 0:
        print(text, file=stream)


@contextmanager
def _watched(run: Run, place: Place, log: str | None) -> Iterator[Place]:
    if log is None or parallel.rank() > 0:
        yield place
        return
    from .tensorboard import TensorBoard  # it draws maps with matplotlib

    with closing(TensorBoard(place.folder(run) / "tensorboard")) as board:
        yield replace(place, watch=board)


def _outcome(record: dict[str, Any]) -> str:
    if record["diverged"]:
        return "diverged"
    teacher, student = (record["last"][role]["accuracy"] for role in ("teacher", "student"))
    minutes = record["seconds"]["distil"] / 60
    return (
        f"teacher {teacher:.2%}, student {student:.2%} at the last step, "
        f"distilled in {minutes:.1f} min"
    )


def _pair(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals:
        raise InputError(f"--data {text}: write NAME=PATH.")
    return name, path


def _forecast(runs: list[Run], place: Place) -> None:
    """Print what would run, and how long it would take here, one run after another."""
    costs: dict[Any, Cost | None] = {}
    teachers: dict[str, float] = {}
    unknown, total = 0, 0.0
    for run in runs:
        state = _state(run, place)
        line = f"{run.name}: {state}"
        if state == "recorded":
            pass
        elif (cost := _cost(run, place, costs)) is None:
            unknown += 1
            line += f", cost unknown: no data '{run.data}' here (--data {run.data}=PATH)"
        else:
            line += f", about {_duration(cost.student_seconds(run))}"
            total += cost.student_seconds(run)
            if find_teacher(load_data(run, place), run.teacher, run.teach) is None:
                key = f"{run.data} {run.size} {run.teacher} {run.teach}"
                teachers[key] = cost.teacher_seconds(run)
        print(line)
    if teachers:
        print(f"{len(teachers)} teachers to train, about {_duration(sum(teachers.values()))}")
    rest = f", and {unknown} runs of unknown cost" if unknown else ""
    print(f"{len(runs)} runs: about {_duration(total + sum(teachers.values()))} here{rest}")


def _state(run: Run, place: Place) -> str:
    if place.is_recorded(run):
        return "recorded"
    begun = any((place.folder(run) / "checkpoints").glob("step-*"))
    return "cut off, --resume goes on with it" if begun else "to do"


def _cost(run: Run, place: Place, known: dict[Any, Cost | None]) -> Cost | None:
    """Measure the cost of a run, once for all runs that differ only in the seed."""
    settings = replace(run.teach, seed=0), replace(run.distill, seed=0), run.method
    key = (run.data, run.size, run.teacher, run.student, repr(settings), run.threads)
    if key not in known:
        try:
            known[key] = measure_cost(run, place, load_data(run, place))
        except InputError:
            known[key] = None
    return known[key]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def report(options: argparse.Namespace) -> None:
    """Print the table of measured runs, and write it to the files asked for: ``dfkd report``."""
    files = options.file or sorted(EXPERIMENTS.glob("*.yaml"))
    runs = [run for file in files for run in read_experiment(file)]
    table = rows(select(runs, options.only), options.records)
    if options.html:
        write_html(table, options.html)
    if options.csv:
        write_csv(table, options.csv)
    print(text_table(table))
