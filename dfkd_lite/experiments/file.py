"""What is to be measured, as a file: one YAML -> a list of runs, each fully spelled out.

A file names data, networks, method and seeds, changes settings of a preset, and may vary any of
them: ``cells`` lists variants by name, ``grid`` multiplies lists. Everything is checked when the
file is read; a wrong name or value is refused with its line, what was expected, and the nearest
name. ``data/experiments/`` has files to copy from.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..distill import DistillConfig
from ..errors import InputError, choose
from ..methods import METHODS
from ..networks import build
from ..presets import PRESETS, preset, replaced
from ..records import paper_table
from ..storage.shipped import SHIPPED
from ..teach import TeachConfig
from .schema import (
    AXES,
    PARTS,
    Cell,
    Choices,
    Data,
    DataChoice,
    File,
    Paper,
    Source,
    Strict,
    Where,
    chosen,
    merged,
    nested_in,
    parse,
    part_at,
    settings_model,
    unknown,
)

#: The experiments that ship with the code.
#:
#: :meta hide-value:
EXPERIMENTS = SHIPPED / "experiments"

#: Methods that an experiment can name; "given" would need images.
RUNNABLE = tuple(name for name in METHODS if name != "given")


@dataclass(frozen=True)
class Run:
    """One teacher, one student, one seed: everything that its result depends on.

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
        """The method's name in the registry."""
        return next(name for name in METHODS if METHODS[name].Config is type(self.method))


def read_experiment(path: str | Path) -> list[Run]:
    """All runs of an experiment file, in the order in which it names them.

    ``path`` is a file, or the name of one in :data:`EXPERIMENTS`.

    Raises:
        InputError: no such file (the nearest name is offered); something wrong in it, with the
            line.
    """
    source = parse(_found(path))
    file: File = source.validated(File, source.content, ())
    _check_seeds(source, file)
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
    """The runs that fit every ``key=value`` of ``only``, such as ``seed=0`` or ``variant=full``.

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
    try:
        if given.is_file():
            return given
        folder = given.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        raise InputError(f"There is no file {str(path)[:60]}...") from None
    if folder:
        raise InputError(f"{given} is a folder: name one file.")
    if given.suffix or len(given.parts) > 1:
        near = difflib.get_close_matches(given.stem, known, n=1, cutoff=0.4)
        hint = f" Did you mean {known[near[0]]}?" if near else ""
        raise InputError(f"There is no file {given}.{hint}")
    return known[choose("experiment", str(path), known)]


def _check_seeds(source: Source, file: File) -> None:
    for number, seed in enumerate(file.seeds):
        if seed in file.seeds[:number]:
            raise source.refuse(("seeds", number), f"the seed {seed} is given twice.")


def _check_grid(source: Source, file: File) -> None:
    """Axes that exist, and do not say the same thing twice."""
    for axis, values in file.grid.items():
        where = ("grid", axis)
        if axis not in AXES and axis.partition(".")[0] not in PARTS:
            raise source.refuse(where, unknown(axis, [*AXES, *(f"{p}. ..." for p in PARTS)]))
        if axis == "pair" and {"teacher", "student"} & set(file.grid):
            raise source.refuse(where, "'pair' says teacher and student: leave the others out.")
        settings = [other for other in file.grid if other not in AXES]
        inside = [other for other in settings if axis.startswith(f"{other}.")]
        if inside:
            later = max((where, ("grid", inside[0])), key=lambda place: source.lines[place])
            raise source.refuse(later, f"'{axis}' is a part of '{inside[0]}': vary one of them.")
        for number, value in enumerate(values):
            if value in values[:number]:
                raise source.refuse((*where, number), f"{axis}={value} is given twice.")


def _variants(source: Source, file: File) -> Iterator[_Variant]:
    cells: list[tuple[Where, Choices | None]] = [
        (("cells", number), cell) for number, cell in enumerate(file.cells)
    ]
    axes = [[(axis, n, v) for n, v in enumerate(values)] for axis, values in file.grid.items()]
    for (where, cell), *point in itertools.product(cells or [((), None)], *axes):
        yield _Variant(source, file, where, cell, {axis: (n, v) for axis, n, v in point})


# --- One variant -------------------------------------------------------------------------------


class _Text(Strict):
    value: str


class _DataAxis(Strict):
    value: DataChoice


class _Variant:
    """A cell at one point of the grid. Remembers where in the file each choice was made."""

    def __init__(
        self,
        source: Source,
        file: File,
        where: Where,
        cell: Choices | None,
        point: dict[str, tuple[int, Any]],
    ) -> None:
        self.source, self.file, self.where, self.cell, self.point = source, file, where, cell, point
        self.method = self.choice("method", "method", RUNNABLE)
        self.base = preset(self.choice("preset", "preset", PRESETS)).of_method(self.method)
        self.data = self.data_choice()
        self.networks = {role: self.network(role) for role in ("teacher", "student")}
        self.leaves: dict[Where, Where] = {}  # a setting's place among the settings -> in the file
        self.tree = self.settings()
        self.paper = self.paper_cell()
        words = [cell.name] if isinstance(cell, Cell) else []
        words += [
            str(value) if axis in AXES else f"{axis.rsplit('.', 1)[-1]}={value}"
            for axis, (_, value) in point.items()
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
            teach=self.part("teach", self.base.teach, seed),
            distill=self.part("distill", self.base.distill, seed),
            method=self.part("method", self.base.method),
            threads=self.file.threads,
            changes=self.changes(),
            paper=self.paper,
        )

    def said(self, name: str) -> tuple[Where, Any] | None:
        """Where ``name`` is said for this variant, and what: in the grid, the cell or the file."""
        if name in self.point:
            number, value = self.point[name]
            return ("grid", name, number), value
        for where, choices in ((self.where, self.cell), ((), self.file)):
            if choices is not None and choices.says(name):
                return (*where, name), getattr(choices, name)
        return None

    def choice(self, name: str, kind: str, options: Mapping[str, Any] | tuple[str, ...]) -> str:
        found = self.said(name)
        if found is None:
            return str(getattr(self.file, name))
        where, value = found
        text = self.source.validated(_Text, {"value": value}, where[:-1]).value
        return chosen(self.source, where, kind, text, options)

    def data_choice(self) -> Data:
        found = self.said("data")
        if found is None:
            raise self.source.refuse((), "'data' is missing: name the data set.")
        where, value = found
        if isinstance(value, Data):
            return value
        return self.source.validated(_DataAxis, {"value": value}, where).value

    def network(self, role: str) -> str:
        if "pair" in self.point:
            where, value = self.said("pair") or ((), "")
            names = [part.strip() for part in str(value).split(">")]
            if len(names) != 2 or not all(names):
                raise self.source.refuse(
                    where, f"{value!r} is not a pair: write teacher > student."
                )
            name = names[role == "student"]
        else:
            where, name = self.said(role) or ((), getattr(self.base, role))
        if not isinstance(name, str) or not name:
            raise self.source.refuse(where, f"'{role}' is {name!r}, not the name of a network.")
        return self.checked(where, lambda: _existing(name))

    def checked(self, where: Where, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except InputError as error:
            raise self.source.refuse(where, str(error)) from None

    # --- settings

    def settings(self) -> dict[str, Any]:
        """The file's, the cell's and the grid's settings, each checked where it stands."""
        model = settings_model(self.method)
        tree: dict[str, Any] = {}
        for where, choices in (((), self.file), (self.where, self.cell)):
            if choices is not None and choices.settings:
                place = (*where, "settings")
                checked = self.source.validated(model, choices.settings, place)
                self.note(choices.settings, place, ())
                tree = merged(tree, checked.model_dump(exclude_unset=True))
        for axis, (number, value) in self.point.items():
            if axis not in AXES:
                nested = nested_in(axis, value)
                where = ("grid", axis, number)
                checked = self.checked_axis(model, nested, where)
                self.note(value, where, tuple(axis.split(".")))
                tree = merged(tree, checked.model_dump(exclude_unset=True))
        return tree

    def checked_axis(self, model: Any, nested: dict[str, Any], where: Where) -> Any:
        try:
            return self.source.validated(model, nested, ())
        except InputError as error:  # its line is that of the file: the grid has no such nesting
            message = re.sub(r"^:\d+: ", "", str(error).removeprefix(str(self.source.path)))
            raise self.source.refuse(where, message) from None

    def note(self, value: Any, where: Where, setting: Where) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                self.note(inner, (*where, key), (*setting, key))
        else:
            self.leaves[setting] = where

    def part(self, name: str, settings: Any, seed: int | None = None) -> Any:
        """The settings of one part with their changes; a refusal names the line to blame."""
        changes = self.tree.get(name, {}) | ({} if seed is None else {"seed": seed})
        try:
            return replaced(settings, changes)
        except InputError as error:
            raise self.source.refuse(self.blamed(name, settings, str(error)), str(error)) from None

    def blamed(self, name: str, settings: Any, message: str) -> Where:
        """The change that is refused on its own, else one that the message names, else any."""
        mine = {path[1:]: where for path, where in self.leaves.items() if path[0] == name}
        for path, where in mine.items():
            try:
                replaced(
                    settings, nested_in(".".join(map(str, path)), part_at(self.tree[name], path))
                )
            except (KeyError, TypeError):  # taken away by what comes after it: attention: null
                continue
            except InputError as error:
                if str(error) == message:
                    return where
        words = re.findall(r"\w+", message)
        named = [where for path, where in mine.items() if path[-1] in words]
        return [*named, *mine.values(), self.where][0]

    def changes(self) -> dict[str, Any]:
        """What the cell and the grid change in the file's settings."""
        tree = self.cell.settings if self.cell is not None else {}
        for axis, (_, value) in self.point.items():
            if axis not in AXES:
                tree = merged(tree, nested_in(axis, value))
        return tree

    # --- the paper's number

    def paper_cell(self) -> dict[str, Any] | None:
        found = self.said("paper")
        if found is None:
            return None
        where, paper = found
        assert isinstance(paper, Paper)
        rows = self.checked((*where, "table"), lambda: paper_table(paper.table))
        for key, value in paper.row.items():
            chosen(self.source, (*where, "row", key), "column", key, rows[0])
            known = {row[key] for row in rows}
            chosen(self.source, (*where, "row", key), key, value, sorted(known))
        chosen(self.source, (*where, "column"), "column", paper.column, rows[0])
        fitting = [r for r in rows if all(r[key] == value for key, value in paper.row.items())]
        if len(fitting) != 1:
            what = f"{len(fitting)} rows of {paper.table} fit {paper.row}, not one."
            raise self.source.refuse((*where, "row"), what)
        number = fitting[0][paper.column]
        try:
            accuracy = float(number) / 100 if number else None
        except ValueError:
            accuracy = -1.0
        if accuracy is not None and (not 0 < accuracy <= 1 or paper.column in _NOT_ACCURACIES):
            what = f"the column '{paper.column}' does not hold accuracies."
            raise self.source.refuse((*where, "column"), what)
        return {**paper.model_dump(), "accuracy": accuracy}


_NOT_ACCURACIES = ("resolution", "classes", "lambda")


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
