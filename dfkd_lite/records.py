"""Measured results: one JSON file a run, with what is needed to believe or repeat it."""

from __future__ import annotations

import dataclasses
import json
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

import torch
from torch import Tensor

from .checkpoint import write_json
from .errors import InputError, choose
from .shipped import SHIPPED

#: The records that ship with the code.
#:
#: :meta hide-value:
RECORDS = SHIPPED / "records"

_PACKAGES = ("dfkd_lite", "torch", "torchvision", "numpy", "scikit-learn")


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
    }


def plain(settings: Any) -> Any:
    """Settings (nested dataclasses) as what JSON can hold; tensors only by their shape."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        fields = {f.name: plain(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
        return {"kind": type(settings).__name__, **fields}
    if isinstance(settings, Mapping):
        return {str(key): plain(value) for key, value in settings.items()}
    if isinstance(settings, Tensor):
        return {"kind": "Tensor", "shape": list(settings.shape)}
    if isinstance(settings, list | tuple):
        return [plain(value) for value in settings]
    return settings


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def write_record(record: Mapping[str, Any], folder: str | Path = RECORDS) -> Path:
    """Write ``record`` to ``folder/experiment/name.json``, never over another.

    ``record`` has at least ``experiment``, ``name``, ``seed``, ``settings``, ``environment`` and
    ``last``, the metrics at the last step.

    Raises:
        InputError: a key is missing, or the record exists.
    """
    for key in ("experiment", "name", "seed", "settings", "environment", "last"):
        if key not in record:
            raise InputError(f"A record needs '{key}'; this one has {', '.join(record)}.")
    path = Path(folder) / record["experiment"] / f"{record['name']}.json"
    if path.exists():
        raise InputError(f"{path} exists, and records are never overwritten: move it away first.")
    write_json(path, plain(record))
    return path


def read_records(experiment: str, folder: str | Path = RECORDS) -> list[dict[str, Any]]:
    """All records of an experiment, in order of their names.

    Raises:
        InputError: there are none.
    """
    paths = sorted((Path(folder) / experiment).glob("*.json"))
    if not paths:
        raise InputError(f"There are no records of '{experiment}' below {folder}.")
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def read_variants(
    names: Sequence[str], folder: str | Path = RECORDS
) -> dict[str, list[dict[str, Any]]]:
    """The records of ``benchmarks/variants.py``, by variant, in order of their seeds.

    All variants of a seed share its teacher. ``lite`` is the one in which nothing is changed.

    Raises:
        InputError: no records of a name; the nearest is offered.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for record in read_records("variants", folder):
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
        gaps = torch.tensor(self.values).double()
        spread = f" ± {gaps.std():.1f}" if len(gaps) > 1 else ""
        return (
            f"{gaps.mean():+.1f}{spread} points (n = {len(gaps)}, ahead in {int((gaps > 0).sum())})"
        )


def paired(name: str, base: str = "lite", folder: str | Path = RECORDS) -> Gaps:
    """Last test accuracy of the students of one variant minus that of another, seed by seed.

    Runs that diverged have no last accuracy and are left out.

    Raises:
        InputError: no records of a name (the nearest is offered), or no seed in common.
    """
    found = read_variants([name, base], folder)
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
    values = torch.tensor([record["last"][network][metric] for record in records]).double()
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
    root = Path(__file__).parents[1]

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
