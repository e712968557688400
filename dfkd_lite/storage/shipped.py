"""What ships with the code: the paper's tables, measured records, small trained networks."""

from __future__ import annotations

import csv
from pathlib import Path

from ..errors import choose

_PACKAGE = Path(__file__).parents[1]
_CHECKOUT = _PACKAGE.parent / "data"

#: ``data/`` of a checkout, or its copy inside an installed package.
#:
#: :meta hide-value:
SHIPPED = _CHECKOUT if _CHECKOUT.is_dir() else _PACKAGE / "_data"


def paper_table(name: str) -> list[dict[str, str]]:
    """A table of the paper by its file's name (``table5_ablation``): one dict a row, all strings.

    Raises:
        InputError: no such table; the nearest name is offered.
    """
    files = {path.stem: path for path in sorted((SHIPPED / "paper").glob("*.csv"))}
    with files[choose("table of the paper", name, files)].open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
