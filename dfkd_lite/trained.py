"""Train or load: the teacher and the student that the chapters start from.

What a preset, a data set and a seed give is trained once and kept. The files for the digits ship
with the code, so that the book starts where a reader without data starts: from a teacher alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from .checkpoint import load_network, load_weights, read_metadata, save_network, save_weights
from .data import ImageData, data_root
from .distill import distill
from .evaluate import accuracy, predict
from .generator import AttentionGenerator
from .networks import NetworkSpec
from .presets import Preset
from .shipped import SHIPPED
from .teach import teach


def trained_teacher(
    data: ImageData, preset: Preset, seed: int = 0
) -> tuple[nn.Module, NetworkSpec]:
    """The preset's teacher of ``data``, in eval mode on the CPU, and its spec.

    Loaded where a file made with the same settings is there; else trained (with a progress bar)
    and kept below :func:`dfkd_lite.data.data_root`.
    """
    config = replace(preset.teach, seed=seed)
    notes = {"data": data.name, "config": repr(config)}
    name = f"{_label(data)}_{preset.teacher}_seed{seed}.safetensors"
    path = _find("teachers", name, notes)
    if path is None:
        teacher, spec, _ = teach(preset.teacher, data, config)
        right = accuracy(*predict(teacher, data.test, spec.mean, spec.std))
        path = _kept("teachers", name)
        save_network(path, teacher, spec, notes | {"test_accuracy": f"{right:.4f}"})
    return load_network(path)


def trained_student(
    data: ImageData, preset: Preset, seed: int = 0
) -> tuple[nn.Module, AttentionGenerator]:
    """The preset's student of :func:`trained_teacher`, distilled without data, and its generator.

    Both as the last episode left them, in eval mode on the CPU; kept as the teacher is.
    """
    config = replace(preset.distill, seed=seed)
    teach_config = replace(preset.teach, seed=seed)
    notes = {
        "data": data.name,
        "config": repr(config),
        "method": repr(preset.method),
        "teacher": f"{preset.teacher} {teach_config!r}",
    }
    stem = f"{_label(data)}_{preset.teacher}_{preset.student}_seed{seed}"
    names = (f"{stem}.safetensors", f"{stem}_generator.safetensors")
    student_file, generator_file = (_find("students", name, notes) for name in names)
    generator = AttentionGenerator(data.size, data.channels, preset.method.generator)
    if student_file is None or generator_file is None:
        teacher, spec = trained_teacher(data, preset, seed)
        result = distill(teacher, preset.student, spec, config, preset.method)
        student_file, generator_file = (_kept("students", name) for name in names)
        save_network(student_file, result.student, replace(spec, network=preset.student), notes)
        save_weights(generator_file, result.modules["generator"], notes)
    load_weights(generator_file, generator)
    return load_network(student_file)[0], generator.eval()


def _label(data: ImageData) -> str:
    return f"{Path(data.name).stem}-{data.size}px"


def _kept(kind: str, name: str) -> Path:
    return data_root() / kind / name


def _find(kind: str, name: str, notes: dict[str, str]) -> Path | None:
    """The shipped or kept file of that name, if it was made with the same settings."""
    for path in (SHIPPED / kind / name, _kept(kind, name)):
        if path.is_file():
            found = read_metadata(path)
            if all(found.get(key) == value for key, value in notes.items()):
                return path
    return None
