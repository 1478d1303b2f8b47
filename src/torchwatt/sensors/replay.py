"""Saves recordings as JSON lines and plays them back through the same protocol as the sampler."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from torchwatt.core.errors import BundleError
from torchwatt.core.meter import Channel, Event, Meter, Recording, SamplerStats, Series, Unavailable
from torchwatt.core.terms import Domain

FORMAT, VERSION = "torchwatt-recording", 1
_CHUNK = 4096


def save_recording(recording: Recording, path: str | os.PathLike[str]) -> None:
    """Write a recording: a head line, then readings in lines of at most 4096; gzip if the name ends in .gz.

    Raises:
        BundleError: If the file is there already or cannot be written; a recording is made once.
    """
    try:
        with _open(Path(path), "x") as file:
            for line in _lines(recording):
                file.write(json.dumps(line, allow_nan=False) + "\n")
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot save the recording to {path}: {error}") from error


def load_recording(path: str | os.PathLike[str]) -> Recording:
    """Read a recording back, every number as it was.

    Raises:
        BundleError: If the file cannot be read or is no such recording.
    """
    try:
        with _open(Path(path), "r") as file:
            lines = iter(file)
            head = json.loads(next(lines, "null"))
            if not isinstance(head, dict) or head.get("format") != FORMAT or head.get("version") != VERSION:
                raise BundleError(f"{path} is no {FORMAT} of version {VERSION}")
            return _recording(head, (json.loads(line) for line in lines))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"cannot load the recording {path}: {error}") from error


def _open(path: Path, mode: Literal["x", "r"]) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "xt" if mode == "x" else "rt", encoding="utf-8")
    return path.open(mode, encoding="utf-8")


def _lines(recording: Recording) -> Iterator[dict[str, Any]]:
    yield {
        "format": FORMAT,
        "version": VERSION,
        "meters": [asdict(meter) for meter in recording.meters],
        "unavailable": [asdict(one) for one in recording.unavailable],
        "events": [asdict(one) for one in recording.events],
        "anchors": recording.anchors,
        "stats": {**asdict(replace(recording.stats, reads={}, missed={}, call_s={})), **_maps(recording.stats)},
        "meta": dict(recording.meta),
        "series": [asdict(one.channel) for one in recording.series],
    }
    for number, one in enumerate(recording.series):
        for at in range(0, len(one), _CHUNK):
            part = slice(at, at + _CHUNK)
            columns = {"t_ns": one.t_ns[part], "raw": one.raw[part], "late_ns": one.late_ns[part]}
            yield {"series": number, **{name: values.tolist() for name, values in columns.items()}}


def _maps(stats: SamplerStats) -> dict[str, dict[str, float]]:
    return {"reads": dict(stats.reads), "missed": dict(stats.missed), "call_s": dict(stats.call_s)}


def _recording(head: Mapping[str, Any], parts: Iterator[Mapping[str, Any]]) -> Recording:
    columns: list[tuple[list[int], list[float], list[int]]] = [([], [], []) for _ in head["series"]]
    for part in parts:
        t_ns, raw, late_ns = columns[part["series"]]
        t_ns.extend(part["t_ns"])
        raw.extend(part["raw"])
        late_ns.extend(part["late_ns"])
    return Recording(
        tuple(_meter(meter) for meter in head["meters"]),
        tuple(
            Series(_channel(c), np.array(t, np.int64), np.array(raw, np.float64), np.array(late, np.int64))
            for c, (t, raw, late) in zip(head["series"], columns, strict=True)
        ),
        tuple(Unavailable(**one) for one in head["unavailable"]),
        tuple(Event(**one) for one in head["events"]),
        tuple((mono, real) for mono, real in head["anchors"]),
        SamplerStats(**head["stats"]),
        head["meta"],
    )


def _channel(told: Mapping[str, Any]) -> Channel:
    return Channel(**{**told, "domain": Domain(**told["domain"])})


def _meter(told: Mapping[str, Any]) -> Meter:
    accuracy = told["accuracy_rel"]
    return Meter(
        **{
            **told,
            "domain": Domain(**told["domain"]),
            "channels": tuple(_channel(channel) for channel in told["channels"]),
            "accuracy_rel": tuple(accuracy) if accuracy is not None else None,
            "notes": tuple(told["notes"]),
            "facts": tuple((name, value) for name, value in told["facts"]),
        }
    )


def shifted(recording: Recording, by_ns: int) -> Recording:
    """Return the recording with every monotonic time moved; the wall clock stays what it was."""
    return replace(
        recording,
        series=tuple(replace(s, t_ns=s.t_ns + by_ns) for s in recording.series),
        events=tuple(replace(e, t_ns=e.t_ns + by_ns) for e in recording.events),
        anchors=tuple((mono + by_ns, real) for mono, real in recording.anchors),
    )


class Replay:
    """The `Feed` of a recording.

    With `shift="now"` the first reading is moved to the moment of `start`, and a snapshot shows what a meter
    would have shown by now. With `shift="none"` all readings are there at once, at their own times.
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
        """Return what could not be metered then."""
        return self._recording.unavailable

    def start(self) -> None:
        """Begin to play."""
        if self._start_ns is None:
            self._start_ns = self._clock_ns()
            firsts = [int(s.t_ns[0]) for s in self._recording.series if len(s)]
            if self._shift == "now" and firsts:
                self._recording = self._rebased(self._start_ns - min(firsts))

    def _rebased(self, by_ns: int) -> Recording:
        """Move the readings to now, with today's relation of the clocks: anchors of then mean nothing now."""
        moved = shifted(self._recording, by_ns)
        return replace(moved, anchors=((self._clock_ns(), time.time_ns()),))

    def mark(self) -> None:
        """Do nothing: a recording has no readings but its own."""

    def linger(self) -> None:
        """Do nothing: what was recorded is there when its time comes."""

    def snapshot(self, since_ns: int = 0) -> Recording:
        """Return the readings that would be known by now."""
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
        """End and return all that was played."""
        if self._result is None:
            self._result = self.snapshot()
        return self._result
