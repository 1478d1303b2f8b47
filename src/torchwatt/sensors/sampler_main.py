"""The sampler process: loops in threads, watched by the main thread. Numpy-free.

Started as `python -S -c BOOT SIZE` with SIZE bytes of JSON on stdin; it ends when a byte or the end of stdin comes, or
when its parent is another than it was.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torchwatt.core.units import NS_PER_S
from torchwatt.sensors.board import CPU_NS, STARTED_NS, Board
from torchwatt.sensors.loop import LONG_READ_NS, SourceLoop, Tap
from torchwatt.sensors.ring import PERIOD_NS

if TYPE_CHECKING:
    from torchwatt.sensors.journal.rings import RingJournal

# Runs before anything can be imported: -S keeps start-up short, the user's path comes after the standard library.
# Exactly argv[1] bytes are read, so that a stop byte that follows at once stays in the pipe for `select`.
BOOT = """
import json, os, sys
size, data = int(sys.argv[1]), b""
while len(data) < size:
    part = os.read(0, size - len(data))
    if not part:
        sys.exit("the parent went away")
    data += part
config = json.loads(data)
sys.path.extend(config["path"])
from torchwatt.sensors.sampler_main import main
main(config)
"""
ANCHOR_NS = 2 * NS_PER_S
POLL_S = 0.25


def capacities(config: Mapping[str, Any]) -> list[int]:
    """Return the capacity of every ring: each source's channels in order, then the anchors."""
    return [tap["capacity"] for source in config["sources"] for tap in source["taps"]] + [config["anchors"]]


def anchor(board: Board, clock_ns: Callable[[], int] = time.monotonic_ns) -> int:
    """Record what both clocks say, and return the monotonic one; the real time travels as an integer."""
    before_ns = clock_ns()
    real_ns = time.time_ns()
    t_ns = (before_ns + clock_ns()) // 2
    board.rings[-1].append(t_ns, 0.0, real_ns)
    return t_ns


def make_loops(board: Board, config: Mapping[str, Any], stop: threading.Event) -> list[SourceLoop]:
    """Return one loop a source, its channels' periods set."""
    loops, rings = [], iter(board.rings)
    for index, source in enumerate(config["sources"]):
        taps = []
        for tap in source["taps"]:
            ring = next(rings)
            ring.put(PERIOD_NS, ring.word(PERIOD_NS) or tap["period_ns"])
            taps.append(Tap(tap["key"], ring))
        loops.append(SourceLoop(board, index, source["spec"], taps, stop=stop))
    return loops


def start_threads(loops: Sequence[SourceLoop]) -> list[threading.Thread]:
    """Run each loop in a thread of its own, so that a hanging driver stops only itself."""
    threads = [threading.Thread(target=loop.run, name="torchwatt-sampler", daemon=True) for loop in loops]
    for thread in threads:
        thread.start()
    return threads


class Housekeeper:
    """What is done a few times a second: anchors and the search for reads that hang."""

    def __init__(self, board: Board, config: Mapping[str, Any]) -> None:
        self._board = board
        self._names = [", ".join(t["key"] for t in source["taps"][:2]) for source in config["sources"]]
        self._hung: dict[int, int] = {}
        self._anchor_ns = 0

    def look(self) -> None:
        """Do what is due."""
        now_ns = time.monotonic_ns()
        if now_ns - self._anchor_ns >= ANCHOR_NS:
            self._anchor_ns = anchor(self._board)
        for source, name in enumerate(self._names):
            since_ns = self._board.busy_since(source)
            if since_ns and now_ns - since_ns > LONG_READ_NS and self._hung.get(source) != since_ns:
                self._hung[source] = since_ns  # one note a hang
                message = "the driver has not answered for half a second; other meters go on"
                self._board.note(now_ns, "warning", "SENSOR_HANG", name, message)


def _journal(board: Board, config: Mapping[str, Any]) -> RingJournal:
    from torchwatt.sensors.journal.append import AppendFile
    from torchwatt.sensors.journal.rings import RingJournal

    fd, folder, most_bytes = config["journal"]
    keys = [tap["key"] for source in config["sources"] for tap in source["taps"]]
    return RingJournal(board, keys, AppendFile(fd, os.fstat(fd).st_size), folder, most_bytes)


def _until_told(ppid: int, look: Callable[[], None]) -> bool:
    """Return when the parent says stop, closes the pipe, or is gone; whether it said so."""
    while os.getppid() == ppid:
        look()
        if select.select([0], [], [], POLL_S)[0]:
            return os.read(0, 1) != b""
    return False


def main(config: Mapping[str, Any]) -> None:
    """Sample until told to stop; never returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the user's program
    board = Board.map(config["fd"], len(config["sources"]), capacities(config))
    os.close(config["fd"])
    board.put(STARTED_NS, time.monotonic_ns())
    stop = threading.Event()
    threads = start_threads(make_loops(board, config, stop))
    housekeeper = Housekeeper(board, config)
    journal = _journal(board, config) if config.get("journal") else None

    def look() -> None:
        housekeeper.look()
        board.put(CPU_NS, time.process_time_ns())

    told = _until_told(config["ppid"], look)
    stop.set()
    deadline_s = time.monotonic() + 0.2
    for thread in threads:
        thread.join(max(deadline_s - time.monotonic(), 0))
    anchor(board)
    board.put(CPU_NS, time.process_time_ns())
    if journal is not None:
        journal.finish(gone=not told)
    os._exit(0)  # a thread that hangs in a driver must not keep the process
