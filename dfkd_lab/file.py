"""Reads an experiment file: one YAML -> a list of runs, each fully spelled out.

A file names data, networks, method and seeds, changes settings of a preset, and may vary any of
them: ``cells`` lists variants by name, ``grid`` multiplies lists. Everything is checked when the
file is read; a wrong name or value is refused with its line, what was expected, and the nearest
name. ``data/experiments/`` has files to copy from.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dfkd_lite.distill import DistillConfig
from dfkd_lite.errors import InputError, choose, unknown
from dfkd_lite.methods import METHODS
from dfkd_lite.networks import build
from dfkd_lite.presets import PRESETS, preset
from dfkd_lite.settings import Names, SettingError, changed, leaves, nested
from dfkd_lite.storage.shipped import SHIPPED
from dfkd_lite.teach import TeachConfig

from .records import paper_table
from .schema import (
    AXES,
    PARTS,
    Cell,
    Choices,
    Data,
    File,
    Source,
    Where,
    merged,
    parse,
)

#: The experiments that ship with the code.
#:
#: :meta hide-value:
EXPERIMENTS = SHIPPED / "experiments"

#: Methods that an experiment can name; "given" would need images.
RUNNABLE = tuple(name for name in METHODS if name != "given")


@dataclass(frozen=True)
class Run:
    """Holds one teacher, one student, one seed: everything that the result depends on.

    ``experiment`` is the file's name and the folder of the record, ``name`` the record's own;
    ``variant`` says what is special about it, the same for all seeds, and ``title`` says it in
    words. ``data`` is the name or path of the data, ``size`` its side in pixels (None: its own).
    ``threads`` are torch's on the CPU: another number adds up in another order. ``paper`` is the
    paper's number to set beside, if any: ``table``, ``row``, ``column``, ``accuracy``, and what
    ``differs``.
    """

    experiment: str
    name: str
    variant: str
    title: str
    seed: int
    data: str
    size: int | None
    teacher: str
    student: str
    teach: TeachConfig
    distill: DistillConfig
    method: Any
    threads: int
    changes: dict[str, Any]
    paper: dict[str, Any] | None

    @property
    def method_name(self) -> str:
        """Look up the method's name in the registry."""
        return next(name for name in METHODS if METHODS[name].Config is type(self.method))


def read_experiment(path: str | Path) -> list[Run]:
    """Read all runs of an experiment file, in the order in which it names them.

    ``path`` is a file, or the name of one in :data:`EXPERIMENTS`.

    Raises:
        InputError: no such file (the nearest name is offered); something wrong in it, with the
            line.
    """
    source = parse(_found(path))
    file: File = source.validated(File, source.content, ())
    for number, seed in enumerate(file.seeds):
        if seed in file.seeds[:number]:
            raise source.refuse(("seeds", number), f"the seed {seed} is given twice.")
    _check_grid(source, file)
    runs: list[Run] = []
    for variant in _variants(source, file):
        if any(run.variant == variant.name for run in runs):
            where = variant.where or ("grid", next(iter(file.grid)))
            message = f"two variants are called '{variant.name}': give another name."
            raise source.refuse(where, message)
        runs += [variant.run(seed) for seed in file.seeds]
    return runs


def select(runs: list[Run], only: list[str]) -> list[Run]:
    """Choose the runs that fit every ``key=value`` of ``only``, such as ``seed=0``.

    Keys (in small or capital letters): name, variant, seed, data, teacher, student, method.

    Raises:
        InputError: an unknown key, or nothing that fits.
    """
    for condition in only:
        key, equals, value = (part.strip() for part in condition.partition("="))
        if not equals:
            raise InputError(f"'{condition}' is not a condition: write seed=0 or variant=NAME.")
        key = choose("key", key.lower(), ("name", "variant", "seed", *AXES[:3], "method"))
        attribute = "method_name" if key == "method" else key
        values = [str(getattr(run, attribute)) for run in runs]
        runs = [run for run, v in zip(runs, values, strict=True) if v.lower() == value.lower()]
        if not runs:
            choose(key, value.lower(), dict.fromkeys(v.lower() for v in values))
    return runs


# --- The file as a whole -----------------------------------------------------------------------


def _found(path: str | Path) -> Path:
    given = Path(path)
    known = {p.stem: p for p in sorted(EXPERIMENTS.glob("*.yaml"))}
    if os.path.isfile(given):  # Path's own raises where no file can have such a name
        return given
    if os.path.isdir(given):
        raise InputError(f"{given} is a folder: name one file.")
    if given.suffix or len(given.parts) > 1:
        near = difflib.get_close_matches(given.stem, known, n=1, cutoff=0.4)
        hint = f" Did you mean {known[near[0]]}?" if near else ""
        raise InputError(f"There is no file {given}.{hint}")
    return known[choose("experiment", str(path), known)]


def _check_grid(source: Source, file: File) -> None:
    """Refuse axes that do not exist, and axes or values that say the same thing twice."""
    for axis, values in file.grid.items():
        where = ("grid", axis)
        if axis not in AXES and axis.partition(".")[0] not in PARTS:
            raise source.refuse(where, unknown(axis, [*AXES, *(f"{p}. ..." for p in PARTS)]))
        if axis == "pair" and {"teacher", "student"} & set(file.grid):
            raise source.refuse(where, "'pair' says teacher and student: leave the others out.")
        settings = [other for other in file.grid if other not in AXES]
        inside = [other for other in settings if axis.startswith(f"{other}.")]
        if inside:
            later = max((where, ("grid", inside[0])), key=source.line)
            raise source.refuse(later, f"'{axis}' is a part of '{inside[0]}': vary one of them.")
        for number, value in enumerate(values):
            if value in values[:number]:
                raise source.refuse((*where, number), f"{axis}={value} is given twice.")


def _variants(source: Source, file: File) -> Iterator[_Variant]:
    cells: list[tuple[Where, Cell | None]] = [(("cells", n), c) for n, c in enumerate(file.cells)]
    axes = [
        [(axis, (("grid", axis, n), value)) for n, value in enumerate(values)]
        for axis, values in file.grid.items()
    ]
    for (where, cell), *point in itertools.product(cells or [((), None)], *axes):
        yield _Variant(source, file, where, cell, dict(point))


# --- One variant -------------------------------------------------------------------------------


class _Variant:
    """Makes the runs of a cell at one point of the grid, and knows where the file says what."""

    def __init__(
        self,
        source: Source,
        file: File,
        where: Where,
        cell: Cell | None,
        point: dict[str, tuple[Where, Any]],
    ) -> None:
        self.source, self.where = source, where
        levels: list[tuple[Where, Choices | None]] = [((), file), (where, cell)]
        self.levels = [(place, level) for place, level in levels if level]
        self.point = point
        #: What is said, and where: the grid's over the cell's over the file's.
        self.said: dict[str, tuple[Where, Any]] = {
            name: ((*place, name), getattr(level, name))
            for place, level in self.levels
            for name in level.model_fields_set
        } | self.point
        self.method = self.choice("method", "fssc", RUNNABLE)
        self.base = preset(self.choice("preset", "lite", PRESETS)).of_method(self.method)
        self.data = self.data_choice()
        self.networks = {role: self.network(role) for role in ("teacher", "student")}
        self.places: dict[Where, Where] = {}  # the way to a setting -> its place in the file
        self.tree, self.changes = self.settings()
        self.paper = self.paper_cell()
        self.threads = file.threads
        words = [cell.name] if cell is not None else []
        words += [
            str(value) if axis in AXES else f"{axis.rsplit('.', 1)[-1]}={value}"
            for axis, (_, value) in self.point.items()
        ]
        self.words = words or [" > ".join(self.networks.values())]
        self.name = "_".join(map(_slug, self.words))
        if not all(map(_slug, self.words)) or len(self.name) > 180:
            message = f"'{self.name:.40}' cannot name a file: give letters or digits, 180 at most."
            raise source.refuse(where or ("grid", next(iter(file.grid), "")), message)

    def run(self, seed: int) -> Run:
        return Run(
            experiment=self.source.path.stem,
            name=f"{self.name}_seed{seed}",
            variant=self.name,
            title=", ".join(self.words),
            seed=seed,
            data=self.data.name,
            size=self.data.size,
            **self.networks,
            teach=replace(self.part("teach"), seed=seed),
            distill=replace(self.part("distill"), seed=seed),
            method=self.part("method"),
            threads=self.threads,
            changes=self.changes,
            paper=self.paper,
        )

    def choice(self, name: str, default: str, options: Iterable[str]) -> str:
        where, value = self.said.get(name, ((), default))
        with self.source.at(where):
            return choose(name, str(value), options)

    def data_choice(self) -> Data:
        if "data" not in self.said:
            raise self.source.refuse((), "'data' is missing: name the data set.")
        where, value = self.said["data"]
        return value if isinstance(value, Data) else self.source.validated(Data, value, where)

    def network(self, role: str) -> str:
        where, name = self.said.get(role, ((), getattr(self.base, role)))
        if "pair" in self.point:
            where, value = self.point["pair"]
            names = [part.strip() for part in str(value).split(">")]
            if len(names) != 2 or not all(names):
                message = f"{value!r} is not a pair: write teacher > student."
                raise self.source.refuse(where, message)
            name = names[role == "student"]
        if not isinstance(name, str) or not name:
            raise self.source.refuse(where, f"'{role}' is {name!r}, not the name of a network.")
        with self.source.at(where):
            return _existing(name)

    # --- settings

    def settings(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Check each setting where it stands; return all, and those of cell and grid alone."""
        said = [((*where, "settings"), level.settings, 0) for where, level in self.levels]
        for axis, (where, value) in self.point.items():
            if axis not in AXES:
                names = tuple(axis.split("."))
                said.append((where, nested({names: value}), len(names)))
        tree: dict[str, Any] = {}
        for where, changes, skip in said:
            found, places = self.source.settings(self.method, changes, where, skip)
            tree = merged(tree, found)
            self.places |= places
        return tree, merged(*(changes for _, changes, _ in said[1:]))

    def part(self, name: str) -> Any:
        """Change the preset's settings of one part; a refusal names the line to blame."""
        settings, changes = getattr(self.base, name), self.tree.get(name, {})
        try:
            return changed(settings, changes, (name,))
        except SettingError as error:
            guilty, message = blamed(settings, changes, error)
            where = self.places.get((name, *guilty), self.where)
            raise self.source.refuse(where, message) from None

    # --- the paper's number

    def paper_cell(self) -> dict[str, Any] | None:
        if "paper" not in self.said:
            return None
        where, paper = self.said["paper"]
        at = self.source.at
        with at((*where, "table")):
            rows = paper_table(paper.table)
        for key, value in paper.row.items():
            with at((*where, "row", key)):
                known = {row[choose("column", key, rows[0])] for row in rows}
                choose(key, value, sorted(known))
        fitting = [row for row in rows if paper.row.items() <= row.items()]
        if len(fitting) != 1:
            what = f"{len(fitting)} rows of {paper.table} fit {paper.row}, not one."
            raise self.source.refuse((*where, "row"), what)
        with at((*where, "column")):
            number = fitting[0][choose("column", paper.column, rows[0])]
            return {**paper.model_dump(), "accuracy": _accuracy(paper.column, number)}


_NOT_ACCURACIES = ("resolution", "classes", "lambda")


def _accuracy(column: str, number: str) -> float | None:
    """Turn a cell of the paper's tables, in percent, into an accuracy in 0..1; None: empty."""
    with suppress(ValueError):
        accuracy = float(number) / 100 if number else None
        if column not in _NOT_ACCURACIES and (accuracy is None or 0 < accuracy <= 1):
            return accuracy
    raise InputError(f"the column '{column}' does not hold accuracies.")


def blamed(settings: Any, changes: dict[str, Any], error: InputError) -> tuple[Names, str]:
    """Find which of several changes is to blame, and for what.

    It is the last one without which the others are accepted; else the first that is refused alone.
    """
    said = leaves(changes)

    def refusal(tried: dict[Names, Any]) -> str | None:
        try:
            changed(settings, nested(tried))
        except SettingError as refused:
            return str(refused)
        return None

    for path in reversed(said):
        if refusal({other: value for other, value in said.items() if other != path}) is None:
            return path, str(error)
    for path, value in said.items():
        alone = refusal({path: value})
        if alone is not None:
            return path, alone
    return (), str(error)


@cache
def _existing(name: str) -> str:
    try:
        with torch.device("meta"):  # nothing is allocated
            build(name, classes=2)
    except RuntimeError:
        raise InputError(f"The network '{name}' is too large to be built.") from None
    return name


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.=_-]+", "-", text.lower().replace(" > ", "_")).strip("-")
