"""One file a method, one line each in :data:`METHODS`."""

from __future__ import annotations

from typing import Any

from ..errors import choose
from .base import Method, Problem
from .baselines import Given, GivenConfig, Noise, NoiseConfig
from .fssc import Fssc, FsscConfig

METHODS: dict[str, type[Method]] = {"fssc": Fssc, "noise": Noise, "given": Given}


def create(config: Any, problem: Problem) -> Method:
    """The method whose settings ``config`` is.

    Raises:
        InputError: no method has settings of this type.
    """
    by_config = {method.Config.__name__: method for method in METHODS.values()}
    name = choose("kind of method settings", type(config).__name__, by_config)
    return by_config[name](problem, config)


__all__ = [
    "METHODS",
    "Fssc",
    "FsscConfig",
    "Given",
    "GivenConfig",
    "Method",
    "Noise",
    "NoiseConfig",
    "Problem",
    "create",
]
