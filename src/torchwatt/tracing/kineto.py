"""Record one backward call node by node: torch's own recorder, limited to autograd nodes, without log output.

Narrower than `torch.profiler`: no operators, no chrome trace. About 2 ms for 335 nodes instead of 25.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchwatt.tracing.own_time import own_time
from torchwatt.tracing.rows import Nodes

SILENT = 6  # above libkineto's highest level: it writes two USDT lines per window to stderr
CLOCK_STEP_NS = 50_000  # realtime moved by that against monotonic: times cannot be mapped
NODE_COST_NS = 1_100  # recording one event, in a transformer step of 13 ms with 3,910 events
NEEDED = (
    "_prepare_profiler", "_enable_profiler", "_disable_profiler", "_profiler_enabled", "ProfilerConfig",
    "ProfilerState", "ProfilerActivity",
)  # fmt: skip

own_ns = own_time()
_one_at_a_time = threading.Lock()  # the recorder is process-wide


def missing() -> str | None:
    """Return the names this torch lacks for windows, comma-separated; None if none."""
    lacking = [name for name in NEEDED if not hasattr(torch.autograd, name)]
    scopes = getattr(getattr(torch._C, "_profiler", None), "RecordScope", None)
    if not hasattr(scopes, "BACKWARD_FUNCTION"):
        lacking.append("RecordScope.BACKWARD_FUNCTION")
    if not hasattr(getattr(torch._C, "_profiler", None), "_ExperimentalConfig"):
        lacking.append("_ExperimentalConfig")
    return ", ".join(lacking) or None


def user_is_profiling() -> bool:
    """Return whether the user's profiler is running: a second one would take its events."""
    from torch.autograd import profiler

    autograd: Any = torch.autograd
    return bool(autograd._profiler_enabled() or getattr(profiler, "_is_profiler_enabled", False))


class Recorded:
    """The events of a window, kept in torch's own form until read: reading takes as long as closing.

    Args:
        result: Of `torch.autograd._disable_profiler`.
        offset_ns: Monotonic minus realtime.
    """

    def __init__(self, result: Any, offset_ns: int) -> None:
        self._result = result
        self._offset_ns = offset_ns
        self._nodes: Nodes | None = None
        self._lock = threading.Lock()

    def nodes(self) -> Nodes:
        """Return the nodes, sorted by start."""
        with self._lock:
            if self._nodes is None:
                rows = [
                    (e.start_ns(), e.duration_ns(), e.sequence_nr(), e.fwd_thread_id(), e.start_thread_id())
                    for e in self._result.events()
                ]
                self._nodes, self._result = _nodes(rows, self._offset_ns), None
            return self._nodes


class Window:
    """A recorder of the autograd nodes that run until `close`."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._offset = 0
        self.cost_ns = 0
        self.recording_ns = 0  # the part of `cost_ns` that lies inside the call

    def open(self) -> bool:
        """Start recording on this thread; return False if another thread is recording."""
        if not _one_at_a_time.acquire(blocking=False):
            return False
        began = own_ns()
        autograd: Any = torch.autograd
        try:
            profiler = torch._C._profiler
            plain = [False] * 5  # no shapes, memory, stack, flops, modules
            experimental = profiler._ExperimentalConfig()
            config = autograd.ProfilerConfig(autograd.ProfilerState.KINETO, *plain, experimental)
            cpu = {autograd.ProfilerActivity.CPU}
            with quiet():
                autograd._prepare_profiler(config, cpu)
            with quiet():  # again: the first preparation resets the level
                autograd._enable_profiler(config, cpu, {profiler.RecordScope.BACKWARD_FUNCTION})
        except BaseException:  # also an interrupt: the recorder must not stay on
            if autograd._profiler_enabled():
                autograd._disable_profiler()
            _one_at_a_time.release()
            raise
        self._offset = self._anchor()
        self.cost_ns = own_ns() - began
        return True

    def close(self, expected: int = 0) -> Recorded | None:
        """Stop recording and return the events; None if the wall clock was set meanwhile.

        Args:
            expected: Approximate number of nodes that ran: recording them is part of the window's cost.
        """
        began = own_ns()
        autograd: Any = torch.autograd
        try:
            offset = self._anchor()
            with quiet():
                result = autograd._disable_profiler()
        finally:
            _one_at_a_time.release()
        stepped = abs(offset - self._offset) >= CLOCK_STEP_NS
        self.recording_ns = NODE_COST_NS * expected
        self.cost_ns += own_ns() - began + self.recording_ns
        return None if stepped else Recorded(result, (offset + self._offset) // 2)

    def _anchor(self) -> int:
        """Return monotonic minus realtime, from the tightest of three readings."""
        looks = []
        for _ in range(3):
            before, real, after = self._clock_ns(), time.time_ns(), self._clock_ns()
            looks.append((after - before, (before + after) // 2 - real))
        return min(looks)[1]


def _nodes(rows: list[tuple[int, int, int, int, int]], offset_ns: int) -> Nodes:
    table = np.array(rows, dtype=np.int64).reshape(-1, 5)
    start = table[:, 0] + offset_ns
    end = start + np.maximum(table[:, 1], 0)
    order = np.lexsort((-end, start))
    return Nodes(start[order], end[order], table[order, 2], table[order, 3], table[order, 4])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Raise libkineto's log level inside the block; environment and file descriptors are unchanged."""
    level = _severity()
    if level is None or "KINETO_LOG_LEVEL" in os.environ:  # the user has chosen a level
        yield
        return
    before = level.value
    level.value = SILENT
    try:
        yield
    finally:
        if level.value == SILENT:  # the first use of libkineto sets its own level, which is kept
            level.value = before


@functools.cache
def _severity() -> ctypes.c_int | None:
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        with contextlib.suppress(OSError, ValueError):
            library = ctypes.CDLL(str(folder / name))
            return ctypes.c_int.in_dll(library, "_ZN9libkineto6Logger14severityLevel_E")
    return None
