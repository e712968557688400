"""Reads an experiment's YAML as plain data with lines, and checks what may stand there."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from dfkd_lite.data import SIZES
from dfkd_lite.distill import DistillConfig
from dfkd_lite.errors import InputError, unknown
from dfkd_lite.methods import METHODS
from dfkd_lite.settings import SettingError, checked, leaves
from dfkd_lite.teach import TeachConfig

Where = tuple[str | int, ...]  # the way to a piece of the file: ("cells", 0, "name")

#: What can be varied in a grid besides settings.
AXES = ("data", "teacher", "student", "pair", "method")
#: The groups of settings.
PARTS = ("teach", "distill", "method")

MAX_DEPTH = 20
_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str")}


@dataclass(frozen=True)
class Source:
    """Holds a parsed file: its content as plain data, and the line of each piece, from 0."""

    path: Path
    content: dict[str, Any]
    lines: dict[Where, int]

    def line(self, where: Where) -> int:
        """Return the line of ``where``, or of the nearest piece around it; the first is 1."""
        while where not in self.lines:
            where = where[:-1]
        return self.lines[where] + 1

    def refuse(self, where: Where, message: str) -> InputError:
        """Make an error that begins with the file and the line of ``where``."""
        return InputError(f"{self.path}:{self.line(where)}: {message}")

    @contextmanager
    def at(self, where: Where) -> Iterator[None]:
        """Give what is refused within the block the line of ``where``."""
        try:
            yield
        except InputError as error:
            raise self.refuse(where, str(error)) from None

    def validated(self, kind: Any, value: Any, where: Where) -> Any:
        """Turn ``value``, found at ``where``, into ``kind``: a model or another type.

        Raises:
            InputError: the first thing that does not fit, with its line.
        """
        try:
            return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            # a name that is not known explains why another is missing
            first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
            place = (*where, *first["loc"])
            raise self.refuse(place, _sentence(first, place)) from None

    def settings(
        self, method: str, changes: dict[str, Any], where: Where, skip: int = 0
    ) -> tuple[dict[str, Any], dict[Where, Where]]:
        """Check settings found at ``where``; return them, and the place of each in the file.

        ``skip`` names of the way to a setting stand in ``where`` already, joined by dots.

        Raises:
            InputError: a name that is not known, a value of another type, with its line.
        """
        parts = (TeachConfig, DistillConfig, METHODS[method].Config)
        try:
            found = checked(make_dataclass("settings", zip(PARTS, parts, strict=True)), changes)
        except SettingError as error:
            raise self.refuse((*where, *error.path[skip:]), str(error)) from None
        places: dict[Where, Where] = {path: (*where, *path[skip:]) for path in leaves(found)}
        for path, place in places.items():
            if path[-1] == "seed":
                raise self.refuse(place, "the seed is no setting: give it in 'seeds'.")
        return found, places


# --- YAML, and nothing in it that is not plain data ------------------------------------------


def parse(path: Path) -> Source:
    """Read a YAML file.

    Raises:
        InputError: it is not UTF-8, not YAML, or holds more than mappings, lists, text, numbers.
    """
    try:
        content = path.read_bytes()
        text = content.decode()
        node = yaml.compose(text, Loader=_Loader)
        if not isinstance(node, yaml.MappingNode):
            problem = "an experiment is lines of 'name: value', 'about' first."
            raise _Refused(node.start_mark.line if node else 0, problem)
        lines: dict[Where, int] = {}
        return Source(path, _plain(node, (), lines), lines)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start)
        message = f"this is not text in UTF-8 ({error.reason})."
    except yaml.reader.ReaderError as error:  # its position counts characters
        line, message = text.count("\n", 0, error.position), f"this is not YAML ({error.reason})."
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, message = mark.line if mark else 0, f"this is not YAML ({error.problem})."
    except _Refused as error:
        line, message = error.args
    raise InputError(f"{path}:{line + 1}: {message}")


class _Refused(Exception):
    """Refuses a piece of YAML: holds its line, from 0, and what to say of it."""


class _Loader(yaml.SafeLoader):
    """Refuses anchors, aliases and deep nesting before anything recurses into them."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        line = event.start_mark.line
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            message = f"anchors and aliases ('{event.anchor}') are not read: write it out."
            raise _Refused(line, message)
        if self.depth == MAX_DEPTH:
            raise _Refused(line, "this is nested too deeply.")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _plain(node: yaml.Node, where: Where, lines: dict[Where, int]) -> Any:
    """Turn the node at ``where`` into plain data, and note the line of each piece in ``lines``."""
    line, kind = node.start_mark.line, node.tag.rpartition(":")[2]
    lines.setdefault(where, line)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_plain(item, (*where, number), lines) for number, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode) and kind == "map":
        found: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line
            if key.tag != "tag:yaml.org,2002:str":
                raise _Refused(line, f"'{key.value}' is no name: names are text, in quotes.")
            if key.value in found:
                raise _Refused(line, f"'{key.value}' is given twice.")
            lines[*where, key.value] = line
            found[key.value] = _plain(value, (*where, key.value), lines)
        return found
    name = ".".join(map(str, where))
    if node.tag not in _SCALARS:
        raise _Refused(line, f"this is a {kind}: give text in quotes, numbers, lists.")
    try:
        value = yaml.constructor.SafeConstructor().construct_object(node)
        str(value).encode()
    except (ValueError, KeyError, yaml.YAMLError) as error:
        raise _Refused(line, f"'{name}' cannot be read ({str(error)[:80]}).") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise _Refused(line, f"'{name}' is {node.value}, not a finite number.")
    return value


# --- What may stand in it ----------------------------------------------------------------------


Text = Annotated[str, Field(min_length=1)]
#: What becomes a part of a file's name.
Name = Annotated[str, Field(min_length=1, max_length=120, pattern=r"[A-Za-z0-9]")]


class Data(BaseModel, extra="forbid"):
    """Names a data set, and the side of its images in pixels; also as ``pathmnist@64``."""

    name: Text
    size: Annotated[int, Field(ge=SIZES[0], le=SIZES[1])] | None = None

    @model_validator(mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        name, at, size = value.rpartition("@")
        number = size.isascii() and size.isdigit()
        return {"name": name, "size": int(size)} if at and number else {"name": value}


class Paper(BaseModel, extra="forbid"):
    """Points to a number of the paper to set beside: a table, a row and a column."""

    table: Name
    row: dict[str, str]
    column: Name = "paper"
    differs: str = ""  # what is not as in the paper: resolution, version of the data


class Choices(BaseModel, extra="forbid"):
    """Lists what the file as a whole and each cell can say; the rest is the preset's."""

    preset: Name = "lite"
    data: Data = Data(name="none")
    teacher: Name = ""
    student: Name = ""
    method: Name = "fssc"
    settings: dict[str, Any] = {}
    paper: Paper = Paper(table="none", row={"none": ""})


class Cell(Choices):
    """Describes a variant."""

    name: Name


class File(Choices):
    """Describes a whole experiment."""

    about: Text
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field(min_length=1)
    threads: int = Field(default=1, ge=1, le=1024)
    cells: list[Cell] = Field(default=[], min_length=1)
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default={}, min_length=1)


# --- What to say of a mistake ------------------------------------------------------------------


def _sentence(error: Any, place: Where) -> str:
    name = ".".join(map(str, place))
    if error["type"] == "missing":
        return f"'{name}' is missing."
    if error["type"] == "extra_forbidden":
        return unknown(str(place[-1]), _names_at(place[:-1]), name)
    if error["type"] in ("model_type", "model_attributes_type"):
        known = ", ".join(_names_at(place))
        return f"'{name}' is {error['input']!r}; expected: text, or names with values ({known})."
    expected = error["msg"].removeprefix("Input should be ").removeprefix("a ")
    return f"'{name}' is {error['input']!r}; expected: {expected}."


def _names_at(place: Where) -> list[str]:
    """List the names that can stand in the mapping at ``place``."""
    inside: dict[str, type[BaseModel]] = {"cells": Cell, "data": Data, "paper": Paper}
    found = [inside[part] for part in place if isinstance(part, str) and part in inside]
    return list((found or [File])[-1].model_fields)


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings, later ones over earlier ones."""
    result: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            old = result.get(key)
            both = isinstance(old, dict) and isinstance(value, dict)
            result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result
