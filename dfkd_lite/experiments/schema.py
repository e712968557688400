"""Reading an experiment's YAML: plain data, the line of each piece, and what may stand there."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from ..data import SIZES
from ..distill import DistillConfig
from ..errors import InputError, choose
from ..methods import METHODS
from ..teach import TeachConfig

Where = tuple[str | int, ...]  # the way to a piece of the file: ("cells", 0, "name")

#: What can be varied in a grid besides settings.
AXES = ("data", "teacher", "student", "pair", "method")
#: The groups of settings.
PARTS = ("teach", "distill", "method")

MAX_DEPTH = 20
_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str")}


@dataclass(frozen=True)
class Source:
    """A parsed file: its content as plain data, and the line of each piece."""

    path: Path
    content: dict[str, Any]
    lines: Mapping[Where, int]

    def refuse(self, where: Where, message: str) -> InputError:
        """An error with the line of ``where``, or of the nearest piece around it."""
        while where not in self.lines:
            where = where[:-1]
        return InputError(f"{self.path}:{self.lines[where]}: {message}")

    def validated(self, model: type[BaseModel], value: Any, where: Where) -> Any:
        """``value``, found at ``where``, as ``model``.

        Raises:
            InputError: the first thing that does not fit, with its line.
        """
        try:
            return model.model_validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            # a name that is not known explains why another is missing
            first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
            place = (*where, *first["loc"])
            raise self.refuse(place, _sentence(first, place, model)) from None


# --- YAML, and nothing in it that is not plain data ------------------------------------------


def parse(path: Path) -> Source:
    """Read a file.

    Raises:
        InputError: it is not UTF-8, not YAML, or holds more than mappings, lists, text, numbers.
    """
    try:
        content = path.read_bytes()
        text = content.decode()
        _check_depth(path, text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: this is not text in UTF-8 ({error.reason}).") from None
    except yaml.reader.ReaderError as error:  # its position counts characters
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"{path}:{line}: this is not YAML ({error.reason}).") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise InputError(f"{path}:{line}: this is not YAML ({error.problem}).") from None
    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1 if node else 1
        raise InputError(f"{path}:{line}: an experiment is lines of 'name: value', 'about' first.")
    reader = _Reader(path)
    return Source(path, reader.value(node, ()), reader.lines)


def _check_depth(path: Path, text: str) -> None:
    """Before anything recurses into the file."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise InputError(f"{path}:{line}: this is nested too deeply.")


class _Reader:
    """Turns the nodes of a file into plain data and notes their lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Where, int] = {}
        self.seen: set[int] = set()
        self.constructor = yaml.constructor.SafeConstructor()

    def value(self, node: yaml.Node, where: Where) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(where, line)
        if id(node) in self.seen:
            raise self.error(line, "anchors and aliases (& and *) are not read: write it out.")
        self.seen.add(id(node))
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self.mapping(node, where)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self.value(item, (*where, n)) for n, item in enumerate(node.value)]
        return self.scalar(node, line, ".".join(map(str, where)))

    def mapping(self, node: yaml.MappingNode, where: Where) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise self.error(line, f"'{key.value}' is no name: names are text, in quotes.")
            if key.value in found:
                raise self.error(line, f"'{key.value}' is given twice.")
            self.lines[*where, key.value] = line
            found[key.value] = self.value(value, (*where, key.value))
        return found

    def scalar(self, node: yaml.Node, line: int, name: str) -> Any:
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _SCALARS:
            kind = node.tag.rpartition(":")[2]
            raise self.error(line, f"this is a {kind}: give text in quotes, numbers, lists.")
        try:
            value = self.constructor.construct_object(node)
            str(value).encode()
        except (ValueError, KeyError, yaml.YAMLError) as error:
            raise self.error(line, f"'{name}' cannot be read ({str(error)[:80]}).") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise self.error(line, f"'{name}' is {node.value}, not a finite number.")
        return value

    def error(self, line: int, message: str) -> InputError:
        return InputError(f"{self.path}:{line}: {message}")


# --- What may stand in it ----------------------------------------------------------------------


class Strict(BaseModel):
    """Knows its names and their types, and takes nothing else."""

    model_config = ConfigDict(extra="forbid")


Text = Annotated[str, Field(min_length=1)]
#: What becomes a part of a file's name.
Name = Annotated[str, Field(min_length=1, max_length=120, pattern=r"[A-Za-z0-9]")]


class Data(Strict):
    """A data set by name, and the side of its images in pixels."""

    name: Text
    size: Annotated[int, Field(ge=SIZES[0], le=SIZES[1])] | None = None


def data(value: Any) -> Any:
    """``pathmnist@64`` as a name and a size; anything else as it is."""
    if not isinstance(value, str):
        return value
    name, at, size = value.rpartition("@")
    number = size.isascii() and size.isdigit()
    return {"name": name, "size": int(size)} if at and number else {"name": value}


DataChoice = Annotated[Data, BeforeValidator(data)]


class Paper(Strict):
    """A number of the paper's to set beside: of one row of a table."""

    table: Name
    row: dict[str, str]
    column: Name = "paper"
    differs: str = ""  # what is not as in the paper: resolution, version of the data


class Choices(Strict):
    """What the file as a whole and each cell can say; what is not said is the preset's."""

    preset: Name = "lite"
    data: DataChoice = Data(name="none")
    teacher: Name = ""
    student: Name = ""
    method: Name = "fssc"
    settings: dict[str, Any] = {}
    paper: Paper = Paper(table="none", row={"none": ""})

    def says(self, name: str) -> bool:
        """Whether ``name`` was given."""
        return name in self.model_fields_set


class Cell(Choices):
    """A variant."""

    name: Name


class File(Choices):
    """A whole experiment."""

    about: Text
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field(min_length=1)
    threads: int = Field(default=1, ge=1, le=1024)
    cells: list[Cell] = Field(default=[], min_length=1)
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default={}, min_length=1)


@cache
def settings_model(method: str) -> type[BaseModel]:
    """Some of the settings of teacher, loop and ``method``, with their types."""
    parts = (TeachConfig, DistillConfig, METHODS[method].Config)
    fields = {name: (_partial(part), None) for name, part in zip(PARTS, parts, strict=True)}
    return create_model("settings", __base__=Strict, **typing.cast(Any, fields))


def _partial(settings: type) -> type[BaseModel]:
    hints = typing.get_type_hints(settings)
    names = [f.name for f in dataclasses.fields(settings) if f.name != "seed"]  # that is the run's
    fields = {name: (_field(hints[name]), None) for name in names}
    return create_model(settings.__name__, __base__=Strict, **typing.cast(Any, fields))


def _field(hint: Any) -> Any:
    """A dataclass becomes partial, also where it may be None; all else keeps its type."""
    if dataclasses.is_dataclass(hint):
        return _partial(typing.cast(type, hint))
    if isinstance(hint, types.UnionType):
        first, none = typing.get_args(hint)
        return _field(first) | none
    return hint


# --- What to say of a mistake ------------------------------------------------------------------


def _sentence(error: Any, place: Where, model: type[BaseModel]) -> str:
    name = ".".join(map(str, place))
    if error["type"] == "missing":
        return f"'{name}' is missing."
    if error["type"] == "extra_forbidden":
        *outer, wrong = error["loc"]
        return unknown(str(wrong), _names_at(model, outer), name)
    if error["type"] in ("model_type", "model_attributes_type"):
        known = ", ".join(_names_at(model, list(error["loc"])))
        return f"'{name}' is {error['input']!r}; expected: text, or names with values ({known})."
    expected = error["msg"].removeprefix("Input should be ").removeprefix("a ")
    hint = ""
    if expected == "valid number" and re.fullmatch(r"[\d.]+e[+-]?\d+", str(error["input"]), re.I):
        hint = f" (YAML takes this for text: write {float(error['input']):.1e})"
    return f"'{name}' is {error['input']!r}; expected: {expected}{hint}."


def unknown(wrong: str, known: typing.Sequence[str], name: str = "") -> str:
    """That ``wrong`` is not known, the nearest of ``known``, and all of them."""
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.4)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"'{name or wrong}' is not known.{hint} Known here: {', '.join(known)}."


def _names_at(model: type[BaseModel], outer: list) -> list[str]:
    """The names that can stand in the mapping to which ``outer`` leads."""
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


def chosen(
    source: Source, where: Where, kind: str, name: str, options: typing.Iterable[str]
) -> str:
    """``choose``, with a line."""
    try:
        return choose(kind, name, options)
    except InputError as error:
        raise source.refuse(where, str(error)) from None


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, later ones over earlier ones."""
    result: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            old = result.get(key)
            both = isinstance(old, dict) and isinstance(value, dict)
            result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def nested_in(dotted: str, value: Any) -> dict[str, Any]:
    """``method.beta`` and 0 as ``{"method": {"beta": 0}}``."""
    tree = value
    for part in reversed(dotted.split(".")):
        tree = {part: tree}
    return tree


def part_at(tree: Any, path: Where) -> Any:
    """What stands in a file at the end of a way."""
    for part in path:
        tree = tree[part]
    return tree
