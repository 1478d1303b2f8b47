"""`torchwatt run --live`: power, energy and the largest groups of layers in the last row of the terminal."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from math import fsum
from typing import TYPE_CHECKING

from torchwatt.cli import terminal_row
from torchwatt.core.plain_text import escape_unprintable
from torchwatt.core.units import NS_PER_S
from torchwatt.disk.descriptors import HeldDescriptor
from torchwatt.disk.helper_thread import HelperThread
from torchwatt.helper_process import helper_command
from torchwatt.session.live_rate import CostLimiter, LookTimer, UnitRates
from torchwatt.views import DASH, LiveLayersView, format_energy, format_power

if TYPE_CHECKING:
    from torchwatt.session import Run

PERIOD_S = 1.0
FIRST_ROW_S = 0.5
END_S = 0.5  # longest wait until the terminal is restored
OLD_S = 2.0  # older values say how old they are
MAX_FAILURES = 5
_DUMB = frozenset({"", "dumb"})


def has_live_terminal(environ: Mapping[str, str] | None = None) -> bool:
    """Return whether stderr is a terminal that understands cursor movements."""
    environ = os.environ if environ is None else environ
    try:
        return os.isatty(terminal_row.TERMINAL) and environ.get("TERM", "") not in _DUMB
    except OSError:
        return False


class LiveRow:
    """Shows a run in the last row of the terminal until `close`; an error ends the row and never the run.

    Args:
        run: The run.
        shown: Show it; otherwise `start` and `close` do nothing.
    """

    def __init__(self, run: Run, *, shown: bool) -> None:
        self._run = run
        self._shown = shown
        self._pulse = run.pulse()
        self._layers = run.live_layers(self._pulse) if shown else None
        self._rates = UnitRates(self._pulse)
        self._limiter = CostLimiter()
        self._layers_view = LiveLayersView()
        self._top: Sequence[tuple[str, float]] = ()
        self._stop = threading.Event()
        self._lines: HeldDescriptor | None = None  # the helper's stdin
        self._ended: HeldDescriptor | None = None  # at its end when the helper has restored the terminal
        self._thread = HelperThread(self._loop, "torchwatt-row")

    def start(self) -> None:
        """Start the helper and the thread; without a helper process, nothing is shown."""
        if not self._shown:
            return
        with contextlib.suppress(OSError, ValueError):
            self._open()
            os.register_at_fork(after_in_child=self._abandon)
            self._thread.start()

    def _open(self) -> None:
        theirs, lines = os.pipe()
        ended, held = os.pipe()
        self._lines, self._ended = HeldDescriptor(lines), HeldDescriptor(ended)
        try:
            starter = subprocess.Popen(
                helper_command("torchwatt.cli.terminal_row", str(held), detached=True),
                stdin=theirs,
                stdout=subprocess.PIPE,
                pass_fds=(held,),
                start_new_session=True,  # signals of the terminal must not reach it
            )
            starter.communicate()
        finally:
            os.close(theirs)
            os.close(held)

    def close(self) -> None:
        """Restore the terminal; waits at most half a second. A second call does nothing."""
        self._stop.set()
        self._thread.join(END_S)
        lines, ended = self._lines, self._ended
        self._lines = self._ended = None
        if lines is None or ended is None:
            return
        lines.close()
        with contextlib.suppress(OSError):
            select.select([ended.number()], [], [], END_S)
        ended.close()
        if self._layers is not None:
            self._layers.close()

    def _abandon(self) -> None:
        """In a forked child: the helper must not wait for its end."""
        for held in (self._lines, self._ended):
            if held is not None:
                held.close()
        self._lines = self._ended = None

    def _loop(self) -> None:
        failures, wait_s = 0, FIRST_ROW_S
        while not self._stop.wait(wait_s) and failures < MAX_FAILURES:
            wait_s = PERIOD_S
            began_ns = time.thread_time_ns()
            try:
                self._update()
            except BlockingIOError:  # the terminal is stopped with Ctrl-S
                continue
            except Exception:
                failures += 1  # the run has just ended, or the helper is gone: the report has the measurements
            if self._layers is not None:
                self._layers.pay(time.thread_time_ns() - began_ns)

    def _update(self) -> None:
        lines = self._lines
        self._pulse.update()
        text = self._text()
        if lines is not None and not self._stop.is_set() and _in_foreground():
            os.set_blocking(lines.number(), False)
            os.write(lines.number(), (escape_unprintable(text) + "\n").encode())

    def _text(self) -> str:
        """Return the row: watts, joules, rate, largest groups, and the age of old values."""
        pulse = self._pulse
        point = pulse.points[-1]
        watts = list(point.power_w.values())
        power_w = fsum(w for w in watts if w is not None) if watts and None not in watts else None
        joules = pulse.energy_j
        parts = [
            f"{point.t_s:.0f} s",
            format_power(power_w),
            format_energy(fsum(joules.values())) if joules else DASH,
            *self._work_parts(point.t_s),
        ]
        if point.t_s - pulse.as_of_s > OLD_S:
            parts.append(f"{point.t_s - pulse.as_of_s:.0f} s old")
        return "torchwatt " + " · ".join(parts)

    def _work_parts(self, t_s: float) -> list[str]:
        self._layers = self._layers or self._run.live_layers(self._pulse)  # None until torch is imported
        step_j = None
        parts = []
        if self._layers is not None:
            due, timer = self._limiter.due(t_s), LookTimer()
            self._layers.update(read=due)
            step_j = self._layers.step_j()
            parts.append(f"step {self._layers.steps}")
            if due:
                self._top = self._layers_view.top_groups(self._layers.sums())
                self._limiter.paid(t_s, timer.cost_ns / NS_PER_S, typical=timer.is_typical)
        unit, unit_j = self._rates.update(self._run.units, step_j)
        if unit_j is not None:
            parts.append(f"{format_energy(unit_j)} per {unit}")
        return parts + ([", ".join(f"{name} {share:.0%}" for name, share in self._top)] if self._top else [])


def _in_foreground() -> bool:
    """Return whether the terminal shows this job, and not another one of the shell."""
    try:
        return os.tcgetpgrp(terminal_row.TERMINAL) == os.getpgrp()
    except OSError:  # not the controlling terminal
        return True
