"""Refuses what a submission may not do while it is graded.

The fence is Python's own audit hook (PEP 578), which cannot be removed, together with limits on
memory and on the size of files. It stops what students' code does by accident or for fun. It does
not stop somebody who knows Python's insides and looks for the hook in memory, or who brings
machine code: against that, grade in a container.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Audit events that are refused: how their names begin, and what a report calls them.
FORBIDDEN = {
    "socket.": "use the network",
    "urllib.": "use the network",
    "subprocess.": "start another program",
    "os.system": "start another program",
    "os.exec": "start another program",
    "os.posix_spawn": "start another program",
    "os.spawn": "start another program",
    "os.fork": "start another process",
    "pty.": "start another program",
    "os.kill": "signal another process",
    "signal.pthread_kill": "signal another process",
    "ctypes.dlopen": "load machine code",
    "ctypes.dlsym": "load machine code",
    "ctypes.call_function": "load machine code",
    "resource.setrlimit": "change its limits",
    "resource.prlimit": "change its limits",
}
#: Audit events that change a path: they are refused outside the submission's own folder.
CHANGING = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate",
    "os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr", "sqlite3.connect",
)  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
#: Paths of the machine that Python and its libraries read.
MACHINE = ("/usr", "/lib", "/etc", "/sys", "/dev", "/proc/cpuinfo", "/proc/meminfo", "/proc/self")


def limit(memory: int, file_size: int) -> None:
    """Limit the bytes that the process may allocate from now on, and write to any one file."""
    import resource  # Windows has no such module

    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def raise_fence(folder: Path, readable: Sequence[Path]) -> list[str]:
    """Refuse, from now on and for good, what a submission may not do.

    Args:
        folder: the submission's own folder, in which it may read and write.
        readable: more folders and files that it may read.

    Returns:
        What has been refused, each once; the list grows while the submission runs.
    """
    # what the hook names is local: a submission could replace names of a module and built-in ones
    realpath, fsdecode, sep, devnull = os.path.realpath, os.fsdecode, os.sep, os.devnull
    any_of, is_a, first, paths_are = any, isinstance, next, (str, bytes, os.PathLike)
    number, error = int, PermissionError
    forbidden, changing, writing = tuple(FORBIDDEN.items()), frozenset(CHANGING), WRITING
    own = realpath(folder)
    allowed = (own, *(realpath(path) for path in [*map(str, readable), *MACHINE]))
    refused: list[str] = []

    def inside(path: Any, *folders: str) -> bool:
        place = realpath(fsdecode(path))
        return place == devnull or any_of(place == f or place.startswith(f + sep) for f in folders)

    def name(path: Any) -> str:  # a report shows none of the grader's folders
        return fsdecode(path).rpartition(sep)[2] or "a folder"

    def objection(event: str, args: tuple[Any, ...]) -> str | None:
        if event == "open":
            path, _, flags = args
            if is_a(path, number):  # a file that is open already
                return None
            if flags & writing:
                return None if inside(path, own) else f"write {name(path)}"
            return None if inside(path, *allowed) else f"read {name(path)}"
        if event in changing:
            for path in args:
                if is_a(path, paths_are) and not inside(path, own):
                    return f"change {name(path)}"
            return None
        return first((what for start, what in forbidden if event.startswith(start)), None)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        what = objection(event, args)
        if what is not None:
            if what not in refused:
                refused.append(what)
            raise error(f"A submission may not {what} while it is graded.")

    sys.addaudithook(hook)
    return refused
