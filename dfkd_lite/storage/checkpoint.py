"""Checkpoints of a run: from the newest one a run that was cut off goes on to the same end.

A checkpoint is a folder, whole or not there at all. Its weights are safetensors, the rest plain
data and tensors, which are read without unpickling objects.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor

from ..errors import InputError, check_range
from .files import cannot_write, sync_folder, write_synced
from .weights import check_all_finite, plain_copies, serialised

CHECKPOINT_FORMAT = "dfkd_lite checkpoint 1"

_STEP = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run as `save_checkpoint` kept it.

    Attributes:
        step: the step after which it was saved.
        weights: name of a network -> name of a tensor -> tensor, on the CPU.
        state: everything else: plain data and tensors.
    """

    step: int
    weights: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    folder: str | Path,
    step: int,
    weights: Mapping[str, Mapping[str, Tensor]],
    state: dict[str, Any],
) -> None:
    """Save a run as ``folder/step-000120``, then remove the checkpoint before it.

    Args:
        step: 0 or more, not below the step of a checkpoint that is there already.
        weights: state dicts by name (letters, digits, ``_`` and ``-``), each tensor finite.
        state: plain data and tensors only, so that it loads without unpickling objects.

    Raises:
        InputError: one of these does not hold, or the place cannot be written to. The checkpoint
            before stays usable in every case.
    """
    folder = Path(folder)
    check_range("step", step, 0)
    files = _checkpoint_files(step, weights, state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _recover(folder)
        for leftover in folder.glob(".step-*.tmp"):  # of a run that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        older = _steps(folder)
        if older and max(older) > step:
            raise InputError(
                f"{folder} holds a checkpoint of step {max(older)}, later than step {step}; go on "
                "from it, or choose another folder."
            )
        _publish(folder / f"step-{step:06d}", files)
        for path in (path for number, path in older.items() if number != step):
            _remove(path)
    except OSError as error:
        raise cannot_write(folder, error) from None


def load_checkpoint(folder: str | Path) -> Checkpoint | None:
    """The newest whole checkpoint in ``folder``, or None where there is none.

    What a killed run left half-written is not looked at.

    Raises:
        InputError: the newest one is damaged, or was not written by `save_checkpoint`.
    """
    folder = Path(folder)
    try:
        if not folder.is_dir():
            return None
        _recover(folder)
        steps = _steps(folder)
        return _load_step(steps[max(steps)], max(steps)) if steps else None
    except OSError as error:
        raise InputError(f"The checkpoint in {folder} cannot be read ({error}).") from None


def open_run(folder: str | Path, resume: bool, identity: str) -> Checkpoint | None:
    """The newest checkpoint in ``folder`` of the run whose settings ``identity`` spells out, saved
    in its state as "run"; None where there is none yet.

    Raises:
        InputError: there is a run and ``resume`` is False, or the run has other settings, or its
            checkpoint is damaged.
    """
    found = load_checkpoint(folder)
    if found is None:
        return None
    if not resume:
        raise InputError(
            f"{folder} already holds a run (at step {found.step}): continue it with "
            "resume=True (--resume), or give another folder."
        )
    if found.state.get("run") != identity:
        raise InputError(
            f"The checkpoint in {folder} is of a run with other settings: give the same "
            "settings to resume it, or another folder."
        )
    return found


def _load_step(path: Path, step: int) -> Checkpoint:
    files = _read_checked(path, step)
    try:
        weights = {
            name.removesuffix(".safetensors"): parse_safetensors(content)
            for name, content in files.items()
            if name.endswith(".safetensors")
        }
        state = _load_state(files["state.pt"])
    except (SafetensorError, *_BAD_STATE) as error:
        raise _damaged(path, _why(error)) from None
    for name, tensors in weights.items():
        if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
            raise _damaged(path, f"{name} has NaN or infinite numbers")
    return Checkpoint(step, weights, state)


def _checkpoint_files(
    step: int, weights: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]
) -> dict[str, bytes]:
    """Everything that a checkpoint holds, by file name, in memory."""
    files = {}
    for name, tensors in weights.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise InputError(
                f"Weights cannot be saved as '{name}'; use letters, digits, _ and - only."
            )
        check_all_finite(
            f"At step {step}, {name}",
            tensors,
            "the run has diverged, so nothing was saved: lower the learning rate",
        )
        files[f"{name}.safetensors"] = serialised(plain_copies(tensors), {"format": "pt"})
    buffer = io.BytesIO()
    try:
        torch.save(state, buffer)
        _load_state(buffer.getvalue())  # better refused now than when the run is to go on
    except _BAD_STATE as error:
        raise InputError(
            "The state of the run cannot be saved: it may hold plain data and tensors only "
            f"({_why(error)})."
        ) from None
    files["state.pt"] = buffer.getvalue()
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = {"format": CHECKPOINT_FORMAT, "step": step, "sha256": sums}
    files["manifest.json"] = json.dumps(manifest, indent=2).encode()
    return files


# What torch.save and torch.load raise for a state that is more than data, or for a damaged one.
_BAD_STATE = (pickle.PickleError, RuntimeError, AttributeError, TypeError, KeyError, EOFError)


def _why(error: Exception) -> str:
    """The reason in a few words: torch's own text goes on to advise loading without its guard."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"found {found[1]}" if found else (str(error) or type(error).__name__).splitlines()[0]


def _load_state(content: bytes) -> dict[str, Any]:
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise TypeError(f"it is a {type(state).__name__}, not a dictionary")
    return state


def _publish(target: Path, files: dict[str, bytes]) -> None:
    """Write a folder under a temporary name, then give it its own in one step."""
    temporary = target.with_name(f".{target.name}.tmp")
    old = target.with_name(f".{target.name}.old")
    try:
        temporary.mkdir()
        for name, content in files.items():
            write_synced(temporary / name, content)
        sync_folder(temporary)
        if target.exists():  # the same step again: a full folder cannot be replaced in one step,
            os.replace(target, old)  # but _recover brings it back if the next line is never reached
        os.replace(temporary, target)
        sync_folder(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _recover(target.parent)


def _recover(folder: Path) -> None:
    """Finish, or take back, a replacement of a step by itself that was cut off."""
    for old in folder.glob(".step-*.old"):
        target = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(old, target)


def _remove(path: Path) -> None:
    """Remove a checkpoint; renamed first, so that a half-removed one is never taken for whole."""
    doomed = path.with_name(f".{path.name}.tmp")
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _steps(folder: Path) -> dict[int, Path]:
    found = ((_STEP.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return {int(match[1]): path for match, path in found if match}


def _read_checked(path: Path, step: int) -> dict[str, bytes]:
    """The files of a checkpoint, after comparing them with their checksums."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        if manifest["format"] != CHECKPOINT_FORMAT:
            raise ValueError(f"its format is {manifest['format']!r}")
        sums = {str(name): str(value) for name, value in manifest["sha256"].items()}
        number = manifest["step"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} is not a checkpoint of this package ({error}); move it away, or choose "
            "another folder."
        ) from None
    present = {file.name for file in path.iterdir()} - {"manifest.json"}
    if number != step or present != set(sums):
        differing = ", ".join(sorted(present ^ set(sums))) or f"it says step {number}"
        raise _damaged(path, f"files are missing or do not belong there: {differing}")
    files = {name: (path / name).read_bytes() for name in sums}
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != sums[name]:
            raise _damaged(path, f"{name} is not as it was saved")
    return files


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(
        f"The checkpoint {path} is damaged ({reason}); delete this folder, and the run starts anew."
    )
