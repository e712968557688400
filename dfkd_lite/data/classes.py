"""Orders class names, and compares those of a network with those of data."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import InputError

_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names as people do: numbers by value ("2" before "10"), also inside a name."""
    found = list(names)
    if all(_NUMBER.fullmatch(name) for name in found):
        return sorted(found, key=lambda name: (float(name), name))
    return sorted(found, key=lambda name: (_pieces(name), name))


def _pieces(name: str) -> list[tuple[int, int, str]]:
    """Cut a name into digits and the rest, so that digits compare by value and before letters."""
    pieces = re.findall(r"\d+|\D+", name)
    return [(0, int(p), "") if p[0].isdecimal() else (1, 0, p) for p in pieces]


def aligned_labels(
    data_names: tuple[str, ...], network_names: tuple[str, ...], sorted_names: bool
) -> list[int] | None:
    """Find the network's label for each label of the data; None: they are the same, or unknown.

    Names that differ in upper and lower case, in spaces, underscores and hyphens, or in leading
    zeros count as the same.

    Args:
        sorted_names: the data's labels come from the order of their names. If not, they are
            numbers of their own, and the names 0, 1, .. on either side fit any others.

    Raises:
        InputError: both sides have names, and they are not the same ones.
    """
    if not data_names or not network_names:
        return None
    theirs, ours = [_key(n) for n in data_names], [_key(n) for n in network_names]
    if theirs == ours:
        return None
    if sorted(theirs) == sorted(ours) and len(set(ours)) == len(ours):
        return [ours.index(key) for key in theirs]
    numbers = [str(i) for i in range(len(ours))]
    if not sorted_names and len(ours) == len(theirs) and numbers in (ours, theirs):
        return None
    missing = [name for name, key in zip(data_names, theirs, strict=True) if key not in ours]
    lacking = [name for name, key in zip(network_names, ours, strict=True) if key not in theirs]
    raise InputError(
        f"The network and the data have other classes: the network knows {_few(network_names)}, "
        f"the data {_few(data_names)}"
        + (f"; unknown to the network: {_few(missing)}" if missing else "")
        + (f"; missing in the data: {_few(lacking)}" if lacking else "")
        + ". Give data of the network's classes, called by their names."
    )


def _key(name: str) -> str:
    if _NUMBER.fullmatch(name.strip()):
        return f"{float(name):g}" if "." in name else str(int(name))
    return re.sub(r"[\s_-]+", " ", name.strip().casefold())


def _few(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - 5} more" if len(every) > 5 else ""
    return ", ".join(every[:5]) + more
