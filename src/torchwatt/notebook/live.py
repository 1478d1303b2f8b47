"""The view of one run in a notebook: live values while it runs, then the report in the same output."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from IPython.display import display

from torchwatt.core.warn import warn
from torchwatt.notebook.beats import Beats
from torchwatt.notebook.comm import channel
from torchwatt.notebook.history import record_of
from torchwatt.notebook.place import cell_id, in_output_widget, place, request_id, shell, wants_live

if TYPE_CHECKING:
    from torchwatt.session import Run

MAX_REPORTS = 20  # reports of `with profile()` in one cell, so that a loop does not fill the notebook


class View:
    """Shows a run: `begin`, `pause`, `end`. No method raises; between them the user's thread sends no messages.

    Args:
        live: Show the run while it runs.
        quiet: Show nothing in the cell; JupyterLab's status bar and panel are still updated.
    """

    def __init__(self, *, live: bool = True, quiet: bool = False) -> None:
        self._shell = shell()
        self._quiet = quiet
        self._live = live and not quiet and wants_live(self._shell)
        self._beats: Beats | None = None
        self._handle: Any = None
        self._run: Run | None = None
        self._cleared = False
        if self._live:
            try:
                # Imported before the measurement, because the first import takes half a second.
                import torchwatt.notebook.widget  # noqa: F401
            except Exception as error:
                self._live = False
                warn(f"torchwatt shows no live view: {error}", stacklevel=3)

    def begin(self, run: Run) -> None:
        """Show the live view in the output that the report will replace."""
        self._run = run
        if place() != "kernel" or run.nested:
            self._live = False
            return
        self._live = self._live and not in_output_widget()
        with contextlib.suppress(Exception):
            if self._live:
                from torchwatt.notebook.widget import Placeholder

                self._handle = display(Placeholder(), display_id=True)  # type: ignore[no-untyped-call]
                self._shell.display_pub.register_hook(self._see)
            self._beats = Beats(run, self._handle, cell_id(self._shell))
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
            if place() != "nowhere" and not run.nested:
                channel().tell(record_of(run.report, cell_id(self._shell)))
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


class BlockView(View):
    """The view of `with profile()`; nested runs, and runs of a cell after `MAX_REPORTS`, are not shown."""

    _shown: tuple[str | None, int] = (None, 0)

    def __init__(self) -> None:
        super().__init__(quiet=place() == "nowhere")

    def begin(self, run: Run) -> None:
        """Start showing a run; runs are counted per kernel request, a cell or an `interact` callback."""
        cls = type(self)
        request = request_id(self._shell)
        count = cls._shown[1] + 1 if cls._shown[0] == request else 1
        cls._shown = (request, count)
        self._quiet = self._quiet or run.nested or count > MAX_REPORTS
        self._live = self._live and not self._quiet
        super().begin(run)


def install() -> None:
    """Show every later `with profile()` of this notebook or IPython terminal; does nothing outside of IPython."""
    if place() != "nowhere":
        from torchwatt.session import watch

        watch.install(BlockView)
