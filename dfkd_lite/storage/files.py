"""Writes files whole or not at all.

Every file is written beside its place, synchronised with the disk and only then renamed, so a
full disk, Ctrl-C or a killed process leaves what was there before.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

from ..errors import InputError


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file so that ``path`` holds either what it held before, or all of ``content``.

    Missing folders are made.

    Raises:
        InputError: the disk is full, or the place cannot be written to.
    """
    path = Path(path)
    # one name a writer, so that two of them cannot mix their bytes
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_synced(temporary, content)
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None


def write_json(path: str | Path, content: Any) -> None:
    """Write plain data as indented JSON, as `write_bytes` does.

    Raises:
        InputError: as `write_bytes`; or ``content`` holds what JSON cannot (tensors, NaN).
    """
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path} cannot be written as JSON ({error}); give it plain numbers, strings, lists "
            "and dictionaries, and None where a number does not exist."
        ) from None
    write_bytes(path, f"{text}\n".encode())


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut; only POSIX can open a folder to do so."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cannot_write(path: Path, error: OSError) -> InputError:
    """Say why a place could not be written to, and what to do."""
    reasons = {
        errno.ENOSPC: "the disk is full; free some space, or choose another folder",
        errno.EDQUOT: "the disk quota is used up; free some space, or choose another folder",
        errno.EACCES: "this is not allowed there; choose a folder that you may write to",
        errno.EPERM: "this is not allowed there; choose a folder that you may write to",
        errno.EROFS: "the disk is read-only; choose another folder",
        errno.ENOTDIR: "a part of its path is a file, not a folder; choose another folder",
        errno.EEXIST: "a part of its path is a file, not a folder; choose another folder",
        errno.EISDIR: "a folder has this name; choose another name",
    }
    reason = reasons.get(error.errno or 0, f"{error.strerror or error}; choose another folder")
    return InputError(f"{path} could not be saved: {reason}. What was saved before is untouched.")
