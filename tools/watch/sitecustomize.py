"""Writes down which files below a folder this process opens. Python runs this file at its start
if the file's folder is on PYTHONPATH: the build puts it there for the kernels of the chapters.
"""

import os
import sys

_FOLDER, _LOG = os.environ.get("DFKD_WATCHED"), os.environ.get("DFKD_OPENED")
_seen = set()


def _note(event: str, arguments: tuple) -> None:
    if event != "open" or not isinstance(arguments[0], (str, bytes)):
        return
    path = os.path.abspath(os.fsdecode(arguments[0]))
    if path.startswith(_FOLDER) and path not in _seen:
        _seen.add(path)
        with open(_LOG, "a", encoding="utf-8") as log:
            log.write(path[len(_FOLDER) :].replace(os.sep, "/") + "\n")


if _FOLDER and _LOG:
    _FOLDER = os.path.join(os.path.abspath(_FOLDER), "")
    sys.addaudithook(_note)
