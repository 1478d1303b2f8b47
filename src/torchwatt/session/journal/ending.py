"""Determines how and when a journal's run ended, and what is lost of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from torchwatt.core.meter import Event, Recording, Series, Severity
from torchwatt.core.report import Status, Window
from torchwatt.core.units import NS_PER_S
from torchwatt.session.journal.read import Found
from torchwatt.session.settle import Bounds

LIVE_S = 3.0  # an owner on another host counts as alive if its journal grew within this time
SILENT_S = 60.0  # an owner that is alive but has not written for longer no longer runs this run


@dataclass(frozen=True, slots=True)
class Ending:
    """Interval of the run, its status, and events about its end."""

    bounds: Bounds
    status: Status
    reason: str
    events: tuple[Event, ...]


def ending(found: Found, recording: Recording) -> Ending:
    """Determine interval, status and events of a run from its journal."""
    last_ns = last_reading_ns(recording)
    start_ns = _start_ns(found, recording)
    if found.stop is not None:
        end_ns, status, reason = found.stop.end_ns, found.stop.status, found.stop.reason
        if not found.ended:
            status, reason = "partial", "killed while its report was made"
    elif lives(found):
        end_ns, status, reason = _seen_ns(found, last_ns), "running", f"process {found.head.owner.pid} runs it"
    else:
        end_ns, status, reason = _seen_ns(found, last_ns), "partial", f"{_why(found)}: recovered from its journal"
    end_ns = max(end_ns, start_ns)
    bounds = Bounds(start_ns, end_ns, _start_unix_ns(found, start_ns))
    return Ending(bounds, status, reason, tuple(_events(found, bounds, last_ns)))


def _why(found: Found) -> str:
    """Return why a journal ends: only a sampler that outlives its owner can see that the owner was killed."""
    if found.gone_ns is not None:
        return "killed"
    return "its disk was full" if found.head.owner.alive() else "killed, or its disk was full"


def _seen_ns(found: Found, last_ns: int) -> int:
    """Return the last instant at which the run is known to have been active."""
    spans_ns = int(found.trace.end_ns.max()) if found.trace is not None and len(found.trace) else 0
    return max(last_ns, found.beat_ns or 0, found.gone_ns or 0, spans_ns, *(w.end_ns for w in found.state.windows))


def lives(found: Found) -> bool:
    """Return whether the journal is still being written."""
    if found.stop is not None or found.ended or found.gone_ns is not None:
        return False
    alive, silent_s = found.head.owner.alive(), time.time() - found.written_s
    return silent_s < LIVE_S if alive is None else alive and silent_s < SILENT_S


def last_reading_ns(recording: Recording) -> int:
    """Return the time of the last counter or power reading, 0 if there is none."""
    return max((int(s.t_ns[-1]) for s in metering(recording)), default=0)


def metering(recording: Recording) -> list[Series]:
    """Return the series of counters and power channels that have readings."""
    return [s for s in recording.series if s.channel.quantity != "gauge" and len(s)]


def _start_ns(found: Found, recording: Recording) -> int:
    """Return when the run began; without a BEGIN frame, the last reading, or the first if the owner's file is lost."""
    if found.begin is not None:
        return found.begin.start_ns
    if not found.lost_work:
        return last_reading_ns(recording) or found.head.mono_ns
    return min((int(s.t_ns[0]) for s in metering(recording)), default=found.head.mono_ns)


def _start_unix_ns(found: Found, start_ns: int) -> int:
    if found.begin is not None:
        return found.begin.start_unix_ns
    return found.head.unix_ns + start_ns - found.head.mono_ns


def _events(found: Found, bounds: Bounds, last_ns: int) -> Iterator[Event]:
    def event(severity: Severity, code: str, message: str) -> Event:
        return Event(bounds.end_ns, severity, code, "run", message)

    if found.missing:
        yield event("warning", "JOURNAL_MISSING", f"of its journal is missing: {', '.join(found.missing)}")
    if found.damaged_bytes:
        where = " and ".join(found.damaged_in)
        yield event(
            "warning", "JOURNAL_DAMAGED", f"{found.damaged_bytes} bytes of {where} hold no whole frame: left out"
        )
    if found.stop is not None or lives(found):
        return
    if found.begin is None and not found.lost_work:
        yield event("warning", "NOT_BEGUN", "the process was killed before the run began: nothing of it was metered")
    message = f"made from its journal ({_why(found)}): {_lost(found, bounds, last_ns)}"
    yield event("warning", "RECOVERED", message)


def _lost(found: Found, bounds: Bounds, last_ns: int) -> str:
    silent_s = max(bounds.end_ns - last_ns, 0) / NS_PER_S
    if not last_ns:
        return "it holds no reading"
    if found.gone_ns is not None:
        return f"its sampler saw it end, {silent_s:.3g} s after the last reading"
    known = f"; {silent_s:.3g} s of it are known to be without readings" if silent_s > 0.1 else ""
    return f"at most {found.head.lost_s:g} s of readings are lost after the last one{known}"


def open_windows(found: Found, bounds: Bounds) -> Iterator[Window]:
    """Yield the nested runs that had not ended; they end with the run."""
    for window in found.state.open:
        yield Window(f"{window.name} (cut off)", window.start_ns, max(bounds.end_ns, window.start_ns), None)
