"""What is to be measured, as a file: one YAML -> a list of runs, each fully spelled out.

A file names data, networks, method and seeds, changes settings of a preset, and may vary any of
them: ``cells`` lists variants by name, ``grid`` multiplies lists. Everything is checked when the
file is read; a wrong name or value is refused with its line, what was expected, and the nearest
name. ``data/experiments/`` has files to copy from.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from .distill import DistillConfig
from .errors import InputError, choose
from .methods import METHODS
from .networks import build
from .presets import preset, replaced
from .shipped import SHIPPED, paper_table
from .teach import TeachConfig

#: The experiments that ship with the code.
#:
#: :meta hide-value:
EXPERIMENTS = SHIPPED / "experiments"

#: Methods that an experiment can name; "given" would need images.
RUNNABLE = tuple(name for name in METHODS if name != "given")

#: What can be varied besides settings.
AXES = ("data", "teacher", "student", "pair", "method")


@dataclass(frozen=True)
class Run:
    """One teacher, one student, one seed: everything that its result depends on.

    ``experiment`` is the file's name and the folder of the record, ``name`` the record's own;
    ``variant`` says what is special about it, the same for all seeds, and ``title`` says it in
    words. ``data`` is the name or path
    of the data, ``size`` its side in pixels (None: its own). ``threads`` are torch's on the CPU:
    another number adds up in another order. ``paper`` is the paper's cell to set beside, if any:
    ``table``, ``row``, ``column``, and what ``differs``.
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
    path = _found(path)
    lines, content = _parse(path)
    text = _as_json(path, content)
    try:
        file = _File.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise InputError(_explained(path, lines, error)) from None
    runs = list(_runs(path, lines, file))
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: two runs are called '{name}': give the cells other names.")
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
            choose(key, value, dict.fromkeys(values))
    return runs


# --- What a file may hold ----------------------------------------------------------------------


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _partial(settings: type) -> type[BaseModel]:
    """A model of some of a dataclass's fields, with their types."""
    hints = typing.get_type_hints(settings)
    names = [f.name for f in dataclasses.fields(settings) if f.name != "seed"]  # that is the run's
    fields = {name: (_field(hints[name]), None) for name in names}
    return create_model(settings.__name__, __base__=_Strict, **typing.cast(Any, fields))


def _field(hint: Any) -> Any:
    """A dataclass becomes partial, also where it may be None; all else keeps its type."""
    if dataclasses.is_dataclass(hint):
        return _partial(typing.cast(type, hint))
    if isinstance(hint, types.UnionType):
        first, none = typing.get_args(hint)
        return _field(first) | none
    return hint


@cache
def _settings_model(method: str) -> type[BaseModel]:
    return create_model(
        "settings",
        __base__=_Strict,
        teach=(_partial(TeachConfig), None),
        distill=(_partial(DistillConfig), None),
        method=(_partial(METHODS[method].Config), None),
    )


class _Data(_Strict):
    name: str
    size: int | None = None


def _data(text: str) -> _Data:
    """``pathmnist@64``: a name and a size."""
    name, at, size = text.rpartition("@")
    return _Data(name=name, size=int(size)) if at and size.isdigit() else _Data(name=text)


class _Paper(_Strict):
    table: str
    row: dict[str, str]
    column: str = "paper"
    differs: str = ""  # what is not as in the paper: resolution, version of the data


class _Choices(_Strict):
    """What the file as a whole and each cell can say."""

    preset: str | None = None
    data: Annotated[_Data, BeforeValidator(lambda v: _data(v) if isinstance(v, str) else v)] = (
        Field(default=_Data(name=""))
    )
    teacher: str = ""
    student: str = ""
    method: str = ""
    settings: dict[str, Any] = {}
    paper: _Paper | None = None


class _Cell(_Choices):
    name: str


class _File(_Choices):
    about: str
    seeds: list[int] = Field(min_length=1)
    threads: int = Field(default=1, ge=1)
    cells: list[_Cell] = Field(default=[])
    grid: dict[str, list[Any]] = {}


# --- From the file to runs ---------------------------------------------------------------------


def _runs(path: Path, lines: dict[tuple, int], file: _File) -> Iterator[Run]:
    cells: list[tuple[tuple, _Choices]] = [
        (("cells", number), cell) for number, cell in enumerate(file.cells)
    ]
    axes = [[(name, value) for value in values] for name, values in file.grid.items()]
    for (where, cell), *point in itertools.product(cells or [((), file)], *axes):
        at = _Place(path, lines, where)
        for seed in file.seeds:
            yield _run(at, path.stem, file, cell, dict(point), seed)


@dataclass(frozen=True)
class _Place:
    """Where in the file something was said, for messages."""

    path: Path
    lines: Mapping[tuple, int]
    where: tuple

    def refuse(self, message: str, *names: str) -> InputError:
        """The message with the line of the innermost of ``names`` that the file has."""
        keys = [key for key in self.lines if key and key[-1] in names]
        inside = [key for key in keys if key[: len(self.where)] == self.where] or keys
        line = self.lines[inside[0] if inside else self.where]
        return InputError(f"{self.path}:{line}: {message}")

    def checked(self, make: Callable[[], Any]) -> Any:
        """What ``make`` gives; what it refuses is refused with a line."""
        try:
            return make()
        except InputError as error:
            words = re.findall(r"[\w-]+", str(error))
            raise self.refuse(str(error), *words) from None


def _run(
    at: _Place, experiment: str, file: _File, cell: _Choices, point: dict[str, Any], seed: int
) -> Run:
    said = {k: str(v) for k, v in point.items() if k in AXES}
    if "pair" in said:
        said["teacher"], arrow, said["student"] = map(str.strip, said["pair"].partition(">"))
        if not arrow:
            raise at.refuse(f"'{said['pair']}' is not a pair: write teacher > student.", "pair")
    base = at.checked(partial(preset, cell.preset or file.preset or "lite"))
    data = _data(said["data"]) if "data" in said else cell.data if cell.data.name else file.data
    if not data.name:
        raise at.refuse("'data' is missing: name the data set.", "about")
    method = said.get("method") or cell.method or file.method or "fssc"
    at.checked(partial(choose, "method", method, RUNNABLE))
    changes = {k: v for k, v in point.items() if k not in AXES}
    tree = _merged(file.settings, cell.settings if cell is not file else {}, _nested(changes))
    _check_settings(at, method, tree)
    default = METHODS[method].Config
    settings = base.method if isinstance(base.method, default) else default()
    networks = {
        role: said.get(role) or getattr(cell, role) or getattr(file, role) or getattr(base, role)
        for role in ("teacher", "student")
    }
    for network in networks.values():
        at.checked(partial(_check_network, network))
    words = [cell.name] if isinstance(cell, _Cell) else []
    words += [str(v) if k in AXES else f"{k.rsplit('.', 1)[-1]}={v}" for k, v in point.items()]
    words = words or [" > ".join(networks.values())]
    variant = "_".join(map(_slug, words))
    build = _Builder(at, tree, seed)
    paper = cell.paper or file.paper
    return Run(
        experiment=experiment,
        name=f"{variant}_seed{seed}",
        variant=variant,
        title=", ".join(words),
        seed=seed,
        data=data.name,
        size=data.size,
        **networks,
        teach=build("teach", base.teach),
        distill=build("distill", base.distill),
        method=build("method", settings),
        threads=file.threads,
        changes=_merged(cell.settings if cell is not file else {}, _nested(changes)),
        paper=None if paper is None else _checked_row(at, paper),
    )


@dataclass(frozen=True)
class _Builder:
    at: _Place
    tree: dict[str, Any]
    seed: int

    def __call__(self, part: str, settings: Any) -> Any:
        changes = dict(self.tree.get(part, {}))
        if part != "method":
            changes["seed"] = self.seed
        return self.at.checked(partial(replaced, settings, changes))


def _check_settings(at: _Place, method: str, tree: dict[str, Any]) -> None:
    """Names and types of all settings, with the lines where they stand."""
    try:
        _settings_model(method).model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        names = [str(part) for part in first["loc"]]
        message = _sentence(first, "settings." + ".".join(names), _settings_model(method))
        raise at.refuse(message, names[-1], ".".join(names)) from None


def _checked_row(at: _Place, paper: _Paper) -> dict[str, Any]:
    """``paper`` with the number found there: exactly one row fits, and the column exists."""
    rows = at.checked(partial(paper_table, paper.table))
    for key in paper.row:
        at.checked(partial(choose, "column", key, rows[0]))
    at.checked(partial(choose, "column", paper.column, rows[0]))
    fitting = [r for r in rows if all(r[key] == value for key, value in paper.row.items())]
    if len(fitting) != 1:
        raise at.refuse(f"{len(fitting)} rows of {paper.table} fit {paper.row}, not one.", "paper")
    number = fitting[0][paper.column]
    return {**paper.model_dump(), "accuracy": float(number) / 100 if number else None}


def _merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, later ones over earlier ones."""
    result: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            old = result.get(key)
            both = isinstance(old, dict) and isinstance(value, dict)
            result[key] = _merged(typing.cast(dict, old), value) if both else value
    return result


def _nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """``{"method.beta": 0}`` as ``{"method": {"beta": 0}}``."""
    result: dict[str, Any] = {}
    for path, value in dotted.items():
        tree: Any = value
        for part in reversed(path.split(".")):
            tree = {part: tree}
        result = _merged(result, tree)
    return result


def _check_network(name: str) -> None:
    with torch.device("meta"):  # nothing is allocated
        build(name, classes=2)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.=_-]+", "-", text.lower().replace(" > ", "_")).strip("-")


# --- The file itself ---------------------------------------------------------------------------


def _found(path: str | Path) -> Path:
    given = Path(path)
    if given.is_file():
        return given
    known = {p.stem: p for p in sorted(EXPERIMENTS.glob("*.yaml"))}
    if given.suffix or len(given.parts) > 1:
        near = difflib.get_close_matches(given.stem, known, n=1, cutoff=0.4)
        hint = f" Did you mean {known[near[0]]}?" if near else ""
        raise InputError(f"There is no file {given}.{hint}")
    return known[choose("experiment", str(path), known)]


def _parse(path: Path) -> tuple[dict[tuple, int], Any]:
    """The line of every key and item, by its place in the file, and the content."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file in UTF-8.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: this is not YAML ({error.problem}).") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: an experiment starts with 'about: ...', one name a line.")
    return dict(_lines(path, node, ())), content


def _lines(path: Path, node: Any, where: tuple) -> Iterator[tuple[tuple, int]]:
    yield where, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise InputError(f"{path}:{line}: '{key.value}' is given twice.")
            seen.add(key.value)
            yield from _lines(path, value, (*where, key.value))
            yield (*where, key.value), line
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _lines(path, item, (*where, number))


def _as_json(path: Path, content: Any) -> str:
    try:
        return json.dumps(content)
    except TypeError as error:
        raise InputError(f"{path}: {error}; give text in quotes, numbers, lists.") from None


def _explained(path: Path, lines: Mapping[tuple, int], error: ValidationError) -> str:
    """The first thing wrong, with its line."""
    first = error.errors()[0]
    where = first["loc"]
    while where not in lines:
        where = where[:-1]
    message = _sentence(first, ".".join(map(str, first["loc"])), _File)
    return f"{path}:{lines[where]}: {message}"


def _sentence(error: Any, name: str, model: type[BaseModel]) -> str:
    if error["type"] == "missing":
        return f"'{name}' is missing."
    if error["type"] == "extra_forbidden":
        *outer, wrong = error["loc"]
        known = _names_at(model, outer)
        near = difflib.get_close_matches(str(wrong), known, n=1, cutoff=0.4)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return f"'{name}' is not known.{hint} Known here: {', '.join(known)}."
    expected = error["msg"].removeprefix("Input should be ").removeprefix("a ")
    return f"'{name}' is {error['input']!r}; expected: {expected}."


def _names_at(model: type[BaseModel], outer: list) -> list[str]:
    for part in outer:
        if isinstance(part, str) and part in model.model_fields:
            hint = model.model_fields[part].annotation
            inside = [h for h in (hint, *_arguments(hint)) if isinstance(h, type)]
            models = [h for h in inside if issubclass(h, BaseModel)]
            model = models[0] if models else model
    return list(model.model_fields)


def _arguments(hint: Any) -> Iterator[Any]:
    for argument in typing.get_args(hint):
        yield argument
        yield from _arguments(argument)
