"""Writes and reads records: one JSON file a run, with all that is needed to repeat the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dfkd_lite.errors import InputError, choose
from dfkd_lite.settings import plain
from dfkd_lite.storage.files import write_json
from dfkd_lite.storage.shipped import SHIPPED

#: The records that ship with the code.
#:
#: :meta hide-value:
RECORDS = SHIPPED / "records"


class Record(BaseModel):
    """Holds a record's fields: each record is checked against them when written and when read.

    Fields without a default are required; ``dfkd run`` fills all fields. Times are in seconds.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    experiment: str
    name: str
    seed: int
    settings: dict[str, Any]  # of teacher, loop and method, every default spelled out
    environment: dict[str, Any]  # code, packages, device, threads: see environment()
    last: dict[str, dict[str, Any]]  # network -> every metric at the last step
    variant: str = ""  # what is special about the run, the same for all its seeds
    changes: list[str] | dict[str, Any] = {}  # settings that differ from the experiment's
    paper: dict[str, Any] | None = None  # the cell of the paper to compare with, and what differs
    networks: dict[str, str] = {}
    data: dict[str, Any] = {}  # see described()
    parameters: dict[str, int] = {}
    teacher: dict[str, Any] = {}  # checksum and origin of its file
    started: str = ""
    ended: str = ""
    seconds: dict[str, float] = {}  # phase -> seconds
    resumed_after: list[int] = []  # episodes at which an interrupted run was resumed
    peak_memory_bytes: int | None = None
    diverged: str | None = None  # why the student has no last step; None where it has
    best_on_test: dict[str, Any] | None = None  # chosen by looking at test images: not a result
    history: list[dict[str, float | None]] = []  # one row an episode
    images: dict[str, float] = {}  # pool compared with real images: fidelity.image_report()
    images_png: str = ""  # a picture of the last images made: PNG in base64


def write_record(record: Mapping[str, Any], folder: str | Path = RECORDS) -> Path:
    """Write ``record`` (see :class:`Record`) to its :func:`record_path`, and return that path.

    Raises:
        InputError: it does not fit the schema, or a record of that name exists.
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
    """Return the file in which a record is kept: ``folder/experiment/name.json``."""
    return Path(folder) / experiment / f"{name}.json"


def check_record(content: Mapping[str, Any]) -> None:
    """Check a record against :class:`Record`.

    Raises:
        InputError: a field is missing, unknown or of a wrong type (the first is named).
    """
    try:
        Record.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise InputError(f"This is not a record: '{name}': {first['msg']}.") from None


def record_names(experiment: str, folder: str | Path = RECORDS) -> list[str]:
    """List the names of an experiment's records in order; return [] where there are none."""
    written = {path.stem for path in (Path(folder) / experiment).glob("*.json")}
    names = written | _packed_names(_archive(experiment, folder))
    return sorted(names, key=lambda name: f"{name}.json")


def read_records(experiment: str, folder: str | Path = RECORDS) -> list[dict[str, Any]]:
    """Read all records of an experiment, in order of their names.

    A record is one JSON file. An installed package has one archive for each experiment instead, in
    which only the records whose pictures a chapter shows keep ``images_png``.

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
    """Return an experiment's archive in an installed package, which ``setup.py`` writes."""
    return Path(folder) / f"{experiment}.json.xz"


def _packed(archive: Path) -> dict[str, dict[str, Any]]:
    """Read the records in an archive, by name; return {} where there is no archive."""
    if not archive.is_file():
        return {}
    import lzma  # imported late: a Python built without it can still read a checkout

    try:
        return json.loads(lzma.decompress(archive.read_bytes()))
    except (OSError, ValueError, lzma.LZMAError) as error:
        raise InputError(f"{archive} is damaged ({error}): install the package again.") from None


@cache  # called for each run of an experiment; an archive never changes
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
    """Read the records of an experiment, by variant, in order of their seeds.

    Variants of a seed share its teacher if one machine ran them (``shared_teachers`` counts). In
    the experiment ``variants``, the variant ``lite`` changes nothing.

    Raises:
        InputError: there are no records of a name (the nearest is offered), or one is damaged.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for record in read_records(experiment, folder):
        found.setdefault(record["variant"], []).append(record)
    return {
        name: sorted(found[choose("variant", name, found)], key=lambda record: record["seed"])
        for name in names
    }
