"""Refuse bad input: one exception, and the few checks that all modules use."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


class InputError(ValueError):
    """An input that cannot be used. The message says what was wrong and what to do instead."""


class DivergedError(InputError):
    """A loss, weight or output that is not finite: the run ends, and this is its result."""


def choose(kind: str, name: str, options: Iterable[str]) -> str:
    """Return ``name`` if it is one of ``options``, else refuse it and offer the nearest name.

    Raises:
        InputError: ``name`` is not one of ``options``.
    """
    known = list(options)
    if name in known:
        return name
    raise InputError(f"There is no {kind} called '{name}'.{_nearest(name, known)}.")


def unknown(wrong: str, known: Iterable[str], name: str = "") -> str:
    """Say that ``wrong``, in full ``name``, is not known, with the nearest of ``known`` and all."""
    return f"'{name or wrong}' is not known.{_nearest(wrong, list(known))}."


def _nearest(wrong: str, known: list[str]) -> str:
    near = difflib.get_close_matches(str(wrong), known, n=1, cutoff=0.4)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"{hint} Known: {', '.join(known)}"


def check_range(
    name: str, value: float, low: float = -math.inf, high: float = math.inf, above: bool = False
) -> None:
    """Refuse a number outside ``[low, high]``, or outside ``(low, high]`` with ``above=True``.

    Raises:
        InputError: ``value`` is out of range, or not a finite number.
    """
    try:
        finite = math.isfinite(value)
    except TypeError:
        raise InputError(f"{name} must be a number, not {value!r}.") from None
    too_low = value <= low if above else value < low
    if finite and not too_low and value <= high:
        return
    bounds = [f"{'above' if above else 'at least'} {low:g}"] if low > -math.inf else []
    bounds += [f"at most {high:g}"] if high < math.inf else []
    raise InputError(f"{name} is {value!r}; it must be {' and '.join(bounds) or 'finite'}.")
