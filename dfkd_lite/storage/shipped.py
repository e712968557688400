"""Finds what ships with the code: the paper's tables, measured records, trained networks."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError

_PACKAGE = Path(__file__).parents[1]
_CHECKOUT = _PACKAGE.parent / "data"

#: ``data/`` of a checkout, or what an installed package has of it.
#:
#: :meta hide-value:
SHIPPED = _CHECKOUT if _CHECKOUT.is_dir() else _PACKAGE / "_data"


def shipped_network(name: str) -> Path:
    """Find a teacher or student that ships by its path below :data:`SHIPPED`.

    An installed package has those of the digits; the others are the distribution
    ``dfkd_lite_networks``.

    Raises:
        InputError: the file is not here; the message says how to get it.
    """
    path = SHIPPED / name
    if not path.is_file():
        raise InputError(
            f"There is no {path}: the package comes without its larger networks; install "
            "dfkd_lite_networks, which is the folder data/ of the repository."
        )
    return path
