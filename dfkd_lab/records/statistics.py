"""Computes what may be said of several runs: mean, spread, intervals, differences by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from scipy import stats

from dfkd_lite.errors import InputError

from .records import RECORDS, read_variants

Name = TypeVar("Name")


@dataclass(frozen=True)
class Summary:
    """Holds a metric over runs: mean, standard deviation (n - 1), minimum, maximum, count."""

    mean: float
    std: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.spread()} (n = {self.n}, worst {self.low:.2%})"

    def spread(self, form: str = ".2%", scale: float = 1.0) -> str:
        """Write "mean ± standard deviation", both times ``scale``; of one run the mean alone.

        ``form`` is the format of the mean. The standard deviation has its digits and "%", but not
        what stands before the point, such as a sign or a width.
        """
        mean = format(scale * self.mean, form)
        digits = form[form.index(".") :]
        return f"{mean} ± {scale * self.std:{digits}}" if self.n > 1 else mean


@dataclass(frozen=True)
class Gaps:
    """Holds the differences of two variants, one for each seed, in percentage points."""

    values: tuple[float, ...]

    def __str__(self) -> str:
        ahead = sum(gap > 0 for gap in self.values)
        return f"{spread(self.values, '+.1f')} points (n = {len(self.values)}, ahead in {ahead})"

    @property
    def clear(self) -> bool:
        """Return whether a difference may be claimed: both 95 % intervals exclude zero."""
        if len(self.values) < 2:
            return False
        intervals = bootstrap_interval(self.values), t_interval(self.values)
        return all(low > 0 or high < 0 for low, high in intervals)

    @property
    def p(self) -> float:
        """Return the two-sided p-value of Student's paired test, or 1 for fewer than two values. It
        is at most 0.05 where the 95 % interval of :func:`t_interval` excludes zero."""
        if len(self.values) < 2:
            return 1.0
        t = abs(np.mean(self.values)) / _standard_error(self.values)
        return 2 * float(stats.t.sf(t, len(self.values) - 1))


def holm(family: Mapping[Name, Gaps]) -> dict[Name, float]:
    """Correct the p-values of a family of comparisons for their number (Holm 1979).

    The smallest of n is multiplied by n, the next by n - 1, and so on; none is smaller than the one
    before it, nor above 1. What may be claimed by them: :func:`claims`.
    """
    corrected: dict[Name, float] = {}
    floor = 0.0
    for rank, name in enumerate(sorted(family, key=lambda name: family[name].p)):
        floor = min(1.0, max(floor, (len(family) - rank) * family[name].p))
        corrected[name] = floor
    return {name: corrected[name] for name in family}


def claims(family: Mapping[Name, Gaps]) -> dict[Name, bool]:
    """Say which differences of a family may be claimed beside one another: those that are
    :attr:`Gaps.clear` and whose p-value is at most 0.05 after the correction by :func:`holm`."""
    corrected = holm(family)
    return {name: gaps.clear and corrected[name] <= 0.05 for name, gaps in family.items()}


def bootstrap_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean (Efron 1979) of at least two values.

    With a handful of seeds it is too narrow, because it draws from the values seen alone; chapter
    12 measures by how much. Use it together with :func:`t_interval`.
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
    """Return Student's interval of the mean of at least two values: exact for normal values."""
    low, high = stats.t.interval(
        level, len(values) - 1, float(np.mean(values)), _standard_error(values)
    )
    return float(low), float(high)


def _standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean; equal values get a tiny one, as 0 cannot divide."""
    return float(stats.sem(values)) or 1e-300


def paired(
    name: str, base: str = "lite", experiment: str = "variants", folder: str | Path = RECORDS
) -> Gaps:
    """Subtract the students' last test accuracy of ``base`` from that of ``name``, seed by seed.

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


def shared_teachers(
    name: str, base: str = "lite", experiment: str = "variants", folder: str | Path = RECORDS
) -> int:
    """Count the seeds for which two variants had the same teacher, known by its calibration error.

    A seed makes another teacher on a machine that rounds otherwise, so a pair from two machines
    may differ in more than the variant. The arguments and errors are those of :func:`paired`.
    """
    found = read_variants([name, base], experiment, folder)
    ours, theirs = (
        {r["seed"]: r["last"]["teacher"]["ece"] for r in found[key]} for key in (name, base)
    )
    seeds = ours.keys() & theirs.keys()
    return sum(math.isclose(ours[seed], theirs[seed], rel_tol=1e-5) for seed in seeds)


def summarise(records: Sequence[Mapping[str, Any]], metric: str, network: str) -> Summary:
    """Summarise ``metric`` of ``network`` ("teacher", "student", ...) at the last step."""
    return _summary([record["last"][network][metric] for record in records])


def spread(values: Sequence[float], form: str = ".1f") -> str:
    """Write numbers as "mean ± standard deviation", as :meth:`Summary.spread` does."""
    return _summary(values).spread(form)


def _summary(numbers: Sequence[float]) -> Summary:
    values = torch.tensor(numbers, dtype=torch.float64)
    std = values.std().item() if len(values) > 1 else 0.0
    return Summary(values.mean().item(), std, values.min().item(), values.max().item(), len(values))
