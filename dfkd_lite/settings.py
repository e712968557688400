"""Changes single settings by name: ``method.beta=0`` on the command line, the same in a file."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from .errors import InputError, unknown

Names = tuple[str, ...]  # the way to a setting: ("generator", "width")


class SettingError(InputError):
    """Refuses a change of a setting. ``path`` leads to the setting, or to the group it is in."""

    def __init__(self, message: str, path: Names) -> None:
        super().__init__(message)
        self.path = path


def override(settings: Any, assignments: list[str]) -> Any:
    """Change settings by ``name=value`` or ``part.name=value``.

    Values are Python literals; a bare word is a string.

    Args:
        settings: a dataclass, whose fields may be dataclasses.
        assignments: what to change, all at once.

    Raises:
        InputError: no such setting (the nearest is offered), or a value of the wrong type.
    """
    tree: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"'{assignment}' is not a setting: write name=value.")
        *parts, name = path.strip().split(".")
        branch = tree
        for part in parts:
            branch = branch.setdefault(part, {})
            if not isinstance(branch, dict):
                raise InputError(f"'{part}' is set as a whole and in part: set it once.")
        branch[name] = _literal(text.strip())
    return changed(settings, checked(type(settings), tree))


def checked(kind: type, changes: Mapping[str, Any], path: Names = ()) -> dict[str, Any]:
    """Check changes against the names and types of the settings that they are meant for.

    Args:
        kind: the settings' class, a dataclass.
        changes: values by name, nested as the settings are, as JSON or a Python literal gives them.
        path: the way to these settings, for messages.

    Returns:
        The changes with each value of its setting's type: 1 becomes 1.0, a list a tuple.

    Raises:
        SettingError: a name that is not known (the nearest is offered), a value of another type.
    """
    found = {}
    hints = typing.get_type_hints(kind)
    for name, value in changes.items():
        place = (*path, name)
        if name not in hints:
            raise SettingError(unknown(name, hints, ".".join(place)), place)
        part = _dataclass_in(hints[name])
        if part is not None and isinstance(value, Mapping):
            found[name] = checked(part, value, place)
        else:
            found[name] = _checked_value(hints[name], value, place)
    return found


def changed(settings: Any, changes: Mapping[str, Any], path: Names = ()) -> Any:
    """Apply what :func:`checked` gave, all at once, since settings check each other when made.

    Raises:
        SettingError: values out of their range, or that do not fit together.
    """
    new = {}
    for name, value in changes.items():
        if isinstance(value, Mapping):
            part = _dataclass_in(typing.get_type_hints(type(settings))[name])
            old = getattr(settings, name) or part()
            new[name] = changed(old, value, (*path, name))
        else:
            new[name] = value
    try:
        return dataclasses.replace(settings, **new)
    except InputError as error:
        raise SettingError(str(error), path) from None


def leaves(changes: Mapping[str, Any], path: Names = ()) -> dict[Names, Any]:
    """Flatten nested changes: one value for each way to a setting."""
    found: dict[Names, Any] = {}
    for name, value in changes.items():
        inside = isinstance(value, Mapping)
        found |= leaves(value, (*path, name)) if inside else {(*path, name): value}
    return found


def nested(values: Mapping[Names, Any]) -> dict[str, Any]:
    """Nest values by their ways: the inverse of :func:`leaves`."""
    tree: dict[str, Any] = {}
    for (*parts, name), value in values.items():
        branch = tree
        for part in parts:
            branch = branch.setdefault(part, {})
        branch[name] = value
    return tree


def _checked_value(hint: Any, value: Any, place: Names) -> Any:
    name = ".".join(place)
    part = _dataclass_in(hint)
    if part is not None and (value is not None or part is hint):
        inside = ", ".join(typing.get_type_hints(part))
        raise SettingError(f"'{name}' is {value!r}; expected: names with values ({inside}).", place)
    try:
        return _adapter(hint).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        expected = error.errors()[0]["msg"].removeprefix("Input should be ").removeprefix("a ")
    except TypeError:  # a set, bytes
        expected = "a number, text, or a list of numbers"
    if _is_number(value):
        expected += f" (this is text: write {float(value):.1e})"
    raise SettingError(f"'{name}' is {value!r}; expected: {expected}.", place) from None


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))


def _dataclass_in(hint: Any) -> Any:
    """Return the dataclass that a field holds, also one that may be None; else None."""
    return next(filter(dataclasses.is_dataclass, (hint, *typing.get_args(hint))), None)


def _is_number(value: Any) -> bool:
    """Tell whether a value is text that spells a number."""
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def plain(settings: Any) -> Any:
    """Convert settings (nested dataclasses) or results to what JSON can hold: a tensor becomes its
    shape, a number that is not finite None."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        fields = {f.name: plain(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
        return {"kind": type(settings).__name__, **fields}
    if isinstance(settings, Mapping):
        return {str(key): plain(value) for key, value in settings.items()}
    if isinstance(settings, Tensor):
        return {"kind": "Tensor", "shape": list(settings.shape)}
    if isinstance(settings, list | tuple):
        return [plain(value) for value in settings]
    if isinstance(settings, float) and not math.isfinite(settings):
        return None
    return settings
