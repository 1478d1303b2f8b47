"""Appends the sampler's rings to a journal, in a thread of the sampler process. Numpy-free."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torchwatt.core.blocks import Block, pack
from torchwatt.core.frame import Kind
from torchwatt.sensors.board import CPU_NS, Board
from torchwatt.sensors.journal.append import AppendFile
from torchwatt.sensors.ring import COUNT, FAILING_NS, MISSED, PERIOD_NS, READS, Ring

READINGS = "readings.journal"
ANCHORS = "anchors"
WRITE_S = 0.25  # longest time that is lost if all processes are killed at once
WRITES_A_SYNC = 2  # a power failure loses twice that time and that of one write to the disk
NOTES_EVERY = 8  # writes
RECORD_BYTES = 15  # largest size of a reading in the file (benchmarks/journal_formats.py)
PART_RECORDS = 4096
INSTANT = struct.Struct("<q")
STOPPED = "JOURNAL_STOPPED"


def stopped_message(fault: str) -> str:
    """Return the message of the event of a journal that ended before its run."""
    return f"the journal has ended here ({fault}); the run goes on, and is lost if it is killed"


class RingJournal:
    """Appends the new readings of a board's rings, four times a second.

    Args:
        board: Shared memory with the rings.
        keys: Channel keys of the rings, in order; the last ring holds the anchors.
        file: Open file that already has its head frame.
        folder: Descriptor of the file's folder.
        most_bytes: Largest size of the file; beyond it, the file is rewritten with half of the readings.
    """

    def __init__(self, board: Board, keys: Sequence[str], file: AppendFile, folder: int, most_bytes: int) -> None:
        self._board = board
        self._rings: dict[str, Ring] = dict(
            zip((*keys, ANCHORS), (*board.rings[: len(keys)], board.rings[-1]), strict=True)
        )
        self._since: dict[str, int] = dict.fromkeys(self._rings, 0)
        self._file = file
        self._folder = folder
        self._most_bytes = most_bytes
        self._stride = 1
        self._writes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="torchwatt-journal", daemon=True)
        self._thread.start()

    def finish(self, *, gone: bool, timeout_s: float = 1.0) -> None:
        """Write the remaining readings; with `gone` (the measured process ended by itself) also a GONE frame."""
        self._stop.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return  # the disk hangs
        self.write()
        self._note()
        if gone:
            self._file.add(Kind.GONE, INSTANT.pack(time.monotonic_ns()))
        self._file.sync()

    def write(self) -> None:
        """Append the readings since the last write."""
        blocks = self._new()
        if blocks:
            self._file.add(Kind.READINGS, pack(blocks))

    def _new(self) -> list[Block]:
        blocks = []
        for key, ring in self._rings.items():
            columns = ring.read(ring.first_since(self._since[key]))
            if columns[0]:
                self._since[key] = _last_ns(columns[0]) + 1
                blocks.append(Block(key, ring.word(PERIOD_NS), *columns))
        return blocks

    def _run(self) -> None:
        while not self._stop.wait(WRITE_S) and not self._file.fault:
            try:
                self._turn()
            except Exception as error:  # sampling continues
                self._file.fault = f"{type(error).__name__}: {error}"
        if self._file.fault:
            self._board.note(time.monotonic_ns(), "warning", STOPPED, "run", stopped_message(self._file.fault))

    def _turn(self) -> None:
        self._writes += 1
        self.write()
        if self._writes % NOTES_EVERY == 0:
            self._note()
        if self._writes % WRITES_A_SYNC == 0:
            self._file.sync()
        if self._file.size > self._most_bytes:
            self._thin()

    def _note(self) -> None:
        self._file.add(Kind.NOTES, json.dumps(noted(self._board, self._rings)).encode())

    def _thin(self) -> None:
        """Rewrite the file from the rings, which cover the whole run, with every second, fourth, ... reading."""
        records = sum(ring.word(COUNT) for ring in self._rings.values())
        while records * RECORD_BYTES / self._stride > self._most_bytes / 2:
            self._stride *= 2
        if self._file.replace(self._thinned(), self._folder, READINGS):
            message = f"the journal was full: every reading but one in {self._stride} was left out of its older part"
            self._board.note(time.monotonic_ns(), "info", "JOURNAL_THINNED", "run", message)

    def _thinned(self) -> Iterator[tuple[Kind, bytes]]:
        yield Kind.HEAD, self._file.first()
        copied: dict[str, int] = {}
        written_s = time.monotonic()
        for key, ring in self._rings.items():
            columns = ring.read()
            copied[key] = _last_ns(columns[0]) + 1
            for part in _parts(columns, 1 if key == ANCHORS else self._stride):
                yield Kind.READINGS, pack([Block(key, ring.word(PERIOD_NS) * self._stride, *part)])
                if time.monotonic() - written_s > WRITE_S:
                    self.write()  # to the old file, so that nothing is lost if the process ends now
                    written_s = time.monotonic()
                time.sleep(0)  # let the sampling threads run
        self._since = copied
        yield Kind.READINGS, pack(self._new())


def noted(board: Board, rings: Mapping[str, Ring]) -> dict[str, Any]:
    """Return the sampler's notes and counts so far, JSON-serialisable."""
    channels = {key: ring for key, ring in rings.items() if key != ANCHORS}
    return {
        "notes": [asdict(note) for note in board.notes()],
        "reads": {key: ring.word(READS) for key, ring in channels.items()},
        "missed": {key: ring.word(MISSED) for key, ring in channels.items()},
        "failing_ns": {key: ring.word(FAILING_NS) for key, ring in channels.items()},
        "cpu_ns": board.word(CPU_NS),
    }


def _last_ns(t_ns: bytes) -> int:
    return int(INSTANT.unpack_from(t_ns, len(t_ns) - INSTANT.size)[0]) if t_ns else -1


def _parts(columns: tuple[bytes, bytes, bytes], stride: int) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield every `stride`-th reading in parts for one frame each, beginning with the first reading."""
    views = [memoryview(column).cast("q") for column in columns]
    step = PART_RECORDS * stride
    for at in range(0, len(views[0]), step):
        t_ns, raw, late_ns = (bytes(view[at : at + step : stride]) for view in views)
        yield t_ns, raw, late_ns
