"""Wrong submissions: an assignment's solution with one common mistake, and what it must cost."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mistake:
    """In the solution's code ``old`` (it stands there once) becomes ``new``."""

    name: str
    old: str
    new: str
    loses: dict[str, float]  # points by question; of all others, none
    says: str  # a part of what the public check or the failed test says of it
    # further changes that only save time: they alone would cost no points
    quick: tuple[tuple[str, str], ...] = ()


def spoilt(solution: Path, mistake: Mistake) -> str:
    """The solution with the mistake, as the text of a notebook.

    Without the cells that only call a check: the public tests do the same, and some train.
    """
    notebook = json.loads(solution.read_text(encoding="utf-8"))
    for old, new in ((mistake.old, mistake.new), *mistake.quick):
        hits = 0
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            hits += source.count(old)
            cell["source"] = source.replace(old, new)
        assert hits == 1, f"{mistake.name}: {old!r} stands {hits} times in the solution"
    cells = [c for c in notebook["cells"] if not c["source"].startswith("check.q")]
    return json.dumps({**notebook, "cells": cells})
