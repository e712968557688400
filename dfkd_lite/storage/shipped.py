"""Finds what ships with the code: the paper's tables, measured records, trained networks."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_CHECKOUT = _PACKAGE.parent / "data"

#: ``data/`` of a checkout, or its copy inside an installed package.
#:
#: :meta hide-value:
SHIPPED = _CHECKOUT if _CHECKOUT.is_dir() else _PACKAGE / "_data"
