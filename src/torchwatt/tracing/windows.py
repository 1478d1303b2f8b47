"""Log every backward call of a thread, and record some node by node in windows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

import torch

from torchwatt.core.meter import Severity
from torchwatt.tracing import kineto
from torchwatt.tracing.conductor import Conductor
from torchwatt.tracing.devices.watch import Watch
from torchwatt.tracing.log import Log
from torchwatt.tracing.rows import FULL, KEY, LIGHT_TASK, TASK, Backward
from torchwatt.tracing.wrappers import Wrapped, sequence_nr

# Windows whose nodes are read when the trace is assembled; older ones of a longer run are read one by one.
MOST_UNREAD = 32
NODES_PER_NUMBER = 1.6  # autograd nodes per sequence number assigned in the forward pass: AccumulateGrad has no number

_warm = False  # the recorder's first use in a process takes some milliseconds


class Windows:
    """Opens and closes windows around backward calls."""

    def __init__(self, clock_ns: Callable[[], int], note: Callable[[Severity, str, str], None]) -> None:
        self._clock_ns = clock_ns
        self.devices: Watch | None = None
        self._note = note
        self._broken = False
        self._seen: set[int] = set()  # modules in the forward passes of recorded calls
        self._unread: deque[kineto.Recorded] = deque()

    def warm_up(self) -> None:
        """Use the recorder once, so that the first step does not include its initialisation."""
        global _warm  # noqa: PLW0603 - it is libkineto that is warm, and it is the process's
        problem = kineto.missing()
        if problem:
            self._broken = True
            text = f"torch {torch.__version__} lacks {problem}: no backward layers"
            self._note("warning", "TRACE_UNSUPPORTED", text)
        elif not _warm and not kineto.user_is_profiling():
            window = kineto.Window(self._clock_ns)
            try:
                if window.open():
                    window.close()
                    _warm = True
            except Exception as error:
                self._give_up(error)

    def run(
        self, conductor: Conductor | None, log: Log, began_ns: int, original: Wrapped, args: Any, kwargs: Any
    ) -> Any:
        """Run a backward call and log it; `began_ns`: when profiler work before it began."""
        since, first_row = log.since, log.total()
        log.stride.backwards += 1
        reduces = log.takes_reducers()
        # A cheap approximation; the exact structure is computed later.
        called = [row[KEY] for row in log.rows[-max(first_row - since, 1) :] if row[KEY] > 0]
        kind = len(called), called[-1] if called else 0, reduces
        # Of calls with equally many rows, those through other modules get windows of their own.
        keys = frozenset(called)
        path = hash(keys), reduces
        expected = round(NODES_PER_NUMBER * (sequence_nr() - log.stride.seq))
        window = self._open(conductor, log, path, is_new=not keys <= self._seen)
        start, own_start = self._clock_ns(), kineto.own_ns() if window is not None else 0
        log.add_own(began_ns, start, sequence_nr())
        first_row = log.total()
        try:
            return original(*args, **kwargs)
        finally:
            own_end, end = kineto.own_ns() if window is not None else 0, self._clock_ns()
            call = Backward(start, end, since, first_row, log.total(), light=False, reduces=reduces)
            call.away_ns = max(end - start - (own_end - own_start), 0) if window is not None else 0
            if conductor is not None:
                conductor.backward_took(kind, end - start, recorded=window is not None)
            if window is not None:
                self._close(conductor, log, window, (kind, path), call, expected)
                self._seen |= keys
            log.backward_ended(call)
            if window is None and conductor is not None and (own_ns := log.in_place.after_backward()):
                conductor.budget.pay("fixed", own_ns)

    def _open(self, conductor: Conductor | None, log: Log, path: Hashable, *, is_new: bool) -> kineto.Window | None:
        if conductor is None or self._broken or not _forward_is_known(log):
            return None
        if self.devices is not None and self.devices.is_on:
            return None
        try:
            if not conductor.wants_window(log.stride, path, self._clock_ns(), is_new=is_new):
                return None
            if kineto.user_is_profiling():
                self._note("info", "PROFILER_BUSY", "another profiler was running: its backward calls have no window")
                return None
            window = kineto.Window(self._clock_ns)
            return window if window.open() else None
        except Exception as error:
            self._give_up(error)
            return None

    def _close(
        self,
        conductor: Conductor | None,
        log: Log,
        window: kineto.Window,
        kinds: tuple[Hashable, Hashable],
        call: Backward,
        expected: int,
    ) -> None:
        try:
            call.nodes = recorded = window.close(expected)
            call.cost_ns = window.cost_ns + self._read_older(recorded)
            if conductor is not None:
                # The window's own cost includes recording; the clock may show more.
                more_ns = max(conductor.slowdown_ns(kinds[0]) - window.recording_ns, 0.0)
                own_ns = call.cost_ns + round(more_ns)
                call.cost_ns = conductor.window_taken(log.stride, kinds[1], own_ns, call.end_ns)
            if call.nodes is None:
                self._note("info", "CLOCK_STEPPED", "the wall clock was set during a window: window dropped")
        except Exception as error:
            self._give_up(error)

    def _read_older(self, recorded: kineto.Recorded | None) -> int:
        """Bound the number of windows in torch's form; return the time of reading in ns."""
        began = kineto.own_ns()
        if recorded is not None:
            self._unread.append(recorded)
        if len(self._unread) > MOST_UNREAD:
            self._unread.popleft().nodes()
        return kineto.own_ns() - began

    def _give_up(self, error: Exception) -> None:
        # A private interface of torch failed: the user's backward call continues, without windows.
        self._broken = True
        self._note("warning", "WINDOW_FAILED", f"backward windows stopped: {type(error).__name__}: {error}")


def _forward_is_known(log: Log) -> bool:
    """Return whether the latest calls were logged module by module, which finding owners of nodes requires."""
    if log.partial:
        return False
    return log.rows[-1][TASK] > LIGHT_TASK if log.rows else log.mode == FULL
