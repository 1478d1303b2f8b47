"""Appends the sampler's rings to a journal, in a thread of the sampler process. Numpy-free."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torchwatt.core.journal_format import Frame, FrameKind, ReadingsBlock, decode_frames, encode_frame, pack_blocks
from torchwatt.disk.descriptors import HeldDescriptor
from torchwatt.sensors.sample_buffer import (
    COUNT,
    CPU_NS,
    FAILING_NS,
    MISSED,
    PERIOD_NS,
    READS,
    SampleBuffer,
    SampleRing,
)


class JournalFile:
    """Appends frames to a journal file.

    After a failed write the incomplete frame is cut off, `fault` holds the reason, and later frames are ignored. No
    method raises OSError.

    Args:
        fd: Descriptor, open for appending; `close` closes it.
        size: Size of the file in bytes.
    """

    def __init__(self, fd: int, size: int = 0) -> None:
        self._file = HeldDescriptor(fd)
        self.size = size
        self.number = 0
        self.fault = ""
        self._dirty = False

    def add(self, kind: FrameKind, payload: bytes) -> bool:
        """Append a frame; return whether it was written."""
        if self.fault:
            return False
        data = memoryview(encode_frame(kind, self.number, payload))
        done = 0
        try:
            fd = self._file.number()
            while done < len(data):
                done += os.write(fd, data[done:])
        except OSError as error:
            self._stop(error)
            return False
        self.number += 1
        self.size += done
        self._dirty = True
        return True

    def sync(self) -> bool:
        """Flush the file to the disk, so that it survives a power failure; return whether that succeeded."""
        if self._dirty and not self.fault:
            try:
                getattr(os, "fdatasync", os.fsync)(self._file.number())
            except OSError as error:
                self._stop(error)
            self._dirty = False
        return not self.fault

    def first(self, most_bytes: int = 1 << 20) -> bytes:
        """Return the payload of the first frame; empty if it cannot be read."""
        with contextlib.suppress(OSError):
            frame = next(decode_frames(os.pread(self._file.number(), min(self.size, most_bytes), 0)), None)
            if isinstance(frame, Frame):
                return frame.payload
        return b""

    def replace(self, frames: Iterable[tuple[FrameKind, bytes]], folder: int, name: str) -> bool:
        """Replace this file atomically by a shorter one; return whether that succeeded.

        Args:
            frames: Frames of the new file; the iterator may append to this file meanwhile.
            folder: Descriptor of the folder.
            name: Name of the file in the folder.
        """
        replacement_name = f"{name}.new"
        try:
            replacement = JournalFile(create_journal_file(replacement_name, folder))
        except OSError as error:
            self._stop(error)
            return False
        complete = all(replacement.add(kind, payload) for kind, payload in frames) and replacement.sync()
        try:
            if not complete:
                raise OSError(replacement.fault)  # noqa: TRY301  one way out
            os.replace(replacement_name, name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
        except OSError as error:
            replacement.close()
            with contextlib.suppress(OSError):
                os.unlink(replacement_name, dir_fd=folder)
            self._stop(error)
            return False
        self._file.close()
        self._file, self.size, self.number, self._dirty = replacement._file, replacement.size, replacement.number, False
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self.fault = self.fault or "closed"

    def _stop(self, error: OSError) -> None:
        self.fault = error.strerror or str(error) or type(error).__name__
        with contextlib.suppress(OSError):  # readers also skip an incomplete frame
            os.ftruncate(self._file.number(), self.size)


def create_journal_file(name: str, folder: int) -> int:
    """Create a private file in a folder and return its descriptor; follow no link.

    Raises:
        OSError: The name exists, or the file cannot be created.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | os.O_CLOEXEC
    return os.open(name, flags, 0o600, dir_fd=folder)


READINGS_FILE = "readings.journal"
ANCHORS = "anchors"
WRITE_S = 0.25  # longest time that is lost if all processes are killed at once
WRITES_PER_SYNC = 2  # a power failure loses twice that time and that of one write to the disk
WRITES_PER_NOTES = 8  # writes
RECORD_BYTES = 15  # largest size of a reading in the file (benchmarks/journal_formats.py)
PART_RECORDS = 4096
INSTANT = struct.Struct("<q")
JOURNAL_STOPPED = "JOURNAL_STOPPED"


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

    def __init__(
        self, board: SampleBuffer, keys: Sequence[str], file: JournalFile, folder: int, most_bytes: int
    ) -> None:
        self._board = board
        self._rings: dict[str, SampleRing] = dict(
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
            self._file.add(FrameKind.GONE, INSTANT.pack(time.monotonic_ns()))
        self._file.sync()

    def write(self) -> None:
        """Append the readings since the last write."""
        blocks = self._new()
        if blocks:
            self._file.add(FrameKind.READINGS, pack_blocks(blocks))

    def _new(self) -> list[ReadingsBlock]:
        blocks = []
        for key, ring in self._rings.items():
            columns = ring.read(ring.index_since(self._since[key]))
            if columns[0]:
                self._since[key] = _newest_ns(columns[0]) + 1
                blocks.append(ReadingsBlock(key, ring.word(PERIOD_NS), *columns))
        return blocks

    def _run(self) -> None:
        while not self._stop.wait(WRITE_S) and not self._file.fault:
            try:
                self._turn()
            except Exception as error:  # sampling continues
                self._file.fault = f"{type(error).__name__}: {error}"
        if self._file.fault:
            self._board.note(time.monotonic_ns(), "warning", JOURNAL_STOPPED, "run", stopped_message(self._file.fault))

    def _turn(self) -> None:
        self._writes += 1
        self.write()
        if self._writes % WRITES_PER_NOTES == 0:
            self._note()
        if self._writes % WRITES_PER_SYNC == 0:
            self._file.sync()
        if self._file.size > self._most_bytes:
            self._thin()

    def _note(self) -> None:
        self._file.add(FrameKind.NOTES, json.dumps(sampler_state(self._board, self._rings)).encode())

    def _thin(self) -> None:
        """Rewrite the file from the rings, which cover the whole run, with every second, fourth, ... reading."""
        records = sum(ring.word(COUNT) for ring in self._rings.values())
        while records * RECORD_BYTES / self._stride > self._most_bytes / 2:
            self._stride *= 2
        if self._file.replace(self._thin_out(), self._folder, READINGS_FILE):
            message = f"the journal was full: every reading but one in {self._stride} was left out of its older part"
            self._board.note(time.monotonic_ns(), "info", "JOURNAL_THINNED", "run", message)

    def _thin_out(self) -> Iterator[tuple[FrameKind, bytes]]:
        yield FrameKind.HEAD, self._file.first()
        copied: dict[str, int] = {}
        written_s = time.monotonic()
        for key, ring in self._rings.items():
            columns = ring.read()
            copied[key] = _newest_ns(columns[0]) + 1
            for part in _thinned_parts(columns, 1 if key == ANCHORS else self._stride):
                yield FrameKind.READINGS, pack_blocks([ReadingsBlock(key, ring.word(PERIOD_NS) * self._stride, *part)])
                if time.monotonic() - written_s > WRITE_S:
                    self.write()  # to the old file, so that nothing is lost if the process ends now
                    written_s = time.monotonic()
                time.sleep(0)  # let the sampling threads run
        self._since = copied
        yield FrameKind.READINGS, pack_blocks(self._new())


def sampler_state(board: SampleBuffer, rings: Mapping[str, SampleRing]) -> dict[str, Any]:
    """Return the sampler's notes and counts so far, JSON-serialisable."""
    channels = {key: ring for key, ring in rings.items() if key != ANCHORS}
    return {
        "notes": [asdict(note) for note in board.notes()],
        "reads": {key: ring.word(READS) for key, ring in channels.items()},
        "missed": {key: ring.word(MISSED) for key, ring in channels.items()},
        "failing_ns": {key: ring.word(FAILING_NS) for key, ring in channels.items()},
        "cpu_ns": board.word(CPU_NS),
    }


def _newest_ns(t_ns: bytes) -> int:
    return int(INSTANT.unpack_from(t_ns, len(t_ns) - INSTANT.size)[0]) if t_ns else -1


def _thinned_parts(columns: tuple[bytes, bytes, bytes], stride: int) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield every `stride`-th reading in parts for one frame each, beginning with the first reading."""
    views = [memoryview(column).cast("q") for column in columns]
    step = PART_RECORDS * stride
    for at in range(0, len(views[0]), step):
        t_ns, raw, late_ns = (bytes(view[at : at + step : stride]) for view in views)
        yield t_ns, raw, late_ns
