"""Where a run happens, and the randomness of what is made there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from .errors import InputError, choose

M = TypeVar("M", bound=nn.Module)

#: What networks compute in while they learn; weights and losses stay float32, and measurements
#: are always made in float32.
PRECISIONS = ("float32", "bfloat16")


def resolve_device(name: str = "auto") -> torch.device:
    """``auto`` is the GPU where there is one, else the CPU; else a name as torch spells it.

    Raises:
        InputError: no such device here.
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
    """``module`` on ``device``, its convolutions channels last: 20 to 25 % faster on two cores."""
    return module.to(device).to(memory_format=torch.channels_last)


def mixed(device: torch.device, precision: str) -> torch.autocast:
    """A context in which networks compute in ``precision`` where it is safe (autocast).

    Raises:
        InputError: unknown precision; the nearest is offered.
    """
    low = choose("precision", precision, PRECISIONS) == "bfloat16"
    # No cache of converted weights: optimisers change them within the context.
    return torch.autocast(device.type, torch.bfloat16, enabled=low, cache_enabled=False)


def full(x: Tensor) -> Tensor:
    """``x`` in at least float32: losses and statistics are not taken in half precision."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from ``seed``, and leave torch's global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
