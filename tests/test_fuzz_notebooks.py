"""Submissions that go wrong in seeded ways: the right cells, or one row with a reason."""

from __future__ import annotations

import codecs
import copy
import json
import random
from pathlib import Path
from typing import Any

import course
import pytest
from test_course_grader import graded, made, solution, table
from test_fuzz import FILES, damaged

from dfkd_course.grade import Workers
from dfkd_course.reading import Unreadable, read_cells

__all__ = ["made", "solution"]  # fixtures
pytestmark = pytest.mark.slow
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**70,
    "",
    "text",
    "\ud800",
    [],
    {},
    [[]],
    [None],
    {"a": []},
)


def harmless(notebook: dict, rng: random.Random) -> bytes:
    """Change what is no code: the cells that a reader should find stay as they are."""
    made = copy.deepcopy(notebook)
    for _ in range(rng.choice((1, 2, 5))):
        cell = rng.choice(made["cells"])
        lines = "".join(cell["source"])
        kind = rng.randrange(9)
        if kind == 0:
            cell["source"] = lines if rng.random() < 0.5 else lines.splitlines(keepends=True)
        elif kind == 1:
            cell["outputs"], cell["execution_count"] = rng.choice(ODD), rng.choice(ODD)
        elif kind == 2:
            cell["metadata"] = rng.choice(ODD)
        elif kind == 3:
            cell["id"] = rng.choice(("same", *ODD))
        elif kind == 4:
            made["metadata"] = rng.choice(
                (None, {}, {"kernelspec": rng.choice(ODD[:6])}, [], "text")
            )
        elif kind == 5:
            made["nbformat"], made["nbformat_minor"] = rng.choice(ODD), rng.choice(ODD)
        elif kind == 6:
            new = {"cell_type": rng.choice(("markdown", "raw")), "source": rng.choice(ODD)}
            made["cells"].insert(rng.randrange(len(made["cells"])), new | {"metadata": {}})
            return json.dumps(made).encode()
        elif kind == 7:
            made[rng.choice(("widgets", "signature", "metadata2"))] = rng.choice(ODD)
        else:
            cell["attachments"] = {"x": float("nan"), "y": "\N{SNOWMAN}" * 1000}
    text = json.dumps(made, indent=rng.choice((None, 1, 4)), ensure_ascii=rng.random() < 0.5)
    plain = (
        text.encode("utf-8", "surrogatepass") if "\ud800" not in text else json.dumps(made).encode()
    )
    return rng.choice((b"", codecs.BOM_UTF8)) + plain


def wild(notebook: dict, rng: random.Random) -> bytes:
    """Change anything: fields of another type, cells gone, doubled or elsewhere, bytes damaged."""
    made = copy.deepcopy(notebook)
    kind = rng.randrange(7)
    if kind == 0:
        return damaged(json.dumps(made).encode(), rng)
    if kind == 1:
        made[rng.choice(("cells", "metadata", "worksheets"))] = rng.choice(ODD)
    elif kind == 2:
        rng.choice(made["cells"])[rng.choice(("source", "cell_type"))] = rng.choice(ODD)
    elif kind == 3:
        made["cells"][rng.randrange(len(made["cells"]))] = rng.choice(ODD)
    elif kind == 4:
        rng.shuffle(made["cells"])
    elif kind == 5:
        made = {"worksheets": [{"cells": rng.choice((made["cells"], *ODD))}], "metadata": {}}
    else:
        return json.dumps(made).encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
    return json.dumps(made).encode()


def code_of(notebook: dict) -> list[str]:
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


@pytest.mark.parametrize("part", range(4))
def test_what_is_no_code_changes_nothing(solution: dict, part: int) -> None:
    rng = random.Random(part)
    wanted = code_of(solution)
    for number in range(FILES // 4):
        found = read_cells(harmless(solution, rng))
        assert [source for _, source in found.cells] == wanted, (part, number)


@pytest.mark.parametrize("part", range(4))
def test_a_damaged_notebook_is_read_in_part_or_refused_with_a_reason(
    solution: dict, part: int
) -> None:
    rng = random.Random(100 + part)
    for number in range(FILES // 4):
        try:
            found = read_cells(wild(solution, rng))
        except Unreadable as error:
            assert str(error).isprintable() and len(str(error)) > 10, (part, number)
            continue
        assert all(isinstance(source, str) for _, source in found.cells), (part, number)
        assert all(note.isprintable() for note in found.notes), (part, number)


def test_a_class_of_damaged_notebooks_is_graded_row_by_row(
    made: course.Made, solution: dict, tmp_path: Path, workers: Workers
) -> None:
    rng = random.Random(7)
    texts: dict[str, str | bytes] = {f"harmless-{n}": harmless(solution, rng) for n in range(10)}
    texts |= {f"wild-{n}": wild(solution, rng) for n in range(10)}
    texts["right"] = json.dumps(solution)
    graded(texts, made, tmp_path, workers)
    rows = {row["submission"]: row for row in table(tmp_path / "out" / "grades.csv")}
    assert rows.keys() == texts.keys()
    full = rows["right"]["points"]
    assert full == "14"
    for name, row in rows.items():
        assert "grader failed" not in row["notes"], (name, row["notes"])
        assert row["points"] == full or name.startswith("wild"), (name, row)
        assert row["points"] == full or row["notes"] or float(row["points"]) < 14, (name, row)
