"""Networks of torchvision and timm as teachers, and the page that says what each can do."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from zoo import NAMES, tried
from zoo_page import ZOO, zoo_page

KNOWN = {row["name"]: row for row in json.loads(ZOO.read_text("utf-8"))["networks"]}
#: What has no maps at its end: a refusal is right, if it says so.
TOKENS = ("vit_", "swin_", "deit", "mixer", "levit", "cait", "beit", "resmlp", "pit_", "xcit")


def test_the_page_has_a_line_for_each_network() -> None:
    assert list(KNOWN) == list(NAMES)
    lines = [line for line in zoo_page().splitlines() if line.startswith(("| torchv", "| timm"))]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == list(NAMES)


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known_of_a_network_is_sound_or_a_refusal_that_names_the_cause(name: str) -> None:
    row = KNOWN[name]
    sides = row.get("sides", [])
    assert all(a > b for a, b in pairwise(sides)), sides
    if not sides:
        said = row.get("stages") or row["answers"]
        assert "cannot read" in said or ("tokens" in said and name.split(":")[1].startswith(TOKENS))
    if sides and row["batch_norms"]:
        said = {row[step] for step in ("explains", "fssc", "adi", "zskt", "saves")} - {""}
        assert all("became inf" in text for text in said)  # with random weights


def test_the_page_counts_and_numbers_its_refusals(tmp_path: Path) -> None:
    right = ("answers", "stages", "explains", "fssc", "adi", "zskt", "saves", "onnx")
    steps = dict.fromkeys(right, "")
    rows = [
        {"name": "a", "parameters": 2_500_000, "sides": [4, 2], **steps},
        {"name": "b", "parameters": 1, "sides": [8], **steps, "adi": "X."},
        {"name": "c", "parameters": 1, "answers": "Y."},
        {"name": "d", "parameters": 1, "answers": "Y."},
    ]  # fmt: skip
    packages = {"torchvision": "1"}
    file = {"environment": {"packages": packages}, "timm": "2", "networks": rows}
    (tmp_path / "zoo.json").write_text(json.dumps(file), "utf-8")
    page = zoo_page(tmp_path / "zoo.json")
    assert "**4 networks** of torchvision 1 and timm 2" in page
    assert "**2** have stages that are found, **1** pass every step" in page
    assert "| a | 2.5 | 4, 2 | ✓ | ✓ | ✓ | ✓ | ✓ | ✓ |" in page
    assert "| b | 0.0 | 8 | ✓ | ✓ | 1 | ✓ | ✓ | ✓ |" in page
    assert page.count("none: refusal 2 |") == 2
    assert page.endswith("1. X.\n2. Y.\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_network_does_what_the_page_says(name: str) -> None:
    known = dict(KNOWN[name])
    small = known["parameters"] < 2_000_000  # the others' export takes most of the time
    if not small:
        known.pop("onnx", None)
    assert json.loads(json.dumps(tried(name, export=small))) == known
