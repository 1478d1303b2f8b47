"""Worker process: join one recorded window, outside the user's process since parsing would hold its GIL.

Arguments: TRACE RANGES RESULT OFFSET_NS. Deletes the trace and the ranges; the result file is complete or absent, and
has an error message if joining failed. Files between a session and its worker are arrays and JSON in one file, no
pickled objects.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchwatt.core.errors import TraceError
from torchwatt.core.terms import PHASES, Slot
from torchwatt.core.trace import Activity
from torchwatt.disk.private_files import create_file
from torchwatt.kineto import join_trace, read_trace
from torchwatt.kineto.host_ownership import RecordedRanges, RecordedStages

NICENESS = 15
_LIVE = ("thread", "start_ns", "end_ns", "seq0", "seq1", "slot")
_STAGES = ("thread", "start_ns", "end_ns", "stage")
_WORDS = ("device", "signatures", "covered", "notes")
_RECORDS = ("slot", "start_ns", "end_ns", "stream", "signature")


def write_ranges(path: Path, ranges: RecordedRanges) -> None:
    """Write the ranges and stages that a session recorded."""
    columns = {name: getattr(ranges, name) for name in _LIVE}
    words: dict[str, Any] = {"slots": _plain(ranges.slots)}
    if ranges.stages is not None:
        columns |= {f"stages_{name}": getattr(ranges.stages, name) for name in _STAGES}
        words["stages"] = ranges.stages.names
    _write(path, columns, words)


def read_ranges(path: Path) -> RecordedRanges:
    """Read the ranges that `write_ranges` wrote."""
    arrays, words = _read(path)
    columns = {name: arrays[name] for name in _LIVE}
    stages = None
    if "stages" in words:
        of_stages = {name: arrays[f"stages_{name}"] for name in _STAGES}
        stages = RecordedStages(**of_stages, names=tuple(words["stages"]))
    return RecordedRanges(**columns, slots=_slots(words["slots"]), stages=stages)


def write_activities(path: Path, activities: Sequence[Activity]) -> None:
    """Write the activities of a window, one per device."""
    arrays = {f"{i}_{name}": getattr(a, name) for i, a in enumerate(activities) for name in _RECORDS}
    words = [{name: getattr(a, name) for name in _WORDS} | {"slots": _plain(a.slots)} for a in activities]
    _write(path, arrays, {"activities": words})


def read_activities(path: Path) -> tuple[Activity, ...]:
    """Read the activities that `write_activities` wrote.

    Raises:
        TraceError: The worker wrote an error message, or the file is unreadable.
    """
    try:
        return tuple(_activities(*_read(path)))
    except TraceError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise their own errors for a truncated or changed file
        raise TraceError(f"{path.name}: the window's result cannot be read: {error!r}") from error


def _activities(arrays: dict[str, Any], words: dict[str, Any]) -> list[Activity]:
    if "error" in words:
        raise TraceError(str(words["error"]))
    activities = []
    for i, fields in enumerate(words["activities"]):
        slot, start_ns, end_ns, stream, signature = (arrays[f"{i}_{name}"] for name in _RECORDS)
        filled = np.zeros(len(slot), dtype=np.bool_)
        covered = tuple((int(a), int(b)) for a, b in fields["covered"])
        signatures, notes = tuple(fields["signatures"]), tuple(fields["notes"])
        columns = (slot, start_ns, end_ns, stream, filled)
        activities.append(
            Activity(fields["device"], _slots(fields["slots"]), *columns, signatures, signature, covered, notes=notes)
        )
    return activities


def write_error(path: Path, message: str) -> None:
    """Write the reason why there is no result."""
    _write(path, {}, {"error": message})


def _write(path: Path, arrays: dict[str, Any], words: dict[str, Any]) -> None:
    text = np.frombuffer(json.dumps(words).encode(), dtype=np.uint8)
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    with create_file(part) as file:
        np.savez(file, _words=text, **arrays)
    part.replace(path)  # a reader finds the whole file or none


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    words: dict[str, Any] = json.loads(arrays.pop("_words").tobytes())
    return arrays, words


def _plain(slots: Sequence[Slot]) -> list[list[str]]:
    return [[slot.fqn, slot.phase, slot.stage] for slot in slots]


def _slots(plain: Sequence[Sequence[str]]) -> tuple[Slot, ...]:
    return tuple(Slot(fqn, phase, stage) for fqn, word, stage in plain for phase in PHASES if phase == word)


def main(arguments: list[str]) -> int:
    """Join a window; return 1 if it failed."""
    trace, ranges, result = (Path(argument) for argument in arguments[:3])
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    try:
        joined = join_trace(read_trace(trace), live=read_ranges(ranges), offset_ns=int(arguments[3]))
        write_activities(result, joined.activities)
    except Exception as error:  # any error goes into the result: stderr is not read
        write_error(result, f"{type(error).__name__}: {error}")
        return 1
    finally:
        for path in (trace, ranges):
            path.unlink(missing_ok=True)
    return 0
