"""Run torch.profiler around whole steps: start and stop on the training thread, export, pass to a worker."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from torchwatt.tracing.kineto import CLOCK_STEP_NS, quiet

RECORDED_EVENT_NS = 1_100  # in a transformer step of 13 ms with 3,910 events


_advised = False


@contextmanager
def _without_advice() -> Iterator[None]:
    """Suppress torch's advice at the first profiling in a process (2.11: set acc_events), not meant for users."""
    global _advised  # noqa: PLW0603 - torch warns once a process
    if _advised:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    _advised = True


class Recorder:
    """One window: `prepare` a step early, `start` and `stop` at ends of steps.

    Args:
        clock_ns: The session's clock.
        synchronize: Waits for all devices, so that no kernel crosses the window's edges.
        activities: What to record.
    """

    def __init__(self, clock_ns: Callable[[], int], synchronize: Callable[[], None], activities: Any) -> None:
        self._clock_ns = clock_ns
        self._synchronize = synchronize
        experimental = torch._C._profiler._ExperimentalConfig
        try:
            config = experimental(trace_only=True)
        except TypeError:  # before torch 2.13
            config = experimental()
        self._profiler = torch.profiler.profile(activities=activities, experimental_config=config)
        self._offset_ns = 0
        self.cost_ns = 0
        self.start_ns = self.end_ns = 0

    def prepare(self) -> None:
        """Attach the profiler to the devices, so that `start` is fast."""
        began = self._clock_ns()
        with quiet(), _without_advice():
            self._profiler.prepare_trace()
        self.cost_ns += self._clock_ns() - began

    def start(self) -> None:
        """Start recording. The wait for the devices is not booked: they execute queued work meanwhile."""
        self._synchronize()
        began = self._clock_ns()
        with quiet():
            self._profiler.start_trace()
        self._offset_ns = self._anchor()
        self.start_ns = self._clock_ns()
        self.cost_ns += self.start_ns - began

    def stop(self) -> None:
        """Stop recording; the events are kept until `export`."""
        self._synchronize()
        began = self.end_ns = self._clock_ns()
        with quiet():
            self._profiler.stop_trace()
        self.cost_ns += self._clock_ns() - began

    def export(self, path: Path) -> int | None:
        """Write the trace; return the offset from its clock to the session's in ns, None if the wall clock was set."""
        began, offset = self._clock_ns(), self._anchor()
        with quiet():
            self._profiler.export_chrome_trace(str(path))
        events = path.stat().st_size // 250  # bytes an event, in a file of 117,000 events
        self.cost_ns += self._clock_ns() - began + events * RECORDED_EVENT_NS
        return (offset + self._offset_ns) // 2 if abs(offset - self._offset_ns) < CLOCK_STEP_NS else None

    def unix_ns(self, t_ns: Any) -> Any:
        """Map a time on the session's clock to the clock of the trace."""
        return t_ns - self._offset_ns

    def _anchor(self) -> int:
        looks = []
        for _ in range(3):
            before, real, after = self._clock_ns(), time.time_ns(), self._clock_ns()
            looks.append((after - before, (before + after) // 2 - real))
        return min(looks)[1]
