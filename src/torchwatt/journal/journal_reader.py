"""Reads the two files of a journal, complete or damaged."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from torchwatt.core.errors import BundleError, warn
from torchwatt.core.journal_format import DamagedRange, Frame, FrameKind, ReadingsBlock, decode_frames, unpack_blocks
from torchwatt.core.meter import Channel, Event, Recording, SamplerStats, Series, Unavailable
from torchwatt.core.requests import RequestBatch
from torchwatt.core.trace import Trace
from torchwatt.core.units import NS_PER_S
from torchwatt.disk.path_safety import folder_entries, open_untrusted, path_kind, read_untrusted
from torchwatt.journal.journal_directory import JOURNALS_FOLDER, WORK_FILE, remove_journal
from torchwatt.journal.journal_records import (
    EndedRequests,
    JournalHead,
    RunStart,
    RunState,
    RunStop,
    StoredNotes,
    decode_record,
)
from torchwatt.journal.trace_codec import unpack_trace
from torchwatt.sensors import recording_builder
from torchwatt.sensors.ring_journal import ANCHORS, INSTANT, READINGS_FILE
from torchwatt.sensors.sample_buffer import SamplerNote

MAX_JOURNAL_BYTES = 1 << 30
MAX_UNPACKED_READINGS_BYTES = 1 << 30  # unpacked, of all channels
MAX_RUN_NS = 2 * 366 * 86_400 * NS_PER_S


@dataclass(slots=True)
class JournalContent:
    """Decoded content of both files; of a frame kind that is replaced, the latest."""

    path: Path
    head: JournalHead
    begin: RunStart | None = None
    state: RunState = field(default_factory=RunState)
    requests: list[RequestBatch] = field(default_factory=list)
    notes: StoredNotes | None = None
    trace: Trace | None = None
    trace_until_ns: int = 0
    stop: RunStop | None = None
    ended: bool = False
    gone_ns: int | None = None
    beat_ns: int | None = None  # when the owner was last seen alive
    blocks: dict[str, list[ReadingsBlock]] = field(default_factory=lambda: defaultdict(list))
    damaged_bytes: int = 0
    damaged_in: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    written_s: float = 0.0  # unix time of the last change

    @property
    def lost_work(self) -> bool:
        """Return whether the owner's file is missing, or damaged with no readable frame."""
        return WORK_FILE in self.missing or (
            WORK_FILE in self.damaged_in and self.begin is None and self.beat_ns is None
        )


def read_journal(path: str | os.PathLike[str], root: Path | None = None) -> JournalContent:
    """Read a journal; `root` is the folder that the user named, if the journal was found below it.

    Raises:
        BundleError: There is no journal, or both heads are damaged, so that its meters are unknown.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a journal: a journal is a folder with {WORK_FILE} and {READINGS_FILE}")
    paths = {name: folder / name for name in (WORK_FILE, READINGS_FILE)}
    files = {name: _read_file(path, root or folder) for name, path in paths.items()}
    if all(data is None for data in files.values()):
        raise BundleError(f"{folder} is not a journal: it contains neither {WORK_FILE} nor {READINGS_FILE}")
    frames = {name: list(decode_frames(data)) for name, data in files.items() if data is not None}
    content = JournalContent(folder, _first_head(folder, frames))
    content.missing = [name for name, data in files.items() if data is None]
    content.written_s = max(path.lstat().st_mtime for name, path in paths.items() if files[name] is not None)
    reader = _JournalDecoder(content)
    for name, parts in frames.items():
        reader.read(name, parts)
    reader.last_trace()
    return content


def _read_file(path: Path, root: Path) -> bytes | None:
    """Return the content of a file, None if it does not exist.

    Raises:
        BundleError: It is not a plain file in the journal's folder, is too large, or cannot be read.
    """
    try:
        return read_untrusted(path, MAX_JOURNAL_BYTES, root)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error


def _first_head(folder: Path, frames: dict[str, list[Frame | DamagedRange]]) -> JournalHead:
    heads = (f for parts in frames.values() for f in parts if isinstance(f, Frame) and f.kind == FrameKind.HEAD)
    head_frame = next(heads, None)
    if head_frame is None:
        raise BundleError(f"{folder}: the heads of both files are damaged, so its meters are unknown")
    return decode_record(head_frame.payload, JournalHead)


class _JournalDecoder:
    """Decodes frames; an invalid frame counts as damage."""

    def __init__(self, content: JournalContent) -> None:
        self.found = content
        self._traces: list[bytes] = []
        self._bytes = 0

    def read(self, name: str, parts: list[Frame | DamagedRange]) -> None:
        for part in parts:
            if isinstance(part, DamagedRange):
                self._note_damage(name, part.length)
                continue
            try:
                self._take(part)
            except BundleError:
                self._note_damage(name, len(part.payload))

    def _note_damage(self, name: str, length: int) -> None:
        self.found.damaged_bytes += length
        if name not in self.found.damaged_in:
            self.found.damaged_in.append(name)

    def _take(self, frame: Frame) -> None:
        content, payload = self.found, frame.payload
        match frame.kind:
            case FrameKind.BEGIN:
                begin = decode_record(payload, RunStart)
                self._check(begin.start_ns)
                content.begin = begin
            case FrameKind.STATE:
                state = decode_record(payload, RunState)
                self._check(*(t for w in (*state.windows, *state.open) for t in (w.start_ns, w.end_ns)))
                content.state = state
            case FrameKind.REQUESTS:
                self._requests(payload)
            case FrameKind.NOTES:
                content.notes = decode_record(payload, StoredNotes)
            case FrameKind.STOP:
                stop = decode_record(payload, RunStop)
                self._check(stop.end_ns)
                content.stop = stop
            case FrameKind.END:
                content.ended = True
            case FrameKind.TRACE:
                self._traces.append(payload)
            case FrameKind.READINGS:
                self._readings(payload)
            case FrameKind.BEAT | FrameKind.GONE as kind:
                setattr(content, "beat_ns" if kind == FrameKind.BEAT else "gone_ns", self._instant(payload))

    def _check(self, *instants_ns: int) -> None:
        """Reject instants more than two years from the run's start, which would stretch the report over centuries."""
        origin_ns = self.found.head.mono_ns
        if not all(origin_ns - MAX_RUN_NS <= t_ns <= origin_ns + MAX_RUN_NS for t_ns in instants_ns):
            raise BundleError("an instant is more than two years from the start of the run")

    def _instant(self, payload: bytes) -> int:
        if len(payload) != INSTANT.size:
            raise BundleError("an instant is cut off")
        (t_ns,) = INSTANT.unpack(payload)
        self._check(t_ns)
        return int(t_ns)

    def _requests(self, payload: bytes) -> None:
        ended = decode_record(payload, EndedRequests).batches
        self._check(*(t_ns for batch in ended for t_ns in _request_instants(batch)))
        self.found.requests += ended

    def _readings(self, payload: bytes) -> None:
        for block in unpack_blocks(payload):
            t_ns = np.frombuffer(block.t_ns, "<i8")
            if len(t_ns):
                self._check(int(t_ns.min()), int(t_ns.max()))
            self._bytes += len(block.t_ns) * 3
            if self._bytes > MAX_UNPACKED_READINGS_BYTES:
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
                self._note_damage(WORK_FILE, len(payload))


def _request_instants(batch: RequestBatch) -> Iterator[int]:
    yield from (batch.start_ns, batch.end_ns, *batch.token_ns)
    for _, start_ns, end_ns in batch.stretches:
        yield from (start_ns, end_ns)


def reading_columns(blocks: list[ReadingsBlock]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the readings of one channel in time order, each once: t_ns, raw, late_ns."""
    t_ns = np.frombuffer(b"".join(b.t_ns for b in blocks), "<i8")
    raw = np.frombuffer(b"".join(b.raw for b in blocks), "<f8")
    late_ns = np.frombuffer(b"".join(b.late_ns for b in blocks), "<i8")
    t_ns, first_indices = np.unique(t_ns, return_index=True)
    return t_ns, raw[first_indices], late_ns[first_indices]


def read_anchors(content: JournalContent) -> Iterator[tuple[int, int]]:
    """Yield pairs of (monotonic, realtime) nanoseconds."""
    mono, _, real = reading_columns(content.blocks.get(ANCHORS, []))
    yield from zip(mono.tolist(), real.tolist(), strict=True)


def rebuild_recording(content: JournalContent) -> Recording:
    """Return the readings, events and counts of a journal as the sampler would have returned them."""
    channels = [channel for meter in content.head.meters for channel in meter.channels]
    series = tuple(_rebuild_series(channel, content) for channel in channels)
    notes = content.notes or StoredNotes()
    noted = tuple(SamplerNote(**asdict(note)) for note in notes.notes)
    pairs = tuple(read_anchors(content)) or ((content.head.mono_ns, content.head.unix_ns),)
    mode = content.state.mode if content.state.mode in {"process", "thread", "replay"} else "none"
    return Recording(
        content.head.meters,
        series,
        tuple(
            dict.fromkeys(
                (*content.head.unavailable, *content.state.unavailable, *_silent_domains(series, notes, noted))
            )
        ),
        _merge_events(content, series, noted, pairs),
        pairs,
        SamplerStats(
            mode,  # type: ignore[arg-type]  # one of them by now
            notes.cpu_ns / NS_PER_S,
            (pairs[-1][0] - pairs[0][0]) / NS_PER_S,
            notes.reads,
            notes.missed,
        ),
    )


def _rebuild_series(channel: Channel, content: JournalContent) -> Series:
    blocks = content.blocks.get(channel.key, [])
    period_ns = next((b.period_ns for b in reversed(blocks) if b.period_ns > 0), channel.period_ns)
    return Series(replace(channel, period_ns=period_ns), *reading_columns(blocks))


def _merge_events(
    content: JournalContent,
    series: tuple[Series, ...],
    noted: tuple[SamplerNote, ...],
    pairs: tuple[tuple[int, int], ...],
) -> tuple[Event, ...]:
    """Merge the events of both files: the sampler's own notes are newer than the owner's copies of them."""
    again = (
        *recording_builder.note_events(noted),
        *recording_builder.clock_step_events(pairs),
        *recording_builder.throttling_events(series),
    )
    newer = {(event.code, event.subject) for event in again}
    older = (e for e in content.state.events if (e.code, e.subject) not in newer)
    return tuple(sorted((*older, *again), key=lambda event: event.t_ns))


def _silent_domains(
    series: tuple[Series, ...], notes: StoredNotes, noted: tuple[SamplerNote, ...]
) -> tuple[Unavailable, ...]:
    since = {s.channel.key: _StoredFailure(notes.failing_ns.get(s.channel.key, 0)) for s in series}
    return recording_builder.lost_domains(series, since, noted)  # type: ignore[arg-type]  # of a ring it asks one word


class _StoredFailure:
    def __init__(self, since_ns: int) -> None:
        self._since_ns = since_ns

    def word(self, _: int) -> int:
        return self._since_ns


MAX_JOURNALS = 50
MAX_JOURNALS_BYTES = 4 << 30
_HEAD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredJournal:
    """One journal; `alive` is whether its run is still running, None if that is unknown from here."""

    run_id: str
    path: Path
    bytes: int
    written_s: float
    name: str
    alive: bool | None


def list_journals(store: Path) -> tuple[StoredJournal, ...]:
    """Return the journals of a store, oldest first."""
    folder = store / JOURNALS_FOLDER
    try:
        entries = folder_entries(folder, store)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise BundleError(f"cannot read {folder}: {error.strerror}") from error
    journals = (_stored_journal(folder / name, store) for name, kind in entries.items() if kind == "folder")
    return tuple(
        sorted(
            (journal for journal in journals if journal is not None),
            key=lambda journal: (journal.written_s, journal.run_id),
        )
    )


def find_journal(store: Path, run: str) -> Path:
    """Return the folder of a journal by the run's id, or its beginning or end.

    Raises:
        BundleError: No journal matches, or several do.
    """
    near = [j for j in list_journals(store) if j.run_id.startswith(run) or j.run_id.endswith(run)]
    if len(near) != 1:
        shown = ", ".join(journal.run_id for journal in near[-5:])
        raise BundleError(f"{run!r} is several journals: {shown}" if near else f"no journal {run!r} in {store}")
    return near[0].path


def prune_journals(store: Path, max_journals: int = MAX_JOURNALS, most_bytes: int = MAX_JOURNALS_BYTES) -> None:
    """Remove the oldest journals of dead runs beyond a number and a total size, with a warning for each."""
    try:
        dead = [journal for journal in list_journals(store) if journal.alive is False]
    except BundleError:  # writing a journal there raises the error itself
        return
    total = sum(journal.bytes for journal in dead)
    while dead and (len(dead) > max_journals or total > most_bytes):
        oldest = dead.pop(0)
        total -= oldest.bytes
        remove_journal(oldest.path)
        text = f"torchwatt removed the journal of run {oldest.run_id}: more than {max_journals} were never recovered"
        warn(text)


def _stored_journal(path: Path, store: Path) -> StoredJournal | None:
    stats = []
    for name in (WORK_FILE, READINGS_FILE):
        with suppress(OSError):
            stats.append((path / name).lstat())
    if not stats:
        return None
    head = _stored_head(path, store)
    return StoredJournal(
        path.name,
        path,
        sum(stat.st_size for stat in stats),
        max(stat.st_mtime for stat in stats),
        head.name if head is not None else "",
        head.owner.alive() if head is not None else False,
    )


def _stored_head(path: Path, store: Path) -> JournalHead | None:
    with suppress(BundleError, OSError):
        for name in (WORK_FILE, READINGS_FILE):
            if path_kind(path / name) is None:
                continue
            with open_untrusted(path / name, MAX_JOURNAL_BYTES, store) as file:
                first_frame = next(decode_frames(file.read(_HEAD_BYTES)), None)
            if isinstance(first_frame, Frame) and first_frame.kind == FrameKind.HEAD:
                return decode_record(first_frame.payload, JournalHead)
    return None
