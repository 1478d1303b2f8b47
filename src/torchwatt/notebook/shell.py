"""The IPython shell of a magic, and the numbers of its cells."""

from __future__ import annotations

from typing import Any, TypeAlias

# An `InteractiveShell`, which IPython types only in part.
Shell: TypeAlias = Any


def cell_number(shell: Shell) -> int:
    """Return the number of the running cell, `In [n]`; `execution_count` is already the next one."""
    running = shell.displayhook.exec_result
    if running is not None and running.execution_count is not None:
        return int(running.execution_count)
    return int(shell.execution_count) - 1


def coming_cell_number(shell: Shell) -> int:
    """Return the number of the cell being prepared: while no cell runs, that is `execution_count`."""
    return cell_number(shell) if shell.displayhook.exec_result is not None else int(shell.execution_count)
