"""One backward pass seen node by node."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.tracing.quiet import quiet_stderr


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Autograd nodes of one backward call: monotonic times, sequence numbers (-1: AccumulateGrad), threads."""

    number: int
    start_ns: IntArray
    end_ns: IntArray
    sequence: IntArray
    thread: IntArray
    cost_ns: int


class Recorder:
    """Opens and closes windows with torch's own profiler, recording autograd nodes and nothing else.

    Only the scope BACKWARD_FUNCTION is recorded: one event per node instead of ten operators, about a tenth of the
    cost of a full profile. The names used here are private to torch; where one is missing there are no windows.
    """

    def __init__(self) -> None:
        from torch import autograd
        from torch._C import _profiler

        self._autograd: Any = autograd
        flags = (False,) * 5
        self._config = autograd.ProfilerConfig(autograd.ProfilerState.KINETO, *flags, _profiler._ExperimentalConfig())
        self._activities = {autograd.ProfilerActivity.CPU}
        self._scopes = {_profiler.RecordScope.BACKWARD_FUNCTION}

    def busy(self) -> bool:
        """Say whether a profiler is running already: the user's, which is never touched."""
        return bool(self._autograd._profiler_enabled())

    def open(self) -> None:
        """Begin to record."""
        with quiet_stderr():
            self._autograd._prepare_profiler(self._config, self._activities)
            self._autograd._enable_profiler(self._config, self._activities, self._scopes)

    def close(self) -> list[tuple[int, int, int, int]]:
        """End recording; return (start unix ns, end unix ns, sequence number, thread) of every node."""
        with quiet_stderr():
            result = self._autograd._disable_profiler()
        return [
            (e.start_ns(), e.start_ns() + e.duration_ns(), e.sequence_nr(), e.start_thread_id())
            for e in result.events()
            # Kineto adds events of its own; a node's name never starts with these.
            if not e.name().startswith(("[memory]", "PyTorch Profiler"))
        ]


def make_window(number: int, nodes: list[tuple[int, int, int, int]], offset_ns: int, cost_ns: int) -> Window:
    """Pack nodes; `offset_ns` is monotonic minus unix time."""
    table = np.array(sorted(nodes), dtype=np.int64).reshape(-1, 4)
    return Window(number, table[:, 0] + offset_ns, table[:, 1] + offset_ns, table[:, 2], table[:, 3], cost_ns)


def clock_offset_ns() -> int:
    """Return monotonic minus unix time, from the closest of three looks."""
    looks = []
    for _ in range(3):
        before = time.monotonic_ns()
        unix = time.time_ns()
        after = time.monotonic_ns()
        looks.append((after - before, (before + after) // 2 - unix))
    return min(looks)[1]
