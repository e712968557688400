"""Devices, number formats and seeds of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch with ``seed`` for the block, and restore torch's global random state after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
