"""Measured results: one JSON file a run, with what is needed to believe or repeat it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from ..errors import InputError, choose
from ..storage.files import write_json
from ..storage.shipped import SHIPPED

#: The records that ship with the code.
#:
#: :meta hide-value:
RECORDS = SHIPPED / "records"


class Record(BaseModel):
    """What a record holds: the schema that every one is checked against when it is written.

    The fields without a default are needed; ``dfkd run`` fills all of them. Times are in seconds.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    experiment: str
    name: str
    seed: int
    settings: dict[str, Any]  # of teacher, loop and method, every default spelled out
    environment: dict[str, Any]  # code, packages, device, threads: see environment()
    last: dict[str, dict[str, Any]]  # by network: every metric at the last step
    variant: str = ""  # what is special about the run, the same for all its seeds
    changes: list[str] | dict[str, Any] = {}  # settings that differ from the experiment's
    paper: dict[str, Any] | None = None  # the paper's cell set beside, and what differs
    networks: dict[str, str] = {}
    data: dict[str, Any] = {}  # see described()
    parameters: dict[str, int] = {}
    teacher: dict[str, Any] = {}  # checksum and origin of its file
    started: str = ""
    ended: str = ""
    seconds: dict[str, float] = {}  # by phase
    resumed_after: list[int] = []  # episodes after which the run was cut off and went on
    peak_memory_bytes: int | None = None
    diverged: str | None = None  # why there is no last step
    best_on_test: dict[str, Any] | None = None  # chosen by looking at test images: not a result
    history: list[dict[str, float | None]] = []  # one row an episode
    images: dict[str, float] = {}  # the pool against real images: see fidelity.image_report()
    images_png: str = ""  # the last images made, base64


def plain(settings: Any) -> Any:
    """Settings (nested dataclasses) or results as what JSON can hold: tensors only by their shape,
    None for a number that is not finite."""
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


def write_record(record: Mapping[str, Any], folder: str | Path = RECORDS) -> Path:
    """Write ``record`` (see :class:`Record`) to its :func:`record_path`, never over another.

    Raises:
        InputError: it does not fit the schema, or the record exists.
    """
    content = plain(record)
    check_record(content)
    experiment, name = content["experiment"], content["name"]
    path = record_path(experiment, name, folder)
    if name in record_names(experiment, folder):
        raise InputError(f"{path} exists, and records are never overwritten: move it away first.")
    write_json(path, content)
    return path


def record_path(experiment: str, name: str, folder: str | Path = RECORDS) -> Path:
    """Where a record is kept: ``folder/experiment/name.json``."""
    return Path(folder) / experiment / f"{name}.json"


def check_record(content: Mapping[str, Any]) -> None:
    """Hold a record against :class:`Record`.

    Raises:
        InputError: the first thing that does not fit.
    """
    try:
        Record.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise InputError(f"This is not a record: '{name}': {first['msg']}.") from None


def record_names(experiment: str, folder: str | Path = RECORDS) -> list[str]:
    """List the names of an experiment's records in order: an empty list where there are none."""
    written = {path.stem for path in (Path(folder) / experiment).glob("*.json")}
    names = written | _packed_names(_archive(experiment, folder))
    return sorted(names, key=lambda name: f"{name}.json")


def read_records(experiment: str, folder: str | Path = RECORDS) -> list[dict[str, Any]]:
    """Read all records of an experiment, in order of their names.

    They are one JSON file each. In an installed package those that ship are one archive an
    experiment, without ``images_png`` but for seed 0.

    Raises:
        InputError: there are none, or one of them is damaged.
    """
    names = record_names(experiment, folder)
    if not names:
        raise InputError(f"There are no records of '{experiment}' below {folder}.")
    archive = _archive(experiment, folder)
    packed = _packed(archive)
    return [
        _checked(packed[name], archive)
        if name in packed
        else _read(record_path(experiment, name, folder))
        for name in names
    ]


def _archive(experiment: str, folder: str | Path) -> Path:
    """Where an installed package keeps the records of an experiment: ``setup.py`` writes it."""
    return Path(folder) / f"{experiment}.json.xz"


def _packed(archive: Path) -> dict[str, dict[str, Any]]:
    """The records in an archive by name; none where there is no archive."""
    if not archive.is_file():
        return {}
    import lzma  # a Python that was built without it can still read a checkout

    try:
        return json.loads(lzma.decompress(archive.read_bytes()))
    except (OSError, ValueError, lzma.LZMAError) as error:
        raise InputError(f"{archive} is damaged ({error}): install the package again.") from None


@cache  # asked for each run of an experiment, and an archive never changes
def _packed_names(archive: Path) -> frozenset[str]:
    return frozenset(_packed(archive))


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged or not a record ({error}): get it again.") from None
    return _checked(record, path)


def _checked(record: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        check_record(record)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return record


def read_variants(
    names: Sequence[str], experiment: str = "variants", folder: str | Path = RECORDS
) -> dict[str, list[dict[str, Any]]]:
    """The records of an experiment by variant, in order of their seeds.

    All variants of a seed share its teacher. In the experiment ``variants``, ``lite`` is the one in
    which nothing is changed.

    Raises:
        InputError: no records of a name; the nearest is offered.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for record in read_records(experiment, folder):
        found.setdefault(record["variant"], []).append(record)
    return {
        name: sorted(found[choose("variant", name, found)], key=lambda record: record["seed"])
        for name in names
    }
