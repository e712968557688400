"""Measured results: one JSON file a run, with what is needed to believe or repeat it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy import stats
from torch import Tensor

from .. import parallel
from ..data import ImageData, Split
from ..errors import InputError, choose
from ..storage.checkpoint import write_json
from ..storage.shipped import SHIPPED

#: The records that ship with the code.
#:
#: :meta hide-value:
RECORDS = SHIPPED / "records"

_PACKAGES = ("dfkd_lite", "torch", "torchvision", "numpy", "scikit-learn")


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


@dataclass(frozen=True)
class Summary:
    """A metric over runs: mean, standard deviation (n - 1), extremes, number of runs."""

    mean: float
    std: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2%} ± {self.std:.2%} (n = {self.n}, worst {self.low:.2%})"


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Where and with what a run happened: code, packages, machine, threads."""
    device = torch.device(device)
    return {
        "code": _code_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "machine": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": parallel.count(),
    }


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


def described(data: ImageData) -> dict[str, Any]:
    """Which data: name, size, numbers of images, and a checksum of the pixels and labels.

    Of images that are read from disk as they are needed, the checksum is of their files' names and
    sizes.
    """
    digest = hashlib.sha256()
    for split in (data.train, data.val, data.test):
        if isinstance(split, Split):
            digest.update(_bytes(split.images))
        elif split is not None:
            told = (f"{path.name} {path.stat().st_size}" for path in split.paths)
            digest.update("\n".join(told).encode())
        if split is not None:
            digest.update(_bytes(split.labels))
    return {
        "name": data.name,
        "size": data.size,
        "classes": data.classes,
        "train_images": len(data.train),
        "test_images": len(data.test),
        "sha256": digest.hexdigest(),
    }


def _bytes(tensor: Tensor) -> memoryview:
    array: Any = tensor.contiguous().numpy()
    return memoryview(array).cast("B")


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux getrusage also counts what the parent held when it forked
        lines = status.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def write_record(record: Mapping[str, Any], folder: str | Path = RECORDS) -> Path:
    """Write ``record`` (see :class:`Record`) to its :func:`record_path`, never over another.

    Raises:
        InputError: it does not fit the schema, or the record exists.
    """
    content = plain(record)
    check_record(content)
    path = record_path(content["experiment"], content["name"], folder)
    if path.exists():
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


def read_records(experiment: str, folder: str | Path = RECORDS) -> list[dict[str, Any]]:
    """All records of an experiment, in order of their names.

    Raises:
        InputError: there are none, or one of them is damaged.
    """
    paths = sorted((Path(folder) / experiment).glob("*.json"))
    if not paths:
        raise InputError(f"There are no records of '{experiment}' below {folder}.")
    return [_read(path) for path in paths]


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged or not a record ({error}): get it again.") from None
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


@dataclass(frozen=True)
class Gaps:
    """Differences of two variants, seed by seed, in percentage points."""

    values: tuple[float, ...]

    def __str__(self) -> str:
        gaps = torch.tensor(self.values, dtype=torch.float64)
        spread = f" ± {gaps.std():.1f}" if len(gaps) > 1 else ""
        return (
            f"{gaps.mean():+.1f}{spread} points (n = {len(gaps)}, ahead in {int((gaps > 0).sum())})"
        )

    @property
    def clear(self) -> bool:
        """Whether a difference may be claimed: both 95 % intervals of the mean leave out zero."""
        if len(self.values) < 2:
            return False
        intervals = bootstrap_interval(self.values), t_interval(self.values)
        return all(low > 0 or high < 0 for low, high in intervals)


def bootstrap_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979), of at least two values.

    With a handful of seeds it is too narrow, since it knows no spread beyond the values seen:
    chapter 12 measures by how much. See it beside :func:`t_interval`.
    """
    found = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean, of at least two values: right for normal values."""
    low, high = stats.t.interval(
        level, len(values) - 1, float(np.mean(values)), float(stats.sem(values)) or 1e-300
    )
    return float(low), float(high)


def paired(
    name: str, base: str = "lite", experiment: str = "variants", folder: str | Path = RECORDS
) -> Gaps:
    """Last test accuracy of the students of one variant minus that of another, seed by seed.

    Runs that diverged have no last accuracy and are left out.

    Raises:
        InputError: no records of a name (the nearest is offered), or no seed in common.
    """
    found = read_variants([name, base], experiment, folder)
    ours, theirs = (
        {r["seed"]: r["last"]["student"]["accuracy"] for r in found[key] if not r["diverged"]}
        for key in (name, base)
    )
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise InputError(f"No seed was run to its end both with '{name}' and with '{base}'.")
    return Gaps(tuple(100 * (ours[seed] - theirs[seed]) for seed in seeds))


def summarise(records: Sequence[Mapping[str, Any]], metric: str, network: str) -> Summary:
    """``metric`` of ``network`` ("teacher", "student", ...) at the last step, over records."""
    numbers = [record["last"][network][metric] for record in records]
    values = torch.tensor(numbers, dtype=torch.float64)
    spread = values.std().item() if len(values) > 1 else 0.0
    return Summary(
        values.mean().item(), spread, values.min().item(), values.max().item(), len(values)
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _code_version() -> dict[str, Any]:
    """The commit this code is of, and whether files differ from it (None outside a checkout)."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "dfkd_lite", "benchmarks")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
