"""``python -m dfkd_lite`` is the command ``dfkd``."""

import sys

from .cli.main import main

sys.exit(main())
