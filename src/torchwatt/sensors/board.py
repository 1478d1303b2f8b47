"""Shared memory that the sampler writes and the user's process reads. Numpy-free."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from torchwatt.sensors.ring import RING_WORDS, Ring

_WORD = 8
_HEAD = 8  # words before the per-source words
ROUNDS, CPU_NS, EVENTS, STARTED_NS = 0, 1, 2, 3  # indices of the head words
_SOURCE_WORDS = 2  # start of the current read (ns, 0: none), CPU ns of its thread
MAX_EVENTS = 256
_EVENT_WORDS = 3  # first ns, last ns, count
_EVENT_TEXT = 488
_EVENT_BYTES = _EVENT_WORDS * _WORD + _EVENT_TEXT


@dataclass(frozen=True, slots=True)
class Note:
    """All occurrences of one (subject, code) while sampling, with the message of the first."""

    first_ns: int
    last_ns: int
    count: int
    severity: str
    code: str
    subject: str
    message: str


def anonymous_file(name: str) -> int:
    """Return a descriptor of an anonymous memory file; without memfd, of an unlinked temporary file."""
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC)
    except (AttributeError, OSError):
        with tempfile.TemporaryFile(prefix=name) as file:
            return os.dup(file.fileno())


def largest_file() -> int | None:
    """Return the file size limit in bytes (`ulimit -f`), which also applies to memfd; None if unlimited."""
    try:
        import resource
    except ImportError:  # no such limits on this system
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if soft == resource.RLIM_INFINITY else soft


class Board:
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
        at = self._notes_at + MAX_EVENTS * _EVENT_BYTES
        rings = []
        for i, capacity in enumerate(capacities):
            start = _HEAD + n_sources * _SOURCE_WORDS + i * RING_WORDS
            rings.append(Ring(words[start : start + RING_WORDS], view[at : at + 3 * capacity * _WORD], capacity))
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
        return n_words * _WORD + MAX_EVENTS * _EVENT_BYTES

    @classmethod
    def private(cls, n_sources: int, capacities: Sequence[int]) -> Board:
        """Return a board in private anonymous memory, to which the file size limit does not apply."""
        return cls(mmap.mmap(-1, cls.size(n_sources, capacities)), n_sources, capacities)

    @classmethod
    def map(cls, fd: int, n_sources: int, capacities: Sequence[int]) -> Board:
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

    def round_done(self) -> None:
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
        slot = self.word(EVENTS)
        if slot >= MAX_EVENTS:
            return
        at = self._notes_at + slot * _EVENT_BYTES + _EVENT_WORDS * _WORD
        data = text.encode()[:_EVENT_TEXT]
        self._view[at : at + len(data)] = data
        words = self._note_words(slot)
        words[0], words[1], words[2] = t_ns, t_ns, 1
        self._slots[key] = slot
        self.put(EVENTS, slot + 1)  # last, so that a reader sees complete notes only

    def _note_words(self, slot: int) -> memoryview:
        at = self._notes_at + slot * _EVENT_BYTES
        return self._view[at : at + _EVENT_WORDS * _WORD].cast("q")

    def notes(self) -> tuple[Note, ...]:
        """Return the notes so far."""
        notes = []
        for slot in range(self.word(EVENTS)):
            words = self._note_words(slot)
            at = self._notes_at + slot * _EVENT_BYTES + _EVENT_WORDS * _WORD
            text = bytes(self._view[at : at + _EVENT_TEXT]).rstrip(b"\0").decode(errors="ignore")
            severity, code, subject, message = (text.split("\0") + [""] * 4)[:4]
            notes.append(Note(words[0], words[1], words[2], severity, code, subject, message))
        return tuple(notes)

    def close(self) -> None:
        """Unmap the memory, unless another view of it is still in use."""
        for ring in self.rings:
            ring.release()
        for view in (self._sources, self._words, self._view):
            view.release()
        with contextlib.suppress(BufferError):
            self._memory.close()
