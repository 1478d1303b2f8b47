"""The IPython shell that a magic runs in."""

from __future__ import annotations

from typing import Any, TypeAlias

# An `InteractiveShell`. IPython types it only in part: strict checking stops at its edge.
Shell: TypeAlias = Any


def cell_number(shell: Shell) -> int:
    """Return the n of the `In [n]` that runs now; `execution_count` is already the next one."""
    running = shell.displayhook.exec_result
    if running is not None and running.execution_count is not None:
        return int(running.execution_count)
    return int(shell.execution_count) - 1


def coming_cell_number(shell: Shell) -> int:
    """Return the same while a cell is prepared: where none runs, `execution_count` is the one to come."""
    return cell_number(shell) if shell.displayhook.exec_result is not None else int(shell.execution_count)
