"""The view of one run in a notebook: live while it runs, then the report in the same place."""

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

MAX_REPORTS = 20  # of `with profile()` in one cell: a loop must not fill the notebook


class View:
    """Shows a run: `begin`, `pause`, `end`. Nothing of it raises, and in between the user's thread sends nothing.

    Args:
        live: Show the run while it runs.
        quiet: Show nothing; JupyterLab's status bar and panel are told all the same.
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
                # Here, before anything is measured: it takes half a second the first time.
                import torchwatt.notebook.widget  # noqa: F401
            except Exception as error:
                self._live = False
                warn(f"torchwatt shows no live view: {error}", stacklevel=3)

    def begin(self, run: Run) -> None:
        """Put the live view where the report will be."""
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
        """Stop the thread, so that settling the run has the machine for itself."""
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
        except Exception as error:  # a fault of ours must not take the place of the user's exception
            warn(f"torchwatt could not show the report: {error}", stacklevel=3)

    def _show(self, run: Run) -> None:
        if self._handle is not None and not self._cleared:
            self._handle.update(run)
            return
        display(run)  # type: ignore[no-untyped-call]

    def _see(self, message: dict[str, Any]) -> dict[str, Any]:
        """Notice `clear_output()` of the user: it takes our place away, so the report needs a new one.

        Inside an `ipywidgets.Output` it clears that, and not the cell.
        """
        if message.get("header", {}).get("msg_type") == "clear_output" and not in_output_widget():
            self._cleared = True
        return message


class BlockView(View):
    """The view of `with profile()`: a window of another run and the twenty-first run of a cell are not shown."""

    _shown: tuple[str | None, int] = (None, 0)

    def __init__(self) -> None:
        super().__init__(quiet=place() == "nowhere")

    def begin(self, run: Run) -> None:
        """Count the runs of a cell, or of one move of a widget of `interact`."""
        cls = type(self)
        here = request_id(self._shell)
        count = cls._shown[1] + 1 if cls._shown[0] == here else 1
        cls._shown = (here, count)
        self._quiet = self._quiet or run.nested or count > MAX_REPORTS
        self._live = self._live and not self._quiet
        super().begin(run)


def install() -> None:
    """Show every `with profile()` of this notebook or IPython terminal; outside of IPython do nothing."""
    if place() != "nowhere":
        from torchwatt.session import watch

        watch.install(BlockView)
