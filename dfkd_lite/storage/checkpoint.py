"""Saving and loading: weights as safetensors, the rest without pickled code, whole or not at all.

Every file is written beside its place, synchronised with the disk and only then renamed, so a
full disk, Ctrl-C or a killed process leaves what was there before. Nothing is ever unpickled into
arbitrary objects: a file from a stranger can be wrong, but it cannot run code.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from ..errors import DivergedError, InputError, check_range
from ..networks import NetworkSpec
from ..networks.zoo import build

CHECKPOINT_FORMAT = "dfkd_lite checkpoint 1"
_STEP = re.compile(r"step-(\d{6,})")
_RESERVED = ("format", "spec")  # metadata keys that save_network writes itself


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


# --- Files, whole or not at all --------------------------------------------------------------


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file so that ``path`` holds either what it held before, or all of ``content``.

    Missing folders are made.

    Raises:
        InputError: the disk is full, or the place cannot be written to.
    """
    path = Path(path)
    # one name a writer, so that two of them cannot mix their bytes
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_synced(temporary, content)
            os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from None


def write_json(path: str | Path, content: Any) -> None:
    """Write plain data as indented JSON, as `write_bytes` does.

    Raises:
        InputError: as `write_bytes`; or ``content`` holds what JSON cannot (tensors, NaN).
    """
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path} cannot be written as JSON ({error}); give it plain numbers, strings, lists "
            "and dictionaries, and None where a number does not exist."
        ) from None
    write_bytes(path, f"{text}\n".encode())


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut; only POSIX can open a folder to do so."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(path: Path, error: OSError) -> InputError:
    reasons = {
        errno.ENOSPC: "the disk is full; free some space, or choose another folder",
        errno.EDQUOT: "the disk quota is used up; free some space, or choose another folder",
        errno.EACCES: "this is not allowed there; choose a folder that you may write to",
        errno.EPERM: "this is not allowed there; choose a folder that you may write to",
        errno.EROFS: "the disk is read-only; choose another folder",
        errno.ENOTDIR: "a part of its path is a file, not a folder; choose another folder",
        errno.EEXIST: "a part of its path is a file, not a folder; choose another folder",
        errno.EISDIR: "a folder has this name; choose another name",
    }
    reason = reasons.get(error.errno or 0, f"{error.strerror or error}; choose another folder")
    return InputError(f"{path} could not be saved: {reason}. What was saved before is untouched.")


# --- Weights ---------------------------------------------------------------------------------


def check_finite(name: str, model: nn.Module) -> None:
    """Refuse a network with NaN or infinite weights or statistics.

    Args:
        name: what to call the network in the message, such as ``"The teacher"``.

    Raises:
        InputError: naming the first tensor that is not finite.
    """
    _check_finite(name, model.state_dict(), "train it anew, or load an earlier checkpoint")


def _check_finite(name: str, weights: Mapping[str, Tensor], advice: str) -> None:
    for key, value in weights.items():
        if not torch.isfinite(value).all():
            raise DivergedError(f"{name} has NaN or infinite numbers in '{key}'; {advice}.")


def fingerprint(model: nn.Module) -> str:
    """A checksum of a network's weights and statistics: the same for the same numbers."""
    digest = hashlib.sha256()
    for name, value in _plain(model.state_dict()).items():
        digest.update(name.encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_network(
    path: str | Path, model: nn.Module, spec: NetworkSpec, extra: dict[str, str] | None = None
) -> None:
    """Save weights, and in the file's metadata all that is needed to rebuild and feed the network.

    Args:
        spec: as `ImageData.spec` gives it; `load_network` builds ``spec.network`` from it.
        extra: further notes for the metadata (see `read_metadata`), strings only.

    Raises:
        InputError: weights that are not finite, notes that are not strings, an unwritable place.
    """
    described = {"spec": json.dumps(dataclasses.asdict(spec))}
    save_weights(path, model, described | _checked_notes(extra or {}))


def save_weights(path: str | Path, model: nn.Module, notes: dict[str, str]) -> None:
    """Save weights that :func:`load_weights` reads, with ``notes`` in the file's metadata.

    Raises:
        InputError: weights that are not finite, an unwritable place.
    """
    check_finite("The network", model)
    write_bytes(path, _serialised(_plain(model.state_dict()), {"format": "pt", **notes}))


def _serialised(tensors: dict[str, Tensor], notes: dict[str, str]) -> bytes:
    """A safetensors file whose bytes follow from its content: the library writes notes in random
    order, and equal networks would have different checksums."""
    content = to_safetensors(tensors, notes)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(notes.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    size = -(-len(text) // 8) * 8  # the tensors stay aligned
    return size.to_bytes(8, "little") + text.ljust(size) + content[end:]


def _checked_notes(notes: dict[str, str]) -> dict[str, str]:
    for key, value in notes.items():
        if not isinstance(key, str) or not isinstance(value, str) or key in _RESERVED:
            raise InputError(
                f"The note {key!r}: {value!r} cannot be saved with the network; notes are strings "
                f"under names other than {' and '.join(_RESERVED)}."
            )
    return notes


def load_network(path: str | Path) -> tuple[nn.Module, NetworkSpec]:
    """Rebuild a network saved by `save_network`: on the CPU, in eval mode.

    Raises:
        InputError: a missing, damaged or foreign file, an unknown network, weights that do not
            fit it or are not finite.
    """
    path = Path(path)
    spec = _parse_spec(path, read_metadata(path).get("spec"))
    model = build(spec.network, spec.classes, spec.channels, spec.size)
    load_weights(path, model)
    return model.eval(), spec


def load_weights(path: str | Path, model: nn.Module) -> None:
    """Load a safetensors file into a network of your own; a refusal leaves the network as it was.

    Raises:
        InputError: a missing, damaged or foreign file; tensors that are missing, left over, of
            another shape or not finite.
    """
    path = Path(path)
    weights, wanted = _read_weights(path), model.state_dict()
    for problem, keys in (
        ("lacks", sorted(wanted.keys() - weights.keys())),
        ("has, beyond what the network needs,", sorted(weights.keys() - wanted.keys())),
    ):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise InputError(
                f"{path} does not fit the network: it {problem} {', '.join(keys[:3])}{more}; "
                "build the network that it was saved from."
            )
    weights = {key: weights[key] for key in wanted}  # in the network's order, not the file's
    for key, value in weights.items():
        if value.shape != wanted[key].shape:
            raise InputError(
                f"{path} does not fit the network: '{key}' is {tuple(value.shape)} in the file and "
                f"{tuple(wanted[key].shape)} in the network; are the classes, the channels and "
                "the width the same?"
            )
    _check_finite(str(path), weights, "these weights are of no use, take another file")
    model.load_state_dict(weights)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The notes in a safetensors file, without reading its weights.

    Raises:
        InputError: a missing, damaged or foreign file.
    """
    path = Path(path)
    _must_be_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _not_safetensors(path, error) from None


def _parse_spec(path: Path, text: str | None) -> NetworkSpec:
    if text is None:
        raise InputError(
            f"{path} does not say which network it holds, so save_network did not write it; build "
            "the network yourself and use load_weights."
        )
    try:
        fields: dict[str, Any] = json.loads(text)
        for key in ("mean", "std", "class_names"):
            fields[key] = tuple(fields[key])
        spec = NetworkSpec(**fields)
        if not isinstance(spec.network, str) or not all(
            type(n) is int for n in (spec.classes, spec.channels, spec.size)
        ):
            raise TypeError("its name must be text, and classes, channels, size whole numbers")
        return spec
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} describes its network in a way that cannot be understood ({error}); save it "
            "again with save_network."
        ) from None


def _plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies as safetensors wants them: on the CPU, contiguous, sharing no memory."""
    copy = torch.contiguous_format
    return {k: v.detach().cpu().clone(memory_format=copy) for k, v in weights.items()}


def _must_be_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(
            f"There is no file {path}; check the path, or train and save the network first."
        )


def _read_weights(path: Path) -> dict[str, Tensor]:
    _must_be_file(path)
    try:
        return parse_safetensors(path.read_bytes())
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _not_safetensors(path, error) from None


def _not_safetensors(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} is not a safetensors file, or it is damaged or cut short ({error}); get it again "
        "(pickled .pt and .pth files are never opened: they could run code)."
    )


# --- Checkpoints of a run --------------------------------------------------------------------


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
        raise _cannot_write(folder, error) from None


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
        _check_finite(
            f"At step {step}, {name}",
            tensors,
            "the run has diverged, so nothing was saved: lower the learning rate",
        )
        files[f"{name}.safetensors"] = _serialised(_plain(tensors), {"format": "pt"})
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
            _write_synced(temporary / name, content)
        _sync_folder(temporary)
        if target.exists():  # the same step again: a full folder cannot be replaced in one step,
            os.replace(target, old)  # but _recover brings it back if the next line is never reached
        os.replace(temporary, target)
        _sync_folder(target.parent)
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
