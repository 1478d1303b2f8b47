"""Reads the two files of a journal, complete or damaged."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from torchwatt.core.blocks import Block, unpack
from torchwatt.core.errors import BundleError
from torchwatt.core.frame import Damage, Frame, Kind, decode
from torchwatt.core.trace import Trace
from torchwatt.core.units import NS_PER_S
from torchwatt.disk.path_safety import read_own
from torchwatt.sensors.journal.rings import ANCHORS, INSTANT, READINGS
from torchwatt.session.journal.place import WORK
from torchwatt.session.journal.spans import unpack_trace
from torchwatt.session.journal.told import Begin, Head, Notes, State, Stop, from_json

MOST_FILE_BYTES = 1 << 30
MOST_READINGS_BYTES = 1 << 30  # unpacked, of all channels
LONGEST_NS = 2 * 366 * 86_400 * NS_PER_S


@dataclass(slots=True)
class Found:
    """Decoded content of both files; of a frame kind that is replaced, the latest."""

    path: Path
    head: Head
    begin: Begin | None = None
    state: State = field(default_factory=State)
    notes: Notes | None = None
    trace: Trace | None = None
    trace_until_ns: int = 0
    stop: Stop | None = None
    ended: bool = False
    gone_ns: int | None = None
    beat_ns: int | None = None  # when the owner was last seen alive
    blocks: dict[str, list[Block]] = field(default_factory=lambda: defaultdict(list))
    damaged_bytes: int = 0
    damaged_in: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    written_s: float = 0.0  # unix time of the last change

    @property
    def lost_work(self) -> bool:
        """Return whether the owner's file is missing, or damaged with no readable frame."""
        return WORK in self.missing or (WORK in self.damaged_in and self.begin is None and self.beat_ns is None)


def read_journal(path: str | os.PathLike[str], root: Path | None = None) -> Found:
    """Read a journal; `root` is the folder that the user named, if the journal was found below it.

    Raises:
        BundleError: There is no journal, or both heads are damaged, so that its meters are unknown.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a journal: a journal is a folder with {WORK} and {READINGS}")
    paths = {name: folder / name for name in (WORK, READINGS)}
    files = {name: _content(path, root or folder) for name, path in paths.items()}
    if all(data is None for data in files.values()):
        raise BundleError(f"{folder} is not a journal: it contains neither {WORK} nor {READINGS}")
    frames = {name: list(decode(data)) for name, data in files.items() if data is not None}
    content = Found(folder, _head(folder, frames))
    content.missing = [name for name, data in files.items() if data is None]
    content.written_s = max(path.lstat().st_mtime for name, path in paths.items() if files[name] is not None)
    reader = _Reader(content)
    for name, parts in frames.items():
        reader.read(name, parts)
    reader.last_trace()
    return content


def _content(path: Path, root: Path) -> bytes | None:
    """Return the content of a file, None if it does not exist.

    Raises:
        BundleError: It is not a plain file in the journal's folder, is too large, or cannot be read.
    """
    try:
        return read_own(path, MOST_FILE_BYTES, root)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error


def _head(folder: Path, frames: dict[str, list[Frame | Damage]]) -> Head:
    heads = (f for parts in frames.values() for f in parts if isinstance(f, Frame) and f.kind == Kind.HEAD)
    head_frame = next(heads, None)
    if head_frame is None:
        raise BundleError(f"{folder}: the heads of both files are damaged, so its meters are unknown")
    return from_json(head_frame.payload, Head)


class _Reader:
    """Decodes frames; an invalid frame counts as damage."""

    def __init__(self, content: Found) -> None:
        self.found = content
        self._traces: list[bytes] = []
        self._bytes = 0

    def read(self, name: str, parts: list[Frame | Damage]) -> None:
        for part in parts:
            if isinstance(part, Damage):
                self._damaged(name, part.length)
                continue
            try:
                self._take(part)
            except BundleError:
                self._damaged(name, len(part.payload))

    def _damaged(self, name: str, length: int) -> None:
        self.found.damaged_bytes += length
        if name not in self.found.damaged_in:
            self.found.damaged_in.append(name)

    def _take(self, frame: Frame) -> None:
        content, payload = self.found, frame.payload
        match frame.kind:
            case Kind.BEGIN:
                begin = from_json(payload, Begin)
                self._check(begin.start_ns)
                content.begin = begin
            case Kind.STATE:
                state = from_json(payload, State)
                self._check(*(t for w in (*state.windows, *state.open) for t in (w.start_ns, w.end_ns)))
                content.state = state
            case Kind.NOTES:
                content.notes = from_json(payload, Notes)
            case Kind.STOP:
                stop = from_json(payload, Stop)
                self._check(stop.end_ns)
                content.stop = stop
            case Kind.END:
                content.ended = True
            case Kind.TRACE:
                self._traces.append(payload)
            case Kind.READINGS:
                self._readings(payload)
            case Kind.BEAT:
                content.beat_ns = self._instant(payload)
            case Kind.GONE:
                content.gone_ns = self._instant(payload)

    def _check(self, *instants_ns: int) -> None:
        """Reject instants more than two years from the run's start, which would stretch the report over centuries."""
        origin_ns = self.found.head.mono_ns
        if not all(origin_ns - LONGEST_NS <= t_ns <= origin_ns + LONGEST_NS for t_ns in instants_ns):
            raise BundleError("an instant is more than two years from the start of the run")

    def _instant(self, payload: bytes) -> int:
        if len(payload) != INSTANT.size:
            raise BundleError("an instant is cut off")
        (t_ns,) = INSTANT.unpack(payload)
        self._check(t_ns)
        return int(t_ns)

    def _readings(self, payload: bytes) -> None:
        for block in unpack(payload):
            t_ns = np.frombuffer(block.t_ns, "<i8")
            if len(t_ns):
                self._check(int(t_ns.min()), int(t_ns.max()))
            self._bytes += len(block.t_ns) * 3
            if self._bytes > MOST_READINGS_BYTES:
                raise BundleError("more readings than a journal can contain")
            self.found.blocks[block.key].append(block)

    def last_trace(self) -> None:
        """Unpack the latest intact trace."""
        while self._traces and self.found.trace is None:
            payload = self._traces.pop()
            try:
                trace, until_ns = unpack_trace(payload)
                if len(trace):
                    self._check(int(trace.start_ns.min()), int(trace.end_ns.max()))
                self.found.trace, self.found.trace_until_ns = trace, until_ns
            except BundleError:
                self._damaged(WORK, len(payload))


def columns(blocks: list[Block]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the readings of one channel in time order, each once: t_ns, raw, late_ns."""
    t_ns = np.frombuffer(b"".join(b.t_ns for b in blocks), "<i8")
    raw = np.frombuffer(b"".join(b.raw for b in blocks), "<f8")
    late_ns = np.frombuffer(b"".join(b.late_ns for b in blocks), "<i8")
    t_ns, first_indices = np.unique(t_ns, return_index=True)
    return t_ns, raw[first_indices], late_ns[first_indices]


def anchors(content: Found) -> Iterator[tuple[int, int]]:
    """Yield pairs of (monotonic, realtime) nanoseconds."""
    mono, _, real = columns(content.blocks.get(ANCHORS, []))
    yield from zip(mono.tolist(), real.tolist(), strict=True)
