"""Saves recordings as JSON lines and plays them back through the same protocol as the sampler."""

from __future__ import annotations

import gzip
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

import msgspec
import numpy as np

from torchwatt.core.errors import BundleError
from torchwatt.core.meter import Channel, Event, Meter, Recording, SamplerStats, Series, Unavailable
from torchwatt.disk.path_safety import bounded_lines, open_bounded_gzip, open_user_path
from torchwatt.disk.private_files import create_file

FORMAT, VERSION = "torchwatt-recording", 1
_CHUNK = 4096
_MOST_BYTES = 1 << 40  # it is read line by line
LATEST_NS = 2**62 + 1  # differences of times fit 64 bits
LARGEST_VALUE = 1e100  # sums and squares of readings stay numbers


def save_recording(recording: Recording, path: str | os.PathLike[str]) -> None:
    """Write a recording: a head line, then lines of at most 4096 readings; gzip if the name ends in .gz.

    Raises:
        BundleError: The file exists already or cannot be written.
    """
    try:
        with _create_text(Path(path)) as file:
            for line in _recording_lines(recording):
                file.write(json.dumps(line, allow_nan=False) + "\n")
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot save the recording to {path}: {error}") from error


def load_recording(path: str | os.PathLike[str]) -> Recording:
    """Load a saved recording, without loss of precision.

    Raises:
        BundleError: The file cannot be read or is not a valid recording.
    """
    try:
        with _open_text(Path(path)) as file:
            return _parse_recording(bounded_lines(file), path)
    except (OSError, EOFError, ValueError, zlib.error, msgspec.MsgspecError, OverflowError, RecursionError) as error:
        raise BundleError(f"cannot load the recording {path}: {error}") from error


def _create_text(path: Path) -> TextIO:
    file = create_file(path)
    if path.suffix == ".gz":
        return TextIOWrapper(_ClosingGzip(file), encoding="utf-8")
    return TextIOWrapper(file, encoding="utf-8")


class _ClosingGzip(gzip.GzipFile):
    """A GzipFile that also closes its underlying file."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(fileobj=file, mode="wb")
        self._under = file

    def close(self) -> None:
        super().close()
        self._under.close()


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    with open_user_path(path, _MOST_BYTES) as packed:
        plain = open_bounded_gzip(packed) if path.suffix == ".gz" else packed
        with TextIOWrapper(plain, encoding="utf-8") as file:
            yield file


def _recording_lines(recording: Recording) -> Iterator[dict[str, Any]]:
    yield {
        "format": FORMAT,
        "version": VERSION,
        "meters": [asdict(meter) for meter in recording.meters],
        "unavailable": [asdict(domain) for domain in recording.unavailable],
        "events": [asdict(event) for event in recording.events],
        "anchors": recording.anchors,
        "stats": {**asdict(replace(recording.stats, reads={}, missed={}, call_s={})), **_stats_maps(recording.stats)},
        "meta": dict(recording.meta),
        "series": [asdict(series.channel) for series in recording.series],
    }
    for number, series in enumerate(recording.series):
        for at in range(0, len(series), _CHUNK):
            part = slice(at, at + _CHUNK)
            columns = {"t_ns": series.t_ns[part], "raw": series.raw[part], "late_ns": series.late_ns[part]}
            yield {"series": number, **{name: values.tolist() for name, values in columns.items()}}


def _stats_maps(stats: SamplerStats) -> dict[str, dict[str, float]]:
    return {"reads": dict(stats.reads), "missed": dict(stats.missed), "call_s": dict(stats.call_s)}


class _RecordingHead(msgspec.Struct):
    format: str
    version: int
    meters: tuple[Meter, ...]
    unavailable: tuple[Unavailable, ...]
    events: tuple[Event, ...]
    anchors: tuple[tuple[int, int], ...]
    stats: SamplerStats
    meta: dict[str, Any]
    series: tuple[Channel, ...]


class _RecordingPart(msgspec.Struct):
    series: int
    t_ns: list[int]
    raw: list[float]
    late_ns: list[int]


class _FormatMark(msgspec.Struct):
    format: str = ""
    version: int = 0


def _parse_recording(lines: Iterator[str], path: str | os.PathLike[str]) -> Recording:
    """Parse the lines of a recording, each against its types."""
    head_line = next(lines, "null")
    mark = msgspec.json.decode(head_line, type=_FormatMark)
    if (mark.format, mark.version) != (FORMAT, VERSION):
        raise BundleError(f"{path} is not a {FORMAT} of version {VERSION}")
    head = msgspec.json.decode(head_line, type=_RecordingHead)
    columns: list[tuple[list[int], list[float], list[int]]] = [([], [], []) for _ in head.series]
    for line in lines:
        part = msgspec.json.decode(line, type=_RecordingPart)
        if not 0 <= part.series < len(columns):
            raise ValueError(f"readings of series {part.series}, but there are {len(columns)} series")
        t_ns, raw, late_ns = columns[part.series]
        t_ns.extend(part.t_ns)
        raw.extend(part.raw)
        late_ns.extend(part.late_ns)
    series = tuple(_checked_series(channel, *column) for channel, column in zip(head.series, columns, strict=True))
    anchors = head.anchors
    if any(abs(t_ns) >= LATEST_NS for pair in anchors for t_ns in pair):
        raise ValueError("an anchor is outside the range of times")
    return Recording(head.meters, series, head.unavailable, head.events, anchors, head.stats, head.meta)


def _checked_series(channel: Channel, t_ns: list[int], raw: list[float], late_ns: list[int]) -> Series:
    series = Series(channel, np.array(t_ns, np.int64), np.array(raw, np.float64), np.array(late_ns, np.int64))
    if not len(t_ns) == len(raw) == len(late_ns):
        raise ValueError(f"{channel.key}: columns of different lengths")
    if not (np.abs(series.t_ns) < LATEST_NS).all() or (np.diff(series.t_ns) < 0).any():
        raise ValueError(f"{channel.key}: times are out of order or out of range")
    if not (np.abs(series.raw * channel.scale) < LARGEST_VALUE).all() or not 0 < channel.period_ns < LATEST_NS:
        raise ValueError(f"{channel.key}: a reading or the period is outside the range of sensors")
    return series


def shift_times(recording: Recording, by_ns: int) -> Recording:
    """Return the recording with all monotonic times moved by `by_ns`; wall clock times stay."""
    return replace(
        recording,
        series=tuple(replace(s, t_ns=s.t_ns + by_ns) for s in recording.series),
        events=tuple(replace(e, t_ns=e.t_ns + by_ns) for e in recording.events),
        anchors=tuple((mono + by_ns, real) for mono, real in recording.anchors),
    )


class Replay:
    """The `Feed` of a recording.

    With `shift="now"` the first reading is moved to the time of `start`, and a snapshot has the readings up to now.
    With `shift="none"` all readings are available at once, with their recorded times.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        shift: Literal["now", "none"] = "now",
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._recording = replace(recording, stats=replace(recording.stats, mode="replay"))
        self._shift = shift
        self._clock_ns = clock_ns
        self._start_ns: int | None = None
        self._result: Recording | None = None

    @property
    def meters(self) -> tuple[Meter, ...]:
        """Return the recorded meters."""
        return self._recording.meters

    @property
    def unavailable(self) -> tuple[Unavailable, ...]:
        """Return the domains that could not be metered in the recording."""
        return self._recording.unavailable

    def start(self) -> None:
        """Start the replay."""
        if self._start_ns is None:
            self._start_ns = self._clock_ns()
            firsts = [int(s.t_ns[0]) for s in self._recording.series if len(s)]
            if self._shift == "now" and firsts:
                self._recording = self._move_to_now(self._start_ns - min(firsts))

    def _move_to_now(self, by_ns: int) -> Recording:
        """Move the readings to now and replace the anchors by the current relation of the clocks."""
        moved = shift_times(self._recording, by_ns)
        return replace(moved, anchors=((self._clock_ns(), time.time_ns()),))

    def read_now(self) -> None:
        """Do nothing: a recording gets no new readings."""

    def wait_for_update(self) -> None:
        """Do nothing: recorded readings are available at their own times."""

    def snapshot(self, since_ns: int = 0) -> Recording:
        """Return the readings from `since_ns` up to the current time of the replay."""
        if self._result is not None:
            return self._result.between(since_ns, self._result_end_ns())
        if self._start_ns is None:
            return replace(self._recording.between(0, -1), series=())
        if self._shift == "none":
            return self._recording.between(since_ns, self._result_end_ns())
        return self._recording.between(since_ns, self._clock_ns())

    def _result_end_ns(self) -> int:
        return int(np.iinfo(np.int64).max) - 1

    def stop(self) -> Recording:
        """End the replay and return the readings up to now; later calls return the same."""
        if self._result is None:
            self._result = self.snapshot()
        return self._result
