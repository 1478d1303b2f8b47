"""Thread that reads a running session up to four times a second and sends updates to the browser."""

from __future__ import annotations

import contextvars
import threading
import time
from functools import partial
from math import fsum
from typing import TYPE_CHECKING, Any

from torchwatt.core.units import NS_PER_S
from torchwatt.disk.helper_thread import HelperThread
from torchwatt.notebook.run_history import RunRecord, history_channel
from torchwatt.session.live_rate import CostLimiter, LookTimer, UnitRates
from torchwatt.views import LiveLayersView, rate_payload, start_payload, steps_payload, update_payload

if TYPE_CHECKING:
    from torchwatt.core.meter import Recording
    from torchwatt.notebook.live_widget import LiveWidget
    from torchwatt.session import Run

MIN_PERIOD_S, MAX_PERIOD_S = 0.25, 1.0  # displayed figures change every second
UPDATE_SHARE = 0.002  # of one CPU, for updates without layers; layers have a limiter of their own
FIRST_UPDATE_S = 0.3  # a shorter cell shows only its report
STATUS_S = 1.0
RECENT, WHOLE = 12, 240  # points of the power line: with each update, and with every 40th
MAX_FAILURES = 5


def update_period_s(cost_s: float) -> float:
    """Return the seconds until the next update, so that updates like the last one stay within their share of a CPU."""
    return min(max(cost_s / UPDATE_SHARE, MIN_PERIOD_S), MAX_PERIOD_S)


class LiveUpdater:
    """Reads the live values of a run at a bounded cost and sends them as small messages; the browser draws them.

    Sampling runs in a separate process and does not depend on this thread.
    """

    def __init__(self, run: Run, handle: Any, cell_id: str | None) -> None:
        self._run = run
        self._handle = handle
        self._cell_id = cell_id
        self._widget: LiveWidget | None = None
        self._stop = threading.Event()
        self._pace = CostLimiter()
        self._count = 0
        self._status_s = 0.0
        self._carbon_g: float | None = None
        self._layers_ns = 0  # CPU time of the latest update's layers
        self.failures: list[str] = []
        self.spent_s = 0.0  # CPU time of the thread
        self._pulse = run.pulse()
        self._rates = UnitRates(self._pulse)
        self._layers = run.live_layers(self._pulse) if handle is not None else None  # None until torch is imported
        self._layers_view = LiveLayersView()
        # ipykernel finds the cell of a message in a context variable, which a new thread does not inherit.
        self._thread = HelperThread(partial(contextvars.copy_context().run, self._loop), "torchwatt-live")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; waits at most 2 s, as it may hang in a send."""
        self._stop.set()
        self._thread.join(2.0)
        if self._layers is not None:
            self._layers.close()

    def pause(self) -> None:
        """End the thread and show in the browser that the report is being made, which may take seconds."""
        self.stop()
        if self._widget is not None:
            self._widget.send({"kind": "settling"})

    def close(self) -> None:
        """Close the widget."""
        self.stop()
        if self._widget is not None:
            self._widget.end()

    def _loop(self) -> None:
        due_s, cost_ns = time.monotonic() + FIRST_UPDATE_S, 0
        while not self._stop.wait(max(due_s - time.monotonic(), 0.0)):
            try:
                cost_ns = self._beat()
            except Exception as error:
                # The kernel shuts down, or the run has just ended: the report contains the measurements.
                self.failures.append(f"{type(error).__name__}: {error}")
                if len(self.failures) >= MAX_FAILURES:
                    return
            # Missed updates are skipped.
            period_s = update_period_s(cost_ns / NS_PER_S)
            due_s = max(due_s + (period_s if self._handle is not None else max(period_s, STATUS_S)), time.monotonic())

    def _beat(self) -> int:
        """Update the view; return the CPU time in nanoseconds without that of the layers."""
        self._layers_ns = 0
        began_ns = time.thread_time_ns()
        self._show_beat()
        cost_ns = time.thread_time_ns() - began_ns
        self.spent_s += cost_ns / NS_PER_S
        if self._layers is not None:
            self._layers.pay(cost_ns)
        return cost_ns - self._layers_ns

    def _show_beat(self) -> None:
        recording = self._pulse.update()
        now_s = time.monotonic()
        if self._handle is None or now_s - self._status_s >= STATUS_S:
            self._status_s = now_s
            self._carbon_g = self._pulse.carbon_g()
            history_channel().tell(self._record())
        if self._handle is not None:
            self._show(recording)

    def _show(self, recording: Recording) -> None:
        """Send joules and steps, and layers if their cost allows; show the view before the first message."""
        if self._widget is None:
            self._open(recording)
        pulse = self._pulse
        points = list(pulse.points)[-(WHOLE if self._count % 40 == 0 else RECENT) :]
        message = update_payload(points, pulse.energy_j, points[-1].power_w, self._carbon_g, pulse.as_of_s)
        self._count += 1
        self._layers = self._layers or self._run.live_layers(pulse)
        if self._layers is None:
            self._send(message | self._rate_message(None))
            return
        t_s = points[-1].t_s
        due, timer = self._pace.due(t_s), LookTimer()
        self._layers.update(read=due)
        step_j = self._layers.step_j()
        message |= steps_payload(self._layers.steps, step_j)
        message |= self._rate_message(step_j)
        if not due:
            self._send(message)
            return
        self._send(message | self._layers_view.payload(self._layers.sums()))
        self._layers_ns = timer.cost_ns
        self._pace.paid(t_s, self._layers_ns / NS_PER_S, typical=timer.is_typical)

    def _rate_message(self, step_j: float | None) -> dict[str, Any]:
        rate = self._rates.update(self._run.live_units, step_j)
        return rate_payload(rate.unit, rate.unit_j, rate.per_second)

    def _send(self, message: dict[str, Any]) -> None:
        if self._widget is not None and not self._stop.is_set():
            self._widget.send({"kind": "beat", **message})

    def _open(self, recording: Recording) -> None:
        from torchwatt.notebook.live_widget import LiveWidget

        run = self._run
        begin = start_payload(
            run.run_id, run.name, recording.meters, recording.unavailable, run.carbon_how, traces=run.traces
        )
        self._widget = LiveWidget(begin)
        self._handle.update(self._widget)

    def _record(self) -> RunRecord:
        point = self._pulse.points[-1]
        joules = self._pulse.energy_j
        return RunRecord(
            run_id=self._run.run_id,
            name=self._run.name,
            cell_id=self._cell_id,
            status="running",
            t_s=point.t_s,
            energy_j=fsum(joules.values()) if joules else None,
            carbon_g=self._carbon_g,
            power_w=point.total_w,
        )
