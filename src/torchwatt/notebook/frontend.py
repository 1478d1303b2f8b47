"""Detects where runs are displayed: in a Jupyter kernel, in an IPython terminal, or nowhere."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, Literal, TypeAlias

Frontend = Literal["kernel", "terminal", "nowhere"]
LIVE_VARIABLE = "TORCHWATT_LIVE"  # "off": notebooks show only the final report


def current_shell() -> Any:
    """Return the running IPython shell, None outside of IPython; imports nothing."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def detect_frontend() -> Frontend:
    """Return the kind of front end of this process."""
    kind = type(current_shell()).__name__
    if kind == "ZMQInteractiveShell":
        return "kernel"
    return "terminal" if kind == "TerminalInteractiveShell" else "nowhere"


def supports_live(ip: Any) -> bool:
    """Return whether a live view can be shown: in a kernel, with outputs not captured, and not switched off."""
    if os.environ.get(LIVE_VARIABLE, "").lower() in {"off", "0", "no"} or type(ip).__name__ != "ZMQInteractiveShell":
        return False
    return "Capturing" not in type(ip.display_pub).__name__


def in_output_widget() -> bool:
    """Return whether an `ipywidgets.Output` captures displayed output now, as in `with out:` and in `interact`.

    Output captured in that widget cannot be updated later.
    """
    output, widget = (sys.modules.get(f"ipywidgets.widgets.{name}") for name in ("widget_output", "widget"))
    if output is None:
        return False
    with contextlib.suppress(Exception):  # `_instances` is private to ipywidgets
        widgets = list(widget._instances.values())  # type: ignore[union-attr]
        return any(isinstance(candidate, output.Output) and candidate.msg_id for candidate in widgets)
    return False


def request_id(ip: Any) -> str | None:
    """Return the id of the kernel request being handled, such as a cell or a widget event; None if unknown."""
    with contextlib.suppress(Exception):
        return str(ip.get_parent()["header"]["msg_id"])
    return None


def cell_id(ip: Any) -> str | None:
    """Return the id of the running cell from JupyterLab's metadata; None if unknown."""
    with contextlib.suppress(Exception):
        cell = ip.get_parent().get("metadata", {}).get("cellId")
        return str(cell) if cell else None
    return None


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
