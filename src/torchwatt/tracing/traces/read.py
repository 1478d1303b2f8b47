"""Read a saved trace, plain or gzipped, into columns."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from torchwatt.core.errors import TraceError
from torchwatt.disk.inflate import inflated
from torchwatt.disk.path_safety import open_named
from torchwatt.tracing.traces.blocks import BLOCK, events_of
from torchwatt.tracing.traces.events import Event, Found
from torchwatt.tracing.traces.gather import MAX_DEVICE, Gathered
from torchwatt.tracing.traces.tables import Flows, Kineto, Launches, Ops, Ranges, Records

_GZIP = b"\x1f\x8b"
# Without a base, times are unix microseconds; this is September 2001.
_UNIX_US = 10**15
# A base beyond the year 2096 is invalid; added to times of an event that are nearly as large it would not fit 64 bits.
LATEST_BASE_NS = 4 * 10**18
MERGED_SHARE = 100  # processes with less than this fraction (1/100) of another's calls are ignored
_MOST_RANKS = 10**7
_MOST_BYTES = 1 << 40  # the file is read block by block
# Names, times and numbers of an event take at least 10 bytes of an archive; fewer bytes mean artificial repetition.
LEAST_EVENT_BYTES, FREE_EVENTS = 4, 250_000


def read_trace(path: str | os.PathLike[str], *, block: int = BLOCK) -> Kineto:
    """Read a trace saved by torch.profiler (.json or .json.gz).

    A trace that is truncated or has malformed events is read as far as possible; `notes` have the omissions.

    Args:
        path: The file.
        block: Number of bytes decoded at a time.

    Raises:
        TraceError: The file cannot be read, is empty, is not a trace, or has the events of several processes.
    """
    name = Path(path).name
    state, gathered = Found(), Gathered()
    try:
        with _opened(Path(path)) as (stream, size):
            most_events = FREE_EVENTS + size // LEAST_EVENT_BYTES
            for events in _until_broken(events_of(stream, name, state, block), name, state):
                gathered.add(events)
                if gathered.events > most_events:
                    raise TraceError(f"{name} holds more events than {size} bytes can: no profiler wrote this file")
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror or error}") from error
    if not gathered.events:
        raise TraceError(f"{name} holds no complete event: export it again, and let the export finish")
    _refuse_merged(name, gathered)
    return _kineto(name, state, gathered)


def _refuse_merged(name: str, gathered: Gathered) -> None:
    """Raise an error for a trace of several processes: their ids of correlations, streams and devices collide."""
    gathered.flush()
    several = max((_doing(calls) for calls in gathered.processes.values()), key=len, default=[])
    if len(several) > 1:
        names = ", ".join(sorted(map(str, several))[:8])
        raise TraceError(
            f"{name} holds the calls of {len(several)} processes ({names}), as a merge of several ranks does: "
            "kernels cannot be assigned to them. Give the trace of each rank, one --trace per rank"
        )


def _doing(calls: Mapping[int | str, int]) -> list[int | str]:
    """Return the processes of these calls; a process number with few calls is damage."""
    least = max(2, max(calls.values(), default=0) / MERGED_SHARE)
    return [process for process, count in calls.items() if count >= least]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Yield the unpacked content of a trace, and the file's size in bytes."""
    with open_named(path, _MOST_BYTES) as plain:
        size = os.fstat(plain.fileno()).st_size
        zipped = plain.read(2) == _GZIP
        plain.seek(0)
        yield inflated(plain) if zipped else plain, size


def _until_broken(blocks: Iterator[list[Event]], name: str, state: Found) -> Iterator[list[Event]]:
    """Yield the blocks of a broken archive up to the damage."""
    any_yet = False
    while True:
        try:
            events = next(blocks, None)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            if not any_yet:
                raise TraceError(f"the archive {name} is broken ({error}): compress or copy it again") from error
            state.truncated = True
            return
        if events is None:
            return
        any_yet |= bool(events)
        yield events


def _kineto(name: str, state: Found, gathered: Gathered) -> Kineto:
    gathered.flush()
    base, clock = _clock(state, gathered)
    notes = [*_notes(name, state, gathered)]
    if state.head.base_ns is not None and clock != "base":
        notes.append(f"baseTimeNanoseconds of {name} is no time of this age and is left out")
    records, launches, ops, ranges, flows = (
        gathered.columns(table, width)
        for table, width in (("records", 10), ("launches", 6), ("ops", 6), ("ranges", 5), ("flows", 4))
    )
    for times in (records[2], records[3], launches[1], launches[2], ops[1], ops[2], ranges[1], ranges[2], flows[1]):
        np.add(times, base, out=times)
    rank = state.head.distributed.get("rank")
    return Kineto(
        source=name,
        names=tuple(gathered.names),
        signatures=tuple(_signature(*key) for key in gathered.signatures),
        threads=gathered.threads.system_ids(),
        records=Records(*records),
        launches=Launches(*launches),
        ops=Ops(*ops),
        ranges=Ranges(*ranges),
        flows=Flows(*flows),
        events=gathered.events,
        clock=clock,
        rank=rank if isinstance(rank, int) and 0 <= rank < _MOST_RANKS else None,
        device_names=tuple(_devices(state)),
        notes=tuple(notes),
    )


def _devices(state: Found) -> Iterator[tuple[int, str]]:
    for device in state.head.devices:
        number = device.get("id")
        if isinstance(number, int) and 0 <= number <= MAX_DEVICE:
            yield number, str(device.get("name", ""))


def _clock(state: Found, gathered: Gathered) -> tuple[int, str]:
    """Return the offset of the times in ns, and its source."""
    if state.head.base_ns is not None and 0 <= state.head.base_ns < LATEST_BASE_NS:
        return state.head.base_ns, "base"
    starts = [
        block[at] for table, at in (("ops", 1), ("records", 2), ("launches", 1)) for block in gathered.blocks[table]
    ]
    middle = float(np.median(np.concatenate(starts))) if any(len(s) for s in starts) else 0.0
    return 0, "unix" if middle > _UNIX_US * 1000 else "unknown"


def _signature(name: str, grid: bytes, block: bytes) -> str:
    shape = " ".join(part.decode("utf-8", "replace").replace(" ", "") for part in (grid, block) if part)
    return f"{name} {shape}" if shape else name


def _notes(name: str, state: Found, gathered: Gathered) -> Iterator[str]:
    if state.truncated:
        yield f"{name} is cut short: its {gathered.events} complete events are used; let the export finish for the rest"
    if state.malformed:
        yield f"{state.malformed} events of {name} make no sense and are left out"
    if gathered.timeless:
        yield f"{gathered.timeless} events of {name} have no usable time and are left out"
