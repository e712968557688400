"""Run ``python -m dfkd_lite``, the same as the command ``dfkd``."""

import sys

from .cli.main import main

sys.exit(main())
