"""Shared memory that the sampler writes and the user's process reads. Numpy-free."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

RING_WORDS = 8
COUNT, GENERATION, PERIOD_NS, READS, MISSED, FAILING_NS, THINNED = range(7)
_READ_ATTEMPTS = 1000


class SampleRing:
    """Records (t_ns, raw, late_ns) in three columns, with state words.

    A full ring is thinned in place: every second record stays and the channel's period doubles, so that bounded memory
    covers the whole run. The generation is odd during thinning; a reader reads again if it changed.
    """

    def __init__(self, words: memoryview, data: memoryview, capacity: int) -> None:
        self._words = words
        self._data = data
        self._capacity = capacity
        size = capacity * 8
        self._t_ns = data[:size].cast("q")
        self._raw = data[size : 2 * size].cast("d")
        self._late_ns = data[2 * size : 3 * size].cast("q")

    def word(self, index: int) -> int:
        """Return a state word."""
        return int(self._words[index])

    def put(self, index: int, value: int) -> None:
        """Set a state word; for the writer only."""
        self._words[index] = value

    def append(self, t_ns: int, raw: float, late_ns: int) -> bool:
        """Add a record; return whether the ring was thinned to make room."""
        count = self._words[COUNT]
        thinned = count >= self._capacity
        if thinned:
            count = self._thin(count)
        self._t_ns[count] = t_ns
        self._raw[count] = raw
        self._late_ns[count] = late_ns
        self._words[COUNT] = count + 1  # last, so that a reader sees complete records only
        self._words[READS] += 1
        return thinned

    def _thin(self, count: int) -> int:
        self._words[GENERATION] += 1
        kept_count = (count + 1) // 2
        for column in (self._t_ns, self._raw, self._late_ns):
            column[:kept_count] = column[:count:2]
        self._words[COUNT] = kept_count
        self._words[PERIOD_NS] *= 2
        self._words[THINNED] += 1
        self._words[GENERATION] += 1
        return kept_count

    def read(self, start: int = 0) -> tuple[bytes, bytes, bytes]:
        """Return the columns from record `start` on, as bytes of int64, float64 and int64."""
        for _ in range(_READ_ATTEMPTS):
            before = self._words[GENERATION]
            if before % 2 == 0:
                count = self._words[COUNT]
                columns = (self._t_ns, self._raw, self._late_ns)
                copies = tuple(bytes(column[min(start, count) : count]) for column in columns)
                if self._words[GENERATION] == before:
                    return copies[0], copies[1], copies[2]
            time.sleep(0.001)
        return b"", b"", b""  # the writer ended during thinning

    def newest_ns(self) -> int:
        """Return the time of the last record in ns; 0 without records."""
        count = self.word(COUNT)
        return int(self._t_ns[count - 1]) if count else 0

    def index_since(self, start_ns: int) -> int:
        """Return the index of the first record at or after an instant."""
        lo, hi = 0, self.word(COUNT)
        while lo < hi:
            middle = (lo + hi) // 2
            if self._t_ns[middle] < start_ns:
                lo = middle + 1
            else:
                hi = middle
        return lo

    def release(self) -> None:
        """Release the views of the memory."""
        for view in (self._t_ns, self._raw, self._late_ns, self._words, self._data):
            view.release()


_WORD = 8
_HEAD = 8  # words before the per-source words
ROUNDS, CPU_NS, NOTE_COUNT, STARTED_NS = 0, 1, 2, 3  # indices of the head words
_SOURCE_WORDS = 2  # start of the current read (ns, 0: none), CPU ns of its thread
MAX_NOTES = 256
_NOTE_WORDS = 3  # first ns, last ns, count
_NOTE_TEXT = 488
_NOTE_BYTES = _NOTE_WORDS * _WORD + _NOTE_TEXT


@dataclass(frozen=True, slots=True)
class SamplerNote:
    """All occurrences of one (subject, code) while sampling, with the message of the first."""

    first_ns: int
    last_ns: int
    count: int
    severity: str
    code: str
    subject: str
    message: str


def create_memory_file(name: str) -> int:
    """Return a descriptor of an anonymous memory file; without memfd, of an unlinked temporary file."""
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC)
    except (AttributeError, OSError):
        with tempfile.TemporaryFile(prefix=name) as file:
            return os.dup(file.fileno())


def file_size_limit() -> int | None:
    """Return the file size limit in bytes (`ulimit -f`), which also applies to memfd; None if unlimited."""
    try:
        import resource
    except ImportError:  # no such limits on this system
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if soft == resource.RLIM_INFINITY else soft


class SampleBuffer:
    """Layout: head words, two words per source, one ring per channel, and a table of notes.

    Both processes compute the same layout from the number of sources and the capacities. Each ring has one writer;
    notes and rounds are written under a lock of the writing process. Pages never written use no memory.
    """

    def __init__(self, memory: mmap.mmap, n_sources: int, capacities: Sequence[int]) -> None:
        self._memory = memory
        self._view = view = memoryview(memory)
        n_words = _HEAD + n_sources * _SOURCE_WORDS + len(capacities) * RING_WORDS
        self._words = words = view[: n_words * _WORD].cast("q")
        self._sources = words[_HEAD : _HEAD + n_sources * _SOURCE_WORDS]
        self._notes_at = n_words * _WORD
        at = self._notes_at + MAX_NOTES * _NOTE_BYTES
        rings = []
        for i, capacity in enumerate(capacities):
            start = _HEAD + n_sources * _SOURCE_WORDS + i * RING_WORDS
            rings.append(SampleRing(words[start : start + RING_WORDS], view[at : at + 3 * capacity * _WORD], capacity))
            at += 3 * capacity * _WORD
        self.rings = tuple(rings)
        self._lock = threading.Lock()
        self._slots: dict[tuple[str, str], int] = {}
        for slot, note in enumerate(self.notes()):  # another process may have written notes already
            self._slots[note.subject, note.code] = slot

    @staticmethod
    def size(n_sources: int, capacities: Sequence[int]) -> int:
        """Return the size of a board in bytes."""
        n_words = _HEAD + n_sources * _SOURCE_WORDS + len(capacities) * RING_WORDS + 3 * sum(capacities)
        return n_words * _WORD + MAX_NOTES * _NOTE_BYTES

    @classmethod
    def private(cls, n_sources: int, capacities: Sequence[int]) -> SampleBuffer:
        """Return a board in private anonymous memory, to which the file size limit does not apply."""
        return cls(mmap.mmap(-1, cls.size(n_sources, capacities)), n_sources, capacities)

    @classmethod
    def map(cls, fd: int, n_sources: int, capacities: Sequence[int]) -> SampleBuffer:
        """Map a descriptor's memory, extending it to the board's size; the descriptor can be closed afterwards."""
        size = cls.size(n_sources, capacities)
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
        return cls(mmap.mmap(fd, size), n_sources, capacities)

    def word(self, index: int) -> int:
        """Return a head word."""
        return int(self._words[index])

    def put(self, index: int, value: int) -> None:
        """Set a head word."""
        self._words[index] = value

    def count_round(self) -> None:
        """Count a source that has read all its channels once."""
        with self._lock:
            self._words[ROUNDS] += 1

    def busy(self, source: int, since_ns: int) -> None:
        """Publish the start of a source's read, or 0 at its end."""
        self._sources[2 * source] = since_ns

    def busy_since(self, source: int) -> int:
        """Return the start of a source's current read in ns; 0 between reads."""
        return int(self._sources[2 * source])

    def thread_cpu(self, source: int, cpu_ns: int) -> None:
        """Publish the CPU time of a source's thread."""
        self._sources[2 * source + 1] = cpu_ns

    def threads_cpu_ns(self) -> int:
        """Return the CPU time of all source threads."""
        return sum(self._sources[1::2])

    def note(self, t_ns: int, severity: str, code: str, subject: str, message: str) -> None:
        """Record a note; a repeated (subject, code) updates its last time and count only."""
        with self._lock:
            slot = self._slots.get((subject, code))
            if slot is None:
                self._new_note(t_ns, f"{severity}\0{code}\0{subject}\0{message}", (subject, code))
                return
            words = self._note_words(slot)
            words[1] = t_ns
            words[2] += 1

    def _new_note(self, t_ns: int, text: str, key: tuple[str, str]) -> None:
        slot = self.word(NOTE_COUNT)
        if slot >= MAX_NOTES:
            return
        at = self._notes_at + slot * _NOTE_BYTES + _NOTE_WORDS * _WORD
        data = text.encode()[:_NOTE_TEXT]
        self._view[at : at + len(data)] = data
        words = self._note_words(slot)
        words[0], words[1], words[2] = t_ns, t_ns, 1
        self._slots[key] = slot
        self.put(NOTE_COUNT, slot + 1)  # last, so that a reader sees complete notes only

    def _note_words(self, slot: int) -> memoryview:
        at = self._notes_at + slot * _NOTE_BYTES
        return self._view[at : at + _NOTE_WORDS * _WORD].cast("q")

    def notes(self) -> tuple[SamplerNote, ...]:
        """Return the notes so far."""
        notes = []
        for slot in range(self.word(NOTE_COUNT)):
            words = self._note_words(slot)
            at = self._notes_at + slot * _NOTE_BYTES + _NOTE_WORDS * _WORD
            text = bytes(self._view[at : at + _NOTE_TEXT]).rstrip(b"\0").decode(errors="ignore")
            severity, code, subject, message = (text.split("\0") + [""] * 4)[:4]
            notes.append(SamplerNote(words[0], words[1], words[2], severity, code, subject, message))
        return tuple(notes)

    def close(self) -> None:
        """Unmap the memory, unless another view of it is still in use."""
        for ring in self.rings:
            ring.release()
        for view in (self._sources, self._words, self._view):
            view.release()
        with contextlib.suppress(BufferError):
            self._memory.close()
