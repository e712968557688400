"""Writes the book's page on what can be a teacher, from what benchmarks/zoo.py tried."""

import json
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ZOO = ROOT / "data" / "zoo.json"
STEPS = {"explains": "seen", "fssc": "fssc", "adi": "adi", "zskt": "zskt", "saves": "saved",
         "onnx": "ONNX"}  # fmt: skip

TEXT = """# What can be a teacher

Written from `data/zoo.json`, which `python benchmarks/zoo.py` makes. Each network has random
weights, five classes and images of 64 x 64 pixels. Of each was tried: are its stages found, and
explained by maps; does one episode of three methods run (one that compares maps, one that
inverts batch-norm statistics, one that plays for disagreement); do saved weights answer the
same to the last digit in a new network; does ONNX Runtime agree. This says what *runs*. It says
nothing of how well a student learns.

- **{tried} networks** of torchvision {torchvision} and timm {timm} were tried.
- **{staged}** have stages that are found, **{whole}** pass every step.
- A network without batch-norm statistics is taught by `fssc` with `bn_weight=0`, as the refusal
  advises: then Eq. 16 is left with the classes and the disagreement.
- A loss that became infinite is one of random weights, whose running statistics fit no images.
- Your own: `find_layers(network, (C, H, W))` in `dfkd_lite.door` says at once what is seen in it
  ([chapter 10](10-your-teacher.ipynb)).

Size is in millions of parameters; maps are the widths of what was found, from early to late. A
number in the other columns is that of a refusal below the table.

| network | size [M] | maps [px] | {names} |
| --- | --: | --- | {rule} |"""


def zoo_page(path: Path = ZOO) -> str:
    """Return the page as Markdown: what was tried, a table of all networks, and the refusals."""
    found = json.loads(path.read_text(encoding="utf-8"))
    rows, refusals = found["networks"], defaultdict(list)
    lines = [_line(row, refusals) for row in rows]
    head = TEXT.format(
        torchvision=found["environment"]["packages"]["torchvision"],
        timm=found["timm"],
        tried=len(rows),
        staged=sum(bool(row.get("sides")) for row in rows),
        whole=sum(not any(row.get(step, "not reached") for step in STEPS) for row in rows),
        names=" | ".join(STEPS.values()),
        rule=" | ".join([":-:"] * len(STEPS)),
    )
    numbered = (f"{number}. {text}" for number, text in enumerate(refusals, 1))
    return "\n".join([head, *lines, "", "## Refusals, word for word", "", *numbered, ""])


def _line(row: dict, refusals: dict[str, list[str]]) -> str:
    """Return a network's line, and note it under each refusal that it met."""

    def mark(said: str | None) -> str:
        if not said:
            return "" if said is None else "✓"
        refusals[said].append(row["name"])
        return str(list(refusals).index(said) + 1)

    sides = ", ".join(map(str, row.get("sides", ())))
    sides = sides or f"none: refusal {mark(row.get('stages') or row['answers'])}"
    steps = " | ".join(mark(row.get(step)) for step in STEPS)
    return f"| {row['name']} | {row['parameters'] / 1e6:.1f} | {sides} | {steps} |"
