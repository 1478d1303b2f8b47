"""The sampler process: drivers' loops run in threads; the main thread reads /proc and monitors them. Numpy-free.

Started by `helper_process` with the arguments SIZE and NAME, and SIZE bytes of JSON on stdin; ends at the next byte or
the end of stdin, or when its parent has ended.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torchwatt.core.units import NS_PER_S
from torchwatt.disk.helper_thread import HelperThread
from torchwatt.sensors.sample_buffer import CPU_NS, PERIOD_NS, STARTED_NS, SampleBuffer
from torchwatt.sensors.source_loop import LONG_READ_NS, PolledChannel, SourceLoop, StopSignal

if TYPE_CHECKING:
    from torchwatt.sensors.ring_journal import RingJournal

ANCHOR_NS = 2 * NS_PER_S
CHECK_NS = NS_PER_S // 2  # period at which the main thread monitors the others
_GC_OBJECTS = 50_000  # loops create no reference cycles, errors do: collect rarely
_ENDING_S = 0.2
_HOST = "host"  # reads /proc only: no driver that could hang


def ring_capacities(config: Mapping[str, Any]) -> list[int]:
    """Return the capacity of every ring: each source's channels in order, then the anchors."""
    return [tap["capacity"] for source in config["sources"] for tap in source["taps"]] + [config["anchors"]]


def record_anchor(board: SampleBuffer, clock_ns: Callable[[], int] = time.monotonic_ns) -> int:
    """Record a pair of monotonic and wall clock time in ns, the latter as an integer; return the former."""
    before_ns = clock_ns()
    real_ns = time.time_ns()
    t_ns = (before_ns + clock_ns()) // 2
    board.rings[-1].append(t_ns, 0.0, real_ns)
    return t_ns


class InterruptibleSleep:
    """Stop signal of driver threads: sleeping costs half of waiting for an Event, and the exit waits for no thread."""

    def __init__(self) -> None:
        self._stopping = False

    def set(self) -> None:
        """Request loops to end at their next wake-up."""
        self._stopping = True

    def is_set(self) -> bool:
        """Return whether the end was requested."""
        return self._stopping

    def wait(self, timeout: float) -> bool:
        """Sleep for `timeout` seconds; return whether the end was requested."""
        time.sleep(timeout)
        return self._stopping


def make_loops(
    board: SampleBuffer, config: Mapping[str, Any], stop: StopSignal, host_stop: StopSignal | None = None
) -> list[SourceLoop]:
    """Return one loop per source, with the periods of its channels; `host_stop`, if any, stops the loop of /proc."""
    loops, rings = [], iter(board.rings)
    for index, source in enumerate(config["sources"]):
        taps = []
        for tap in source["taps"]:
            ring = next(rings)
            ring.put(PERIOD_NS, ring.word(PERIOD_NS) or tap["period_ns"])
            taps.append(PolledChannel(tap["key"], ring, tap.get("calm_ns", 0), tap.get("read_ns", 0)))
        ends = host_stop if host_stop is not None and source["spec"]["kind"] == _HOST else stop
        loops.append(SourceLoop(board, index, source["spec"], taps, stop=ends))
    return loops


def start_threads(loops: Sequence[SourceLoop]) -> list[HelperThread]:
    """Run each loop in a separate thread, so that a hanging driver stops only its loop."""
    threads = [HelperThread(loop.run, "torchwatt-sampler") for loop in loops]
    for thread in threads:
        thread.start()
    return threads


class Watchdog:
    """Records clock anchors every 2 s, and detects reads that hang for more than 0.5 s."""

    def __init__(self, board: SampleBuffer, config: Mapping[str, Any]) -> None:
        self._board = board
        self._names = [", ".join(t["key"] for t in source["taps"][:2]) for source in config["sources"]]
        self._hung: dict[int, int] = {}
        self._anchor_ns = 0

    def check(self) -> None:
        """Record an anchor if one is due; add a note for each hanging read."""
        now_ns = time.monotonic_ns()
        if now_ns - self._anchor_ns >= ANCHOR_NS:
            self._anchor_ns = record_anchor(self._board)
        for source, name in enumerate(self._names):
            since_ns = self._board.busy_since(source)
            if since_ns and now_ns - since_ns > LONG_READ_NS and self._hung.get(source) != since_ns:
                self._hung[source] = since_ns  # one note a hang
                message = "the driver has not answered for half a second; other meters are read on"
                self._board.note(now_ns, "warning", "SENSOR_HANG", name, message)


def _open_ring_journal(board: SampleBuffer, config: Mapping[str, Any]) -> RingJournal:
    from torchwatt.sensors.ring_journal import JournalFile, RingJournal

    fd, folder, most_bytes = config["journal"]
    keys = [tap["key"] for source in config["sources"] for tap in source["taps"]]
    return RingJournal(board, keys, JournalFile(fd, os.fstat(fd).st_size), folder, most_bytes)


class ParentMonitor:
    """Stop signal set by the parent process: a byte on stdin, a closed pipe, or its end; calls `on_check` meanwhile."""

    def __init__(self, ppid: int, on_check: Callable[[], None], *, detached: bool = False) -> None:
        self._ppid = ppid
        self._detached = detached
        self._on_check = on_check
        self._next_check_ns = 0
        self._stopping = False
        self.stop_requested = False  # the parent requested the end, and has not just ended
        self._poll = select.poll()
        self._poll.register(0, select.POLLIN)
        if detached:
            try:
                self._poll.register(os.pidfd_open(ppid), select.POLLIN)
            except ProcessLookupError:
                self._stopping = True

    def is_set(self) -> bool:
        """Return whether sampling is to end."""
        return self._stopping

    def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for the stop signal; return whether sampling is to end."""
        if not self._stopping and (ready := dict(self._poll.poll(timeout * 1e3))):
            self._stopping, self.stop_requested = True, 0 in ready and os.read(0, 1) != b""
        now_ns = time.monotonic_ns()
        if now_ns >= self._next_check_ns:
            self._next_check_ns = now_ns + CHECK_NS
            self._on_check()
            self._stopping = self._stopping or (not self._detached and os.getppid() != self._ppid)
        return self._stopping


def main(arguments: Sequence[str]) -> None:
    """Read the configuration from stdin and sample until stopped; never returns."""
    run_sampler(json.loads(_read_stdin(int(arguments[0]))))


def _read_stdin(size: int) -> bytes:
    """Read exactly `size` bytes from stdin: a stop byte that follows at once stays in the pipe for `select`."""
    data = b""
    while len(data) < size:
        part = os.read(0, size - len(data))
        if not part:
            sys.exit("the parent went away")
        data += part
    return data


def run_sampler(config: Mapping[str, Any]) -> None:
    """Sample until stopped; ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C must reach the user's program only
    gc.set_threshold(_GC_OBJECTS)
    board = SampleBuffer.map(config["fd"], len(config["sources"]), ring_capacities(config))
    os.close(config["fd"])
    board.put(STARTED_NS, time.monotonic_ns())
    housekeeper = Watchdog(board, config)
    journal = _open_ring_journal(board, config) if config.get("journal") else None

    def check() -> None:
        housekeeper.check()
        board.put(CPU_NS, time.process_time_ns())

    stop, parent = InterruptibleSleep(), ParentMonitor(config["ppid"], check, detached=config["detached"])
    loops = make_loops(board, config, stop, parent)
    start_threads([loop for loop in loops if loop.stop is stop])
    for loop in loops:
        if loop.stop is parent:
            loop.run()
    while not parent.wait(CHECK_NS / NS_PER_S):
        pass
    stop.set()
    _read_rings_finally(loops)
    _await_reads(board, range(len(loops)))
    record_anchor(board)
    board.put(CPU_NS, time.process_time_ns())
    if journal is not None:
        journal.finish(gone=not parent.stop_requested)
    os._exit(0)  # do not wait for threads that hang in a driver or sleep


def _read_rings_finally(loops: Sequence[SourceLoop]) -> None:
    """Read the drivers' rings of samples a last time, each in a thread, as drivers may hang; wait 0.2 s at most."""
    threads = [threading.Thread(target=loop.finish, daemon=True) for loop in loops if loop.follows]
    deadline_s = time.monotonic() + _ENDING_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(deadline_s - time.monotonic(), 0))


def _await_reads(board: SampleBuffer, sources: Sequence[int]) -> None:
    """Wait until current reads are recorded, 0.2 s at most; loops that wake up later stop."""
    deadline_s = time.monotonic() + _ENDING_S
    while any(board.busy_since(source) for source in sources) and time.monotonic() < deadline_s:
        time.sleep(0.001)
