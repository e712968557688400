"""Keeps runs in checkpoints: from the newest one, a run that was cut off goes on to the same end.

A checkpoint is one file, written whole or not at all: a line of JSON with the checksum of the rest,
then plain data and tensors as ``torch.save`` writes them, which are read without unpickling
objects.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, check_range
from .files import cannot_write, write_bytes
from .weights import check_all_finite, plain_copies

CHECKPOINT_FORMAT = "dfkd_lite checkpoint 2"

_NAME = re.compile(r"step-(\d{6,})\.pt")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Holds a run as `save_checkpoint` kept it.

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
    """Save a run as ``folder/step-000120.pt``, then remove the checkpoint before it.

    Args:
        step: 0 or more, not below the step of a checkpoint that is there already.
        weights: state dicts by name, each tensor finite.
        state: plain data and tensors only, so that it loads without unpickling objects.

    Raises:
        InputError: one of these does not hold, or the place cannot be written to. The checkpoint
            before stays usable in every case.
    """
    folder = Path(folder)
    check_range("step", step, 0)
    for name, tensors in weights.items():
        wrong = "the run has diverged, so nothing was saved: lower the learning rate"
        check_all_finite(f"At step {step}, {name}", tensors, wrong)
    copies = {name: plain_copies(tensors) for name, tensors in weights.items()}
    content = _packed(Checkpoint(step, copies, state))
    path = folder / f"step-{step:06d}.pt"
    try:
        older = _steps(folder)
        if older and max(older) > step:
            raise InputError(
                f"{folder} holds a checkpoint of step {max(older)}, later than step {step}; go on "
                "from it, or choose another folder."
            )
        for leftover in folder.glob(".step-*.tmp"):  # of a run that was killed
            leftover.unlink(missing_ok=True)
        write_bytes(path, content)
        for other in older.values():
            if other != path:
                other.unlink()
    except OSError as error:
        raise cannot_write(folder, error) from None


def load_checkpoint(folder: str | Path) -> Checkpoint | None:
    """Load the newest checkpoint in ``folder``; None: there is none.

    Raises:
        InputError: the newest one is damaged, or was not written by `save_checkpoint`.
    """
    try:
        steps = _steps(Path(folder))
        return _read(steps[max(steps)], max(steps)) if steps else None
    except OSError as error:
        raise InputError(f"The checkpoint in {folder} cannot be read ({error}).") from None


def open_run(folder: str | Path, resume: bool, identity: str) -> Checkpoint | None:
    """Load the newest checkpoint of a run from ``folder``; None: there is none yet.

    ``identity`` spells out the run's settings; its state holds the same text as "run".

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


def _steps(folder: Path) -> dict[int, Path]:
    found = ((_NAME.fullmatch(path.name), path) for path in folder.glob("step-*"))
    return {int(match[1]): path for match, path in found if match}


# What torch.save and torch.load raise where there is more than data, or the file is damaged.
_BAD_STATE = (pickle.PickleError, RuntimeError, AttributeError, TypeError, KeyError, EOFError)


def _packed(found: Checkpoint) -> bytes:
    buffer = io.BytesIO()
    try:
        torch.save(vars(found), buffer)
        content = buffer.getvalue()
        _unpacked(content)  # refuses now what could not be loaded when the run is to go on
    except _BAD_STATE as error:
        raise InputError(
            "The state of the run cannot be saved: it may hold plain data and tensors only "
            f"({_why(error)})."
        ) from None
    about = {"format": CHECKPOINT_FORMAT, "sha256": hashlib.sha256(content).hexdigest()}
    return json.dumps(about).encode() + b"\n" + content


def _unpacked(content: bytes) -> Checkpoint:
    found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(found["state"], dict):
        raise TypeError(f"it is a {type(found['state']).__name__}, not a dictionary")
    return Checkpoint(**found)


def _why(error: Exception) -> str:
    """Give the reason in a few words; torch's own text advises to load without its guard."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"found {found[1]}" if found else (str(error) or type(error).__name__).splitlines()[0]


def _read(path: Path, step: int) -> Checkpoint:
    first, _, content = path.read_bytes().partition(b"\n")
    try:
        about = json.loads(first)
        known = about["format"] == CHECKPOINT_FORMAT
        whole = about["sha256"] == hashlib.sha256(content).hexdigest()
    except (ValueError, TypeError, KeyError):
        known = whole = False
    if not known:
        raise InputError(
            f"{path} is not a checkpoint of this package; move it away, or choose another folder."
        )
    try:
        if not whole:
            raise TypeError("it is not as it was saved")
        found = _unpacked(content)
        if found.step != step:
            raise TypeError(f"it says step {found.step}")
        for name, tensors in found.weights.items():
            check_all_finite(name, tensors, "no checkpoint was saved so")
    except (InputError, *_BAD_STATE) as error:
        raise InputError(
            f"The checkpoint {path} is damaged ({_why(error)}); delete this file, and the run "
            "starts anew."
        ) from None
    return found
