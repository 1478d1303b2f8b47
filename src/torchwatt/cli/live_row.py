"""`torchwatt run --live`: power, energy and the largest groups of layers in the last row of the terminal."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import fsum
from typing import TYPE_CHECKING

from torchwatt.cli import terminal_row
from torchwatt.core.plain_text import escape_unprintable
from torchwatt.core.units import NS_PER_S
from torchwatt.disk.descriptors import HeldDescriptor
from torchwatt.disk.helper_thread import HelperThread
from torchwatt.helper_process import helper_command
from torchwatt.metrics.server_tally import ServerTally, sum_windows
from torchwatt.session.live_rate import RECENT_NS, CostLimiter, LookTimer, UnitRates
from torchwatt.views import DASH, LiveLayersView, format_energy, format_power

if TYPE_CHECKING:
    from torchwatt.core.report import Window
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
        joules = pulse.energy_j
        parts = [
            f"{point.t_s:.0f} s",
            format_power(point.total_w),
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
        rate = self._rates.update(self._run.live_units, step_j)
        if rate.unit_j is not None:
            per_second = f", {rate.per_second:.3g}/s" if rate.per_second else ""
            parts.append(f"{format_energy(rate.unit_j)} per {rate.unit}{per_second}")
        return parts + ([", ".join(f"{name} {share:.0%}" for name, share in self._top)] if self._top else [])


LONGEST_NS = 60 * NS_PER_S  # of the windows of a row, where those of `RECENT_NS` have no tokens


class ServerRow(LiveRow):
    """The row of `torchwatt watch`: watts, output tokens a second, joules per token, requests, age of an old page."""

    def __init__(self, run: Run, tally: ServerTally, interval_s: float, *, shown: bool) -> None:
        super().__init__(run, shown=shown)
        self._tally = tally
        self._old_s = max(2 * interval_s, OLD_S)

    def _text(self) -> str:
        point = self._pulse.points[-1]
        sums, page = sum_windows(self._recent_windows()), self._tally.page
        parts = [
            f"{point.t_s:.0f} s",
            format_power(point.total_w),
            f"{sums.output / sums.time_s:.3g} tok/s" if sums.time_s > 0 else f"{DASH} tok/s",
            f"{format_energy(sums.per_output_j())}/output",
            f"{format_energy(sums.per_token_j())}/token",
        ]
        if page is not None and page[1].running is not None:
            parts.append(f"{page[1].running:g} running")
        age_s = point.t_s if page is None else (time.monotonic_ns() - page[0]) / NS_PER_S
        if age_s > self._old_s:
            parts.append(f"no page for {age_s:.0f} s")
        return "torchwatt " + " · ".join(parts)

    def _recent_windows(self) -> list[Window]:
        """Return the latest windows up to which the meters are known, with their joules."""
        counted = self._pulse.list_counted()
        known_ns = min((t_ns for _, t_ns in counted.values()), default=0)
        windows: list[Window] = []
        for window in reversed(self._tally.windows):
            if window.end_ns > known_ns:
                continue
            parts_j = [
                self._pulse.energy_at(domain, window.end_ns) - self._pulse.energy_at(domain, window.start_ns)
                for domain in counted
            ]
            windows.append(replace(window, energy_j=fsum(parts_j)))
            long_ns = windows[0].end_ns - window.start_ns
            if long_ns > LONGEST_NS or (long_ns > RECENT_NS and sum_windows(windows).output > 0):
                break
        return windows


def _in_foreground() -> bool:
    """Return whether the terminal shows this job, and not another one of the shell."""
    try:
        return os.tcgetpgrp(terminal_row.TERMINAL) == os.getpgrp()
    except OSError:  # not the controlling terminal
        return True
