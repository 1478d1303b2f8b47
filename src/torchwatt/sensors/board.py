"""The one block of shared memory that the sampler writes and the user's process reads. Numpy-free."""

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
ROUNDS, CPU_NS, EVENTS, STARTED_NS = 0, 1, 2, 3  # which head word is what
_SOURCE_WORDS = 2  # busy since (ns, 0 is not), CPU ns of its thread
MAX_EVENTS = 256
_EVENT_WORDS = 3  # first ns, last ns, count
_EVENT_TEXT = 488
_EVENT_BYTES = _EVENT_WORDS * _WORD + _EVENT_TEXT


@dataclass(frozen=True, slots=True)
class Note:
    """One distinct (subject, code) of what went wrong or right while sampling."""

    first_ns: int
    last_ns: int
    count: int
    severity: str
    code: str
    subject: str
    message: str


def anonymous_file(name: str) -> int:
    """Return a descriptor of memory that no path leads to; an unlinked temporary file without memfd."""
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC)
    except (AttributeError, OSError):
        with tempfile.TemporaryFile(prefix=name) as file:
            return os.dup(file.fileno())


def largest_file() -> int | None:
    """Return how large a file this process may make (`ulimit -f`), memory behind a descriptor too; None: no limit."""
    try:
        import resource
    except ImportError:  # no such limits on this system
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if soft == resource.RLIM_INFINITY else soft


class Board:
    """Head words, two words a source, a ring a channel, and a table of notes.

    Both processes compute the same layout from the number of sources and the capacities. One writer a ring;
    notes and rounds are written under a lock of the writing process. Pages that nobody touched cost nothing.
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
        for slot, note in enumerate(self.notes()):  # somebody may have written before us
            self._slots[note.subject, note.code] = slot

    @staticmethod
    def size(n_sources: int, capacities: Sequence[int]) -> int:
        """Return how many bytes a board takes when every page is touched."""
        n_words = _HEAD + n_sources * _SOURCE_WORDS + len(capacities) * RING_WORDS + 3 * sum(capacities)
        return n_words * _WORD + MAX_EVENTS * _EVENT_BYTES

    @classmethod
    def private(cls, n_sources: int, capacities: Sequence[int]) -> Board:
        """Return a board that no other process can see, in memory that no limit of files concerns."""
        return cls(mmap.mmap(-1, cls.size(n_sources, capacities)), n_sources, capacities)

    @classmethod
    def map(cls, fd: int, n_sources: int, capacities: Sequence[int]) -> Board:
        """Map the memory behind a descriptor, growing it if it is new; the descriptor can be closed after."""
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
        """Count a source that has finished its first look at everything."""
        with self._lock:
            self._words[ROUNDS] += 1

    def busy(self, source: int, since_ns: int) -> None:
        """Say that a source began a read, or with 0 that it came back."""
        self._sources[2 * source] = since_ns

    def busy_since(self, source: int) -> int:
        """Return when a source's read began, 0 if none is under way."""
        return int(self._sources[2 * source])

    def thread_cpu(self, source: int, cpu_ns: int) -> None:
        """Publish the CPU time of a source's thread."""
        self._sources[2 * source + 1] = cpu_ns

    def threads_cpu_ns(self) -> int:
        """Return the CPU time of all source threads."""
        return sum(self._sources[1::2])

    def note(self, t_ns: int, severity: str, code: str, subject: str, message: str) -> None:
        """Record that something happened; the same (subject, code) again only counts up."""
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
        self.put(EVENTS, slot + 1)  # last, so that a reader sees whole notes only

    def _note_words(self, slot: int) -> memoryview:
        at = self._notes_at + slot * _EVENT_BYTES
        return self._view[at : at + _EVENT_WORDS * _WORD].cast("q")

    def notes(self) -> tuple[Note, ...]:
        """Return what was noted so far."""
        found = []
        for slot in range(self.word(EVENTS)):
            words = self._note_words(slot)
            at = self._notes_at + slot * _EVENT_BYTES + _EVENT_WORDS * _WORD
            text = bytes(self._view[at : at + _EVENT_TEXT]).rstrip(b"\0").decode(errors="ignore")
            severity, code, subject, message = (text.split("\0") + [""] * 4)[:4]
            found.append(Note(words[0], words[1], words[2], severity, code, subject, message))
        return tuple(found)

    def close(self) -> None:
        """Unmap; a view that is still in use elsewhere keeps the memory until it goes."""
        for ring in self.rings:
            ring.release()
        for view in (self._sources, self._words, self._view):
            view.release()
        with contextlib.suppress(BufferError):
            self._memory.close()
