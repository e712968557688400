"""Writes a model card: what a stranger must know before using a student, as Markdown."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import InputError
from ..networks import NetworkSpec, count_parameters
from ..settings import leaves, plain
from ..storage.files import write_bytes


def model_card(
    name: str,
    student: nn.Module,
    spec: NetworkSpec,
    weights: str | Path,
    settings: Mapping[str, Any],
    signs: Mapping[str, float],
    measured: Mapping[str, float] | None = None,
    measured_on: str = "",
) -> str:
    """Write the text of a student's card.

    Args:
        name: what the student is called.
        student: the network, for its size.
        spec: what it reads and answers.
        weights: the file that the card is about; its SHA-256 goes into the card.
        settings: by part ("loop", "method"), dataclasses or mappings: how it was distilled.
        signs: data-free signs at the end, as
            :func:`dfkd_lite.measure.signs.data_free_signs` gives them.
        measured: results on real data, if there was any; never made up.
        measured_on: on which data; needed with ``measured``.

    Raises:
        InputError: no such file; results without the data they are of.
    """
    path = Path(weights)
    if not path.is_file():
        raise InputError(f"There is no file {path}: save the student before its card.")
    if measured and not measured_on:
        raise InputError("Results need the name of the data they were measured on.")
    shape = " x ".join(map(str, spec.image_shape))
    lines = [
        f"# {name}",
        "",
        "A student network, distilled from a teacher without the teacher's training data.",
        "",
        "## What it is",
        "",
        f"- network: {spec.network}, {count_parameters(student):,} parameters",
        f"- reads: images {shape}, pixels in [0, 1], minus {_list(spec.mean)}, "
        f"divided by {_list(spec.std)}",
        f"- answers: {spec.classes} logits ({', '.join(spec.class_names) or 'classes unnamed'})",
        f"- file: `{path.name}`, SHA-256 `{hashlib.sha256(path.read_bytes()).hexdigest()}`",
        "",
        "## What is known about its quality",
        "",
        *_quality(measured, measured_on),
        "",
        "Signs on synthetic images at the end of the run (no real data involved):",
        "",
        *[f"- {sign}: {value:.4g}" for sign, value in signs.items()],
        "",
        "## What is not known",
        "",
        "- Synthetic images are not the teacher's data: errors on real images may be larger than "
        "the signs suggest, and they may fall on one group more than on others.",
        "- The student takes over its teacher's errors and biases.",
        "- It is **not** private by construction: what it learnt came from a network that saw the "
        "data, and images synthesised on the way may resemble them. Measure before you publish.",
        "- It has not been validated for any use that decides about people.",
        "",
        "## How it was made",
        "",
        *_settings(settings),
        "",
        "## Licence",
        "",
        "To be filled in by whoever publishes it; mind the licence of the teacher.",
        "",
    ]
    return "\n".join(lines)


def write_card(path: str | Path, text: str) -> None:
    """Write a card to a file, whole or not at all."""
    write_bytes(path, text.encode())


def _quality(measured: Mapping[str, float] | None, measured_on: str) -> list[str]:
    if not measured:
        return ["Nothing was measured on real images."]
    return [f"Measured on {measured_on}:", "", *[f"- {k}: {v:.4f}" for k, v in measured.items()]]


def _settings(settings: Mapping[str, Any]) -> list[str]:
    lines = []
    for part, values in settings.items():
        lines.append(f"- {part}")
        said = leaves(plain(values))
        lines += [f"  - {'.'.join(names)}: {value}" for names, value in said.items()]
    return lines


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
