"""Devices, number formats and seeds of a run."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .errors import InputError, choose

M = TypeVar("M", bound=nn.Module)

#: Number formats in which networks compute while they learn. Weights and losses stay float32, and
#: measurements are always made in float32.
PRECISIONS = ("float32", "bfloat16")


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device ``name`` in torch's spelling; ``auto`` is a GPU if there is one, else the
    CPU.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise InputError(
            f"There is no device '{name}' here: use 'cpu', or 'auto' for whatever there is."
        ) from None
    return device


def placed(module: M, device: torch.device) -> M:
    """Move ``module`` to ``device``, channels last: 20 to 25 % faster on two cores."""
    return module.to(device).to(memory_format=torch.channels_last)


def mixed(device: torch.device, precision: str) -> torch.autocast:
    """Return a context in which networks compute in ``precision`` where this is safe (autocast).

    Raises:
        InputError: the precision is unknown; the message offers the nearest.
    """
    low = choose("precision", precision, PRECISIONS) == "bfloat16"
    # no cache of converted weights, because optimisers change the weights within the context
    return torch.autocast(device.type, torch.bfloat16, enabled=low, cache_enabled=False)


def full(x: Tensor) -> Tensor:
    """Return ``x`` in at least float32: losses and statistics need more than half precision."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def exact(x: Tensor) -> Tensor:
    """Return ``x``, detached, in float64 on the CPU: not every device has that (MPS does not)."""
    return x.detach().cpu().double()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all global sources of chance for the block, and restore their states after it.

    These are torch's, on the CPU and on every accelerator in use, NumPy's and Python's: dropout,
    stochastic depth and augmentations inside a network draw from them.
    """
    generators = _global_generators()
    states = [generator.get_state() for generator in generators]
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        for generator in generators:
            generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)


def derived_seed(*parts: int) -> int:
    """Derive a seed below 2**63 from whole numbers; others give an unrelated one."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _global_generators() -> list[torch.Generator]:
    """Return torch's default generators: the CPU's, and those of accelerators that are in use."""
    found = [torch.default_generator]
    for kind in (torch.cuda, torch.xpu):
        if kind.is_available() and kind.is_initialized():
            found += kind.default_generators
    if torch.backends.mps.is_available():
        found.append(torch.mps._get_default_mps_generator())
    return found
