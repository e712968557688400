"""Saves networks as safetensors files: weights, and in the notes all that their use needs.

Nothing is unpickled: a file from a stranger can be wrong, but it cannot run code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from ..errors import DivergedError, InputError
from ..networks import NetworkSpec, build
from ..networks.layers import unwrapped
from ..settings import checked
from .files import write_bytes

_RESERVED = ("format", "spec")  # metadata keys that save_network writes itself


def check_finite(name: str, model: nn.Module) -> None:
    """Refuse a network with NaN or infinite weights or statistics.

    Args:
        name: what to call the network in the message, such as ``"The teacher"``.

    Raises:
        InputError: naming the first tensor that is not finite.
    """
    check_all_finite(name, model.state_dict(), "train it anew, or load an earlier checkpoint")


def check_all_finite(name: str, weights: Mapping[str, Tensor], advice: str) -> None:
    """Refuse NaN, infinite numbers and negative variances; ``advice`` says what to do."""
    for key, value in weights.items():
        if not torch.isfinite(value).all():
            raise DivergedError(f"{name} has NaN or infinite numbers in '{key}'; {advice}.")
        if key.endswith("running_var") and (value < 0).any():
            raise InputError(f"{name} has negative variances in '{key}'; {advice}.")


def fingerprint(model: nn.Module) -> str:
    """Work out a checksum of a network's weights and statistics: equal for equal numbers."""
    digest = hashlib.sha256()
    for name, value in plain_copies(model.state_dict()).items():
        digest.update(name.encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_network(
    path: str | Path, model: nn.Module, spec: NetworkSpec, extra: dict[str, str] | None = None
) -> None:
    """Save a network: weights, and in the file's metadata what rebuilding and feeding it takes.

    Args:
        spec: as `ImageData.spec` gives it; `load_network` builds ``spec.network`` from it.
        extra: further notes for the metadata (see `read_metadata`), strings only.

    Raises:
        InputError: weights that are not finite, notes that are not strings, an unwritable place.
    """
    notes = extra or {}
    for key, value in notes.items():
        if not isinstance(key, str) or not isinstance(value, str) or key in _RESERVED:
            raise InputError(
                f"The note {key!r}: {value!r} cannot be saved with the network; notes are strings "
                f"under names other than {' and '.join(_RESERVED)}."
            )
    save_weights(path, model, {"spec": json.dumps(dataclasses.asdict(spec)), **notes})


def save_weights(path: str | Path, model: nn.Module, notes: dict[str, str]) -> None:
    """Save weights that :func:`load_weights` reads, with ``notes`` in the file's metadata.

    Raises:
        InputError: weights that are not finite, an unwritable place.
    """
    model = unwrapped(model)
    check_finite("The network", model)
    write_bytes(path, serialised(plain_copies(model.state_dict()), {"format": "pt", **notes}))


def serialised(tensors: dict[str, Tensor], notes: dict[str, str]) -> bytes:
    """Write tensors and notes as the bytes of a safetensors file, the notes in order.

    The library writes notes in random order, so equal networks would have different checksums.
    """
    content = to_safetensors(tensors, notes)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(notes.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    size = -(-len(text) // 8) * 8  # the tensors stay aligned
    return size.to_bytes(8, "little") + text.ljust(size) + content[end:]


def load_network(path: str | Path) -> tuple[nn.Module, NetworkSpec]:
    """Rebuild a network saved by `save_network`: on the CPU, in eval mode.

    Raises:
        InputError: a missing, damaged or foreign file, an unknown network, weights that do not
            fit it or are not finite.
    """
    path = Path(path)
    spec = _parse_spec(path, read_metadata(path).get("spec"))
    try:
        with torch.device("meta"):  # nothing is allocated before the file's tensors are seen to fit
            blank = build(spec.network, spec.classes, spec.channels, spec.size)
    except (RuntimeError, TypeError, OverflowError):
        raise InputError(f"{path} describes a network that is too large to be built.") from None
    weights = _fitting_weights(path, blank.state_dict())
    model = build(spec.network, spec.classes, spec.channels, spec.size)
    restore(model, weights)
    return model.eval(), spec


def load_weights(path: str | Path, model: nn.Module) -> None:
    """Load a safetensors file into a network of your own; a refusal leaves the network as it was.

    Raises:
        InputError: a missing, damaged or foreign file; tensors that are missing, left over, of
            another shape or not finite.
    """
    model = unwrapped(model)
    restore(model, _fitting_weights(Path(path), model.state_dict()))


def restore(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights that come from a file: of the version that the module's own weights have.

    A file keeps no versions, and some networks (torchvision's MNASNet) refuse weights without one.
    """
    state: Any = OrderedDict(weights)
    state._metadata = getattr(module.state_dict(), "_metadata", {})
    module.load_state_dict(state)


def _fitting_weights(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the tensors of a file in the order of ``wanted``; refuse others than those."""
    with _reading(path):
        weights = parse_safetensors(path.read_bytes())
    for problem, keys in (
        ("lacks", sorted(wanted.keys() - weights.keys())),
        ("has, beyond what the network needs,", sorted(weights.keys() - wanted.keys())),
    ):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise InputError(
                f"{path} does not fit the network: it {problem} {', '.join(keys[:3])}{more}; "
                f"build the network that it was saved from.{_prefix_of(weights)}"
            )
    weights = {key: weights[key] for key in wanted}  # in the network's order, not the file's
    for key, value in weights.items():
        if value.shape != wanted[key].shape:
            raise InputError(
                f"{path} does not fit the network: '{key}' is {tuple(value.shape)} in the file and "
                f"{tuple(wanted[key].shape)} in the network; are the classes, the channels and "
                "the width the same?"
            )
    check_all_finite(str(path), weights, "these weights are of no use, take another file")
    return weights


def _prefix_of(weights: Mapping[str, Tensor]) -> str:
    first = next(iter(weights), "").partition(".")[0] + "."
    shared = len(first) > 1 and all(key.startswith(first) for key in weights)
    return f" All names in the file begin with '{first}': was it wrapped?" if shared else ""


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the notes in a safetensors file without its weights.

    Raises:
        InputError: a missing, damaged or foreign file.
    """
    with _reading(Path(path)), safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _parse_spec(path: Path, text: str | None) -> NetworkSpec:
    if text is None:
        raise InputError(
            f"{path} does not say which network it holds, so save_network did not write it; build "
            "the network yourself and use load_weights."
        )
    try:
        return NetworkSpec(**checked(NetworkSpec, json.loads(text)))
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} describes its network in a way that cannot be understood ({error}); save it "
            "again with save_network."
        ) from None


def plain_copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors as safetensors wants them: on the CPU, contiguous, sharing no memory."""
    copy = torch.contiguous_format
    return {k: v.detach().cpu().clone(memory_format=copy) for k, v in weights.items()}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise InputError(
            f"There is no file {path}; check the path, or train and save the network first."
        )
    try:
        yield
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} is not a safetensors file, or it is damaged or cut short ({error}); get it "
            "again (pickled .pt and .pth files are never opened: they could run code)."
        ) from None
