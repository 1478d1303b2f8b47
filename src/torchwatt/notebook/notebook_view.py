"""The view of one run in a notebook: live values while it runs, then the report in the same output."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from IPython.display import display

from torchwatt.core.errors import warn
from torchwatt.notebook.frontend import (
    cell_id,
    current_shell,
    detect_frontend,
    in_output_widget,
    request_id,
    supports_live,
)
from torchwatt.notebook.live_updater import LiveUpdater
from torchwatt.notebook.run_history import history_channel, run_record

if TYPE_CHECKING:
    from torchwatt.session import Run

MAX_REPORTS = 20  # reports of `with profile()` in one cell, so that a loop does not fill the notebook


class NotebookView:
    """Shows a run: `begin`, `pause`, `end`. No method raises; between them the user's thread sends no messages.

    Args:
        live: Show the run while it runs.
        quiet: Show nothing in the cell; JupyterLab's status bar and panel are still updated.
    """

    def __init__(self, *, live: bool = True, quiet: bool = False) -> None:
        self._shell = current_shell()
        self._quiet = quiet
        self._live = live and not quiet and supports_live(self._shell)
        self._beats: LiveUpdater | None = None
        self._handle: Any = None
        self._run: Run | None = None
        self._cleared = False
        if self._live:
            try:
                # Imported before the measurement, because the first import takes half a second.
                import torchwatt.notebook.live_widget  # noqa: F401
            except Exception as error:
                self._live = False
                warn(f"torchwatt shows no live view: {error}", stacklevel=3)

    def begin(self, run: Run) -> None:
        """Show the live view in the output that the report will replace."""
        self._run = run
        if detect_frontend() != "kernel" or run.nested:
            self._live = False
            return
        self._live = self._live and not in_output_widget()
        with contextlib.suppress(Exception):
            if self._live:
                from torchwatt.notebook.live_widget import LivePlaceholder

                self._handle = display(LivePlaceholder(), display_id=True)  # type: ignore[no-untyped-call]
                self._shell.display_pub.register_hook(self._see)
            self._beats = LiveUpdater(run, self._handle, cell_id(self._shell))
            self._beats.start()

    def pause(self) -> None:
        """Stop the updates before the report is made."""
        with contextlib.suppress(Exception):
            if self._beats is not None:
                self._beats.pause()

    def end(self) -> None:
        """Replace the live view by the report."""
        run = self._run
        if run is None:
            return
        try:
            if self._handle is not None:
                self._shell.display_pub.unregister_hook(self._see)
            if not self._quiet:
                self._show(run)
            if self._beats is not None:
                self._beats.close()
            if detect_frontend() != "nowhere" and not run.nested:
                history_channel().tell(run_record(run.report, cell_id(self._shell)))
        except Exception as error:  # must not replace the user's exception
            warn(f"torchwatt could not show the report: {error}", stacklevel=3)

    def _show(self, run: Run) -> None:
        if self._handle is not None and not self._cleared:
            self._handle.update(run)
            return
        display(run)  # type: ignore[no-untyped-call]

    def _see(self, message: dict[str, Any]) -> dict[str, Any]:
        """Detect `clear_output()`, which removes the live view's output, so that the report needs a new one.

        Inside an `ipywidgets.Output` it clears that widget and not the cell.
        """
        if message.get("header", {}).get("msg_type") == "clear_output" and not in_output_widget():
            self._cleared = True
        return message


class BlockView(NotebookView):
    """The view of `with profile()`; nested runs, and runs of a cell after `MAX_REPORTS`, are not shown."""

    _shown: tuple[str | None, int] = (None, 0)

    def __init__(self) -> None:
        super().__init__(quiet=detect_frontend() == "nowhere")

    def begin(self, run: Run) -> None:
        """Start showing a run; runs are counted per kernel request, a cell or an `interact` callback."""
        cls = type(self)
        request = request_id(self._shell)
        count = cls._shown[1] + 1 if cls._shown[0] == request else 1
        cls._shown = (request, count)
        self._quiet = self._quiet or run.nested or count > MAX_REPORTS
        self._live = self._live and not self._quiet
        super().begin(run)


def install_notebook_view() -> None:
    """Show every later `with profile()` of this notebook or IPython terminal; does nothing outside of IPython."""
    if detect_frontend() != "nowhere":
        from torchwatt.session import session_registry

        session_registry.install_run_view(BlockView)
