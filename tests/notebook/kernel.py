"""A real kernel, driven as `Run All` drives it: the first cell that fails is the last one that runs."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import threading
import time
from pathlib import Path
from queue import Empty
from typing import Any, Self

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

MIME = "application/vnd.torchwatt.report.v1+json"
_TIMEOUT_S = 120


class Kernel:
    """One kernel for many small notebooks; `folder` holds the packages that it finds before all others."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self.widgets: dict[str, dict[str, Any]] = {}  # of the notebook that ran last: state by model

    def __enter__(self) -> Self:
        self._client = self._client_for()
        self._client.create_kernel_manager()
        before = [str(self._folder)] if self._folder is not None else []
        path = os.pathsep.join([*before, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._client.start_new_kernel(env={**os.environ, "PYTHONPATH": path})
        self._client.start_new_kernel_client()
        _poll_often(self._client.kc.shell_channel)
        return self

    def __exit__(self, *_error: object) -> None:
        self._client._cleanup_kernel()

    def run_all(self, *sources: str) -> list[NotebookNode]:
        """Run cells until one fails; return all of them."""
        notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
        client = self._client_for(notebook)
        client.km, client.kc, client.owns_km = self._client.km, self._client.kc, False
        with contextlib.suppress(CellExecutionError):
            client.execute()
        self.widgets = client.widget_state
        return notebook.cells

    def run(self, *sources: str) -> NotebookNode:
        """Run cells, of which none may fail; return the last."""
        cells = self.run_all(*sources)
        for cell in cells:
            assert not errors(cell), traceback(cell)
            assert cell.execution_count is not None, cell.source
        return cells[-1]

    def value(self, expression: str) -> Any:
        """Return the value of an expression of literals in the kernel."""
        import ast

        return ast.literal_eval(value(self.run(f"print(repr({expression}))")))

    def interrupt_once_there(self, marker: Path) -> threading.Thread:
        """Interrupt as the button does, once the cell has made a file."""

        def wait() -> None:
            deadline = time.monotonic() + _TIMEOUT_S
            while not marker.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            asyncio.run(self._client.km.interrupt_kernel())

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return thread

    @staticmethod
    def _client_for(notebook: NotebookNode | None = None) -> NotebookClient:
        return NotebookClient(notebook or new_notebook(), timeout=_TIMEOUT_S, kernel_name="python3")


def _poll_often(channel: Any) -> None:
    """Have a channel look for a message every second.

    nbclient sends on the channel when an output widget changes. ZeroMQ then does not wake up who waits for a reply on
    it: the wait lasts until its timeout, though the reply is there.
    """
    get_msg = channel.get_msg

    async def get_soon(timeout: float | None = None) -> Any:  # noqa: ASYNC109  nbclient names it
        end_s = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return await get_msg(timeout=max(0.0, min(1.0, end_s - time.monotonic())))
            except Empty:
                if time.monotonic() >= end_s:
                    raise

    channel.get_msg = get_soon


def reports(cell: NotebookNode) -> list[NotebookNode]:
    """Return the reports that a cell shows."""
    return [o.data for o in cell.outputs if o.output_type == "display_data" and MIME in o.data]


def errors(cell: NotebookNode) -> list[str]:
    """Return the names of the exceptions that a cell ended in; a UsageError is one line of stderr."""
    names = [o.ename for o in cell.outputs if o.output_type == "error"]
    return names + [o.text for o in cell.outputs if o.output_type == "stream" and "UsageError" in o.text]


def value(cell: NotebookNode) -> str | None:
    """Return what a cell printed, or its value as text; None where it has neither."""
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stdout":
            return str(output.text).strip()
        if output.output_type == "execute_result":
            return str(output.data["text/plain"])
    return None


def traceback(cell: NotebookNode) -> str:
    """Return the traceback of a cell without colours."""
    lines = [line for o in cell.outputs if o.output_type == "error" for line in o.traceback]
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(lines))
