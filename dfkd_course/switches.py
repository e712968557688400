"""Keeps the global switches of Python, numpy and torch, and puts them back.

A test has to give the same result whatever a submission has thrown on its way.
"""

from __future__ import annotations

import decimal
import gc
import locale
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as hooks
from torch.testing import _comparison
from torch.utils import _python_dispatch, deterministic

#: Lists and dictionaries whose contents are switches.
CONTENTS: tuple[tuple[Any, str], ...] = (
    (warnings, "filters"), (sys, "path"), (sys, "meta_path"), (sys, "path_hooks"),
    (_comparison, "_DTYPE_PRECISIONS"),
    *((hooks, name) for name in vars(hooks) if name.startswith("_global_") and "hooks" in name),
)  # fmt: skip
#: Attributes that are switches.
VALUES: tuple[tuple[Any, str], ...] = (
    (deterministic, "fill_uninitialized_memory"),
    (torch.backends.cudnn, "deterministic"), (torch.backends.cudnn, "benchmark"),
    (torch.backends.opt_einsum, "enabled"), (torch.backends.mkldnn, "enabled"),
)  # fmt: skip


def keep_switches() -> Callable[[], None]:
    """Return a function that puts all switches back to what they are now."""
    undo: list[Callable[[], Any]] = []
    for read, write in _pairs():
        undo.append(_call(write, read()))
    for owner, name in CONTENTS:
        undo.append(_call(_fill, owner, name, getattr(owner, name), _copy(getattr(owner, name))))
    for owner, name in VALUES:
        undo.append(_call(setattr, owner, name, getattr(owner, name)))
    undo += [_leave_modes, gc.enable, _call(torch.set_default_device, None)]
    undo += [_call(sys.settrace, None), _call(sys.setprofile, None)]

    def put_back() -> None:
        for step in undo:
            with suppress(Exception):  # a switch that this version of a library does not have
                step()

    return put_back


@contextmanager
def ordinary_gradients() -> Iterator[None]:
    """Compute gradients inside the ``with`` block, whatever modes were left open."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _pairs() -> Iterable[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """Yield how each switch is read, and written."""
    return (
        (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
        (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (torch.get_rng_state, torch.set_rng_state),
        (lambda: torch.is_autocast_enabled("cpu"), _call(torch.set_autocast_enabled, "cpu")),
        (lambda: False, torch.set_flush_denormal),
        (lambda: "default", lambda profile: torch.set_printoptions(profile=profile)),
        (np.geterr, lambda kinds: np.seterr(**kinds)),
        (np.geterrcall, np.seterrcall),
        (np.get_printoptions, lambda options: np.set_printoptions(**options)),
        (np.random.get_state, np.random.set_state),
        (random.getstate, random.setstate),
        (decimal.getcontext().copy, decimal.setcontext),
        (lambda: locale.setlocale(locale.LC_ALL), _call(locale.setlocale, locale.LC_ALL)),
        (sys.getrecursionlimit, sys.setrecursionlimit),
        (os.getcwd, os.chdir),
        (lambda: dict(os.environ), _set_environment),
        (lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()), _set_signals),
    )


def _call(function: Callable[..., Any], *first: Any) -> Callable[..., Any]:
    return lambda *rest: function(*first, *rest)


def _copy(content: Any) -> Any:
    return content.copy()


def _fill(owner: Any, name: str, place: Any, content: Any) -> None:
    """Put the very list or dictionary back, with what it held."""
    setattr(owner, name, place)
    place.clear()
    (place.update if isinstance(place, dict) else place.extend)(content)
    if owner is warnings:
        warnings._filters_mutated()


def _set_environment(names: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(names)


def _set_signals(blocked: Iterable[int]) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _leave_modes() -> None:
    """Leave the function and dispatch modes that were entered and not left."""
    while torch._C._len_torch_function_stack():
        torch.overrides._pop_mode()
    while torch._C._len_torch_dispatch_stack():
        _python_dispatch._pop_mode()
