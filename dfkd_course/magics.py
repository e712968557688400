"""Leaves out what only a notebook's kernel understands: `%magics`, `!commands`, `help?`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

#: Cell magics whose cell is no Python of this notebook. Of others, the cell runs without its head.
NOT_PYTHON = {
    "!", "bash", "cmd", "cython", "file", "html", "js", "javascript", "julia", "latex", "markdown",
    "perl", "pypy", "python", "python2", "python3", "r", "ruby", "script", "sh", "sql", "svg",
    "sx", "system", "writefile",
}  # fmt: skip


class Shell(InteractiveShell):
    """Turns cells into Python as IPython does, and obeys no magic and no command in them.

    Whatever it leaves out, it says to ``leave_out``. Only the statement of ``%time`` and the cells
    below ``%%time``, ``%%capture`` and the like run.
    """

    leave_out: Callable[[str], None]

    def run_line_magic(self, magic_name: str, line: str, _stack_depth: int = 1) -> Any:
        self.leave_out(f"%{magic_name} {line}".strip())
        if magic_name == "time":
            exec(compile(self.transform_cell(line), "<%time>", "exec"), self.user_ns)

    def run_cell_magic(self, magic_name: str, line: str, cell: str) -> Any:
        self.leave_out(f"%%{magic_name} {line}".strip())
        if magic_name.lower() not in NOT_PYTHON:
            exec(compile(self.transform_cell(cell), f"<%%{magic_name}>", "exec"), self.user_ns)

    def system(self, cmd: str) -> None:
        self.leave_out(f"!{cmd}")

    def getoutput(self, cmd: str, split: bool = True, depth: int = 0) -> list[str]:
        self.leave_out(f"!{cmd}")
        return []

    def enable_gui(self, gui: str | None = None) -> None:
        self.leave_out(f"%gui {gui}")

    def enable_matplotlib(self, gui: str | None = None) -> None:
        self.leave_out(f"%matplotlib {gui}")


def make_shell(leave_out: Callable[[str], None]) -> Shell:
    """Make the shell of a submission; ``display`` is there, as in a notebook."""
    from IPython.display import display

    config = Config()
    config.HistoryManager.enabled = False
    shell = Shell.instance(config=config)
    shell.leave_out = leave_out
    shell.user_ns["display"] = display
    return shell
