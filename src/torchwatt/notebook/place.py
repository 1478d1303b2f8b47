"""Where a run is shown: in a kernel with a browser, in a terminal, or nowhere."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, Literal

Place = Literal["kernel", "terminal", "nowhere"]
SWITCH = "TORCHWATT_LIVE"  # "off" keeps notebooks to the final report


def shell() -> Any:
    """Return the running IPython shell, None outside of IPython; imports nothing."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def place() -> Place:
    """Return where this process shows things."""
    kind = type(shell()).__name__
    if kind == "ZMQInteractiveShell":
        return "kernel"
    return "terminal" if kind == "TerminalInteractiveShell" else "nowhere"


def wants_live(ip: Any) -> bool:
    """Return whether a live view can be shown: in a kernel, where outputs are not captured."""
    if os.environ.get(SWITCH, "").lower() in {"off", "0", "no"} or type(ip).__name__ != "ZMQInteractiveShell":
        return False
    return "Capturing" not in type(ip.display_pub).__name__


def in_output_widget() -> bool:
    """Return whether an `ipywidgets.Output` takes what is shown now, as in `with out:` and in `interact`.

    It keeps outputs in a widget of its own, where none can be updated later.
    """
    output, widget = (sys.modules.get(f"ipywidgets.widgets.{name}") for name in ("widget_output", "widget"))
    if output is None:
        return False
    with contextlib.suppress(Exception):  # where ipywidgets keeps its widgets is its own affair
        widgets = list(widget._instances.values())  # type: ignore[union-attr]
        return any(isinstance(one, output.Output) and one.msg_id for one in widgets)
    return False


def request_id(ip: Any) -> str | None:
    """Return the id of the message that the kernel answers now: a cell that runs, or a widget that was moved."""
    with contextlib.suppress(Exception):
        return str(ip.get_parent()["header"]["msg_id"])
    return None


def cell_id(ip: Any) -> str | None:
    """Return the id of the cell that runs, as JupyterLab tells it."""
    with contextlib.suppress(Exception):
        found = ip.get_parent().get("metadata", {}).get("cellId")
        return str(found) if found else None
    return None
