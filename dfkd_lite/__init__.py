"""dfkd_lite: data-free knowledge distillation, small enough to read.

>>> from dfkd_lite import load, teach, distill, preset
>>> lite = preset("lite")
>>> data = load("digits")
>>> teacher, spec, _ = teach(lite.teacher, data, lite.teach)
>>> result = distill(teacher, lite.student, spec, lite.distill, lite.method)
"""

import os
import sys

if "torch" not in sys.modules:  # it reads this once, when it is loaded
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

from .data import load
from .distill import Distillation, DistillConfig, distill
from .errors import InputError
from .measure.evaluate import evaluate
from .methods import FsscConfig
from .networks import NetworkSpec, build, normalise
from .presets import preset
from .settings import override
from .teach import TeachConfig, teach

__version__ = "0.1.0"

__all__ = [
    "DistillConfig",
    "Distillation",
    "FsscConfig",
    "InputError",
    "NetworkSpec",
    "TeachConfig",
    "build",
    "distill",
    "evaluate",
    "load",
    "normalise",
    "override",
    "preset",
    "teach",
]
