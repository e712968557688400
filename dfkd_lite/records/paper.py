"""Reads the numbers that the paper prints."""

from __future__ import annotations

import csv

from ..errors import choose
from ..storage.shipped import SHIPPED


def paper_table(name: str) -> list[dict[str, str]]:
    """Read a table of the paper by its file's name (``table5_ablation``): a dict of strings a row.

    Raises:
        InputError: no such table; the nearest name is offered.
    """
    files = {path.stem: path for path in sorted((SHIPPED / "paper").glob("*.csv"))}
    with files[choose("table of the paper", name, files)].open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
