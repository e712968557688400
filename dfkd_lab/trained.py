"""Trains or loads the teacher and the student that chapters and experiments start from.

What a preset, a data set and a seed give is trained once and kept. Some files ship with the code,
so that the book starts where a reader without data starts: from a teacher alone.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from dfkd_lite.data import ImageData, data_root
from dfkd_lite.devices import resolve_device
from dfkd_lite.distill import Distillation
from dfkd_lite.errors import InputError
from dfkd_lite.generator import AttentionGenerator
from dfkd_lite.measure.evaluate import evaluate
from dfkd_lite.networks import NetworkSpec
from dfkd_lite.presets import Preset
from dfkd_lite.settings import plain
from dfkd_lite.storage.checkpoint import load_checkpoint
from dfkd_lite.storage.files import write_json
from dfkd_lite.storage.shipped import SHIPPED
from dfkd_lite.storage.weights import (
    load_network,
    load_weights,
    read_metadata,
    save_network,
    save_weights,
)
from dfkd_lite.teach import TeachConfig, teach

from .records import described, environment

SMALL = 2**20  # bytes; weights up to this size are not rounded, as that would save too little


def trained_teacher(
    data: ImageData, preset: Preset, seed: int = 0
) -> tuple[nn.Module, NetworkSpec]:
    """Load or train the preset's teacher of ``data``, as :func:`taught` does, and its spec."""
    teacher, spec, _ = taught(data, preset.teacher, replace(preset.teach, seed=seed))
    return teacher, spec


def taught(
    data: ImageData,
    network: str,
    config: TeachConfig,
    device: str = "auto",
    progress: bool = True,
) -> tuple[nn.Module, NetworkSpec, dict[str, Any]]:
    """Load or train a teacher of ``data``; return it in eval mode on the CPU, its spec, its card.

    It is loaded where a file made with the same settings is there; else trained (with a progress
    bar, and from where it was cut off, if it was) and kept below
    :func:`dfkd_lite.data.data_root`. The returned network is the one in the file: weights of more
    than 1 MB are rounded to float16 where that leaves the test accuracy as it is. The card, a JSON
    file beside the weights, says what they are: data, network, settings (and the format that the
    precision "auto" stood for), test accuracy, checksum, where and how long they were trained.
    """
    path = find_teacher(data, network, config)
    if path is None:
        path = _kept_teacher(data, network, config)
        cut_off = data_root() / "checkpoints" / path.stem
        where = environment(resolve_device(device))
        teacher, spec, history = teach(
            network, data, config, device, progress, folder=cut_off, resume=True
        )
        last = load_checkpoint(cut_off)
        assert last is not None  # its epochs are at least one
        config = replace(config, precision=last.state.get("precision", config.precision))
        about = {
            "settings": plain(config),
            "environment": where,
            "seconds": sum(row["seconds"] for row in history),
            "history": history,
        }
        keep_teacher(path, teacher.cpu(), spec, data, config, about)
        shutil.rmtree(cut_off, ignore_errors=True)
    return *load_network(path), _checked_card(path)


def as_taught(config: TeachConfig, card: dict[str, Any]) -> TeachConfig:
    """Give the settings of a teacher as its card has them: in a format, where "auto" was asked."""
    return replace(config, precision=card["settings"].get("precision", config.precision))


def find_teacher(data: ImageData, network: str, config: TeachConfig) -> Path | None:
    """Find the shipped or kept weights of :func:`taught`'s teacher; None: it is to be trained."""
    shipped = SHIPPED / "teachers" / f"{_stem(data, network, config)}.safetensors"
    if _is_whole(shipped) and _fits(shipped, {"data": data.name, "config": config}):
        return shipped
    kept = _kept_teacher(data, network, config)
    return kept if _is_whole(kept) else None


def _kept_teacher(data: ImageData, network: str, config: TeachConfig) -> Path:
    """Name the file of a teacher by its settings and images.

    Others get another name, so nothing is replaced, and a run that was cut off is only continued
    as itself.
    """
    identity = f"{config!r} {described(data)['sha256']}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return data_root() / "teachers" / f"{_stem(data, network, config)}_{key}.safetensors"


def _is_whole(path: Path) -> bool:
    return path.is_file() and path.with_suffix(".json").is_file()


def _checked_card(path: Path) -> dict[str, Any]:
    """Read the card beside the weights, and refuse it where it describes others."""
    try:
        card = json.loads(path.with_suffix(".json").read_bytes())
        belongs = card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError, KeyError, TypeError):
        belongs = False
    if not belongs:
        raise InputError(
            f"{path} and its card (.json) do not belong together, or one of them is damaged: "
            "delete both, and the teacher is trained anew."
        )
    return card


def keep_teacher(
    path: Path,
    teacher: nn.Module,
    spec: NetworkSpec,
    data: ImageData,
    config: TeachConfig,
    about: dict[str, Any],
) -> None:
    """Write a teacher (on the CPU) and its card, the card last: with it, the teacher is whole."""
    rounded = copy.deepcopy(teacher).half().float()
    within = all(bool(value.isfinite().all()) for value in rounded.state_dict().values())
    size = sum(value.nbytes for value in teacher.state_dict().values())
    report = evaluate(teacher, data.test, spec)
    if size > SMALL and within:
        again = evaluate(rounded, data.test, spec)
        if again["accuracy"] == report["accuracy"]:
            teacher, report = rounded, again
    half = teacher is rounded
    notes = {
        "data": data.name,
        "config": repr(config),
        "test_accuracy": f"{report['accuracy']:.4f}",
    }
    save_network(path, teacher.half() if half else teacher, spec, notes)
    card = {
        "data": described(data),
        "network": spec.network,
        "seed": config.seed,
        "epochs": config.epochs,
        "test": report,
        "stored_as": "float16" if half else "float32",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        **about,
    }
    write_json(path.with_suffix(".json"), card)


def trained_student(
    data: ImageData, preset: Preset, seed: int = 0
) -> tuple[nn.Module, AttentionGenerator]:
    """Load or distil the preset's student of :func:`trained_teacher`, and its generator.

    The student is distilled without data. Both are as the last episode left them, in eval mode on
    the CPU, and kept as the teacher is.
    """
    config, of_teacher = replace(preset.distill, seed=seed), replace(preset.teach, seed=seed)
    made_with = {
        "data": data.name,
        "config": config,
        "method": preset.method,
        "teacher": of_teacher,
    }
    stem = f"{_label(data)}_{preset.teacher}_{preset.student}_seed{seed}"
    names = (f"{stem}.safetensors", f"{stem}_generator.safetensors")
    student_file, generator_file = (_find_student(name, made_with) for name in names)
    generator = AttentionGenerator(data.size, data.channels, preset.method.generator)
    if student_file is None or generator_file is None:
        teacher, spec, card = taught(data, preset.teacher, of_teacher)
        run = Distillation(teacher, preset.student, spec, config, preset.method)
        result = run.run()
        student_file, generator_file = (data_root() / "students" / name for name in names)
        notes = {key: str(value) for key, value in (made_with | {"config": run.config}).items()}
        notes["teacher"] = f"{preset.teacher} {as_taught(of_teacher, card)}"
        save_network(student_file, result.student, replace(spec, network=preset.student), notes)
        save_weights(generator_file, result.modules["generator"], notes)
    load_weights(generator_file, generator)
    return load_network(student_file)[0], generator.eval()


def _label(data: ImageData) -> str:
    return f"{Path(data.name).stem}-{data.size}px"


def _stem(data: ImageData, network: str, config: TeachConfig) -> str:
    return f"{_label(data)}_{network}_seed{config.seed}"


def _find_student(name: str, made_with: dict[str, Any]) -> Path | None:
    """Find the shipped or kept file of that name, if it was made with the same settings."""
    paths = (folder / "students" / name for folder in (SHIPPED, data_root()))
    return next((path for path in paths if path.is_file() and _fits(path, made_with)), None)


def _fits(path: Path, made_with: dict[str, Any]) -> bool:
    """Check whether the notes in a file say that it was made with these settings."""
    notes = read_metadata(path)
    return all(_says(notes.get(key, ""), value) for key, value in made_with.items())


def _says(note: str, value: Any) -> bool:
    """Check whether a note is the text ``value``, or the ``repr`` of the settings ``value``.

    A student's note names its teacher's network before the settings, as its file name does. Of the
    precision "auto" is each that a note names.
    """
    if isinstance(value, str):
        return note == value
    try:
        written = ast.parse(note[note.find(f"{type(value).__name__}(") :], mode="eval")
        noted = _rebuilt(written.body, value)
        if getattr(value, "precision", "") == "auto":
            value = replace(value, precision=noted.precision)
        return bool(noted == value)
    except (AttributeError, SyntaxError, TypeError, ValueError):  # other settings than these
        return False


def _rebuilt(written: ast.expr, like: Any) -> Any:
    """Read settings back from their ``repr``; a field that it lacks gets its default."""
    if not isinstance(written, ast.Call):
        return ast.literal_eval(written)
    if ast.unparse(written.func) != type(like).__name__:
        raise TypeError("settings of another kind")
    noted = {str(keyword.arg): keyword.value for keyword in written.keywords}
    return type(like)(**{name: _rebuilt(noted[name], getattr(like, name)) for name in noted})
