"""All methods: one file for each, and one line for each in :data:`METHODS`."""

from __future__ import annotations

from typing import Any

from ..errors import choose
from .adi import Adi, AdiConfig
from .base import About, Method, Problem
from .baselines import Given, GivenConfig, Noise, NoiseConfig
from .cmi import Cmi, CmiConfig
from .dafl import Dafl, DaflConfig
from .dfad import Dfad, DfadConfig
from .dfq import Dfq, DfqConfig
from .fastdfkd import FastDfkd, FastDfkdConfig
from .fssc import Fssc, FsscConfig
from .lsgdfd import LsGdfd, LsGdfdConfig
from .mix import Mix, MixConfig
from .nayer import Nayer, NayerConfig
from .spaceshipnet import SpaceshipNet, SpaceshipNetConfig
from .zskt import Zskt, ZsktConfig

#: Methods by the name in commands and experiment files, in the order of their years.
METHODS: dict[str, type[Method]] = {
    "dafl": Dafl,
    "zskt": Zskt,
    "dfad": Dfad,
    "adi": Adi,
    "dfq": Dfq,
    "ls-gdfd": LsGdfd,
    "cmi": Cmi,
    "fastdfkd": FastDfkd,
    "spaceshipnet": SpaceshipNet,
    "nayer": Nayer,
    "fssc": Fssc,
    "mix": Mix,
    "noise": Noise,
    "given": Given,
}


def create(config: Any, problem: Problem) -> Method:
    """Make the method that ``config`` has the settings of.

    Raises:
        InputError: no method has settings of this type.
    """
    by_config = {method.Config.__name__: method for method in METHODS.values()}
    name = choose("kind of method settings", type(config).__name__, by_config)
    return by_config[name](problem, config)


__all__ = [
    "METHODS",
    "About",
    "AdiConfig",
    "CmiConfig",
    "DaflConfig",
    "DfadConfig",
    "DfqConfig",
    "FastDfkdConfig",
    "Fssc",
    "FsscConfig",
    "Given",
    "GivenConfig",
    "LsGdfdConfig",
    "Method",
    "MixConfig",
    "NayerConfig",
    "Noise",
    "NoiseConfig",
    "Problem",
    "SpaceshipNetConfig",
    "ZsktConfig",
    "create",
]
