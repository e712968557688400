"""Reads the tables of ``data/paper/``: the paper's, and what was noted about it and its field."""

from __future__ import annotations

import csv

from dfkd_lite.errors import choose
from dfkd_lite.storage.shipped import SHIPPED


def paper_table(name: str) -> list[dict[str, str]]:
    """Read a table of ``data/paper/`` by its file's name (``table5_ablation``).

    Returns:
        A dict of strings for each row: those of the paper's numbers, of other published ones, of
        the open points, of settings that were tried, or of places in public code.

    Raises:
        InputError: no such table; the nearest name is offered.
    """
    files = {path.stem: path for path in sorted((SHIPPED / "paper").glob("*.csv"))}
    with files[choose("table of the paper", name, files)].open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
