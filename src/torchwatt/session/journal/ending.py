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
SILENT_S = 60.0  # an owner that is alive but has not written for longer has left this run


@dataclass(frozen=True, slots=True)
class Ending:
    """Interval of the run, its status, and events about its end."""

    bounds: Bounds
    status: Status
    reason: str
    events: tuple[Event, ...]


def ending(content: Found, recording: Recording) -> Ending:
    """Determine interval, status and events of a run from its journal."""
    last_ns = last_reading_ns(recording)
    start_ns = _start_ns(content, recording)
    if content.stop is not None:
        end_ns, status, reason = content.stop.end_ns, content.stop.status, content.stop.reason
        if not content.ended:
            status, reason = "partial", "killed while its report was made"
    elif lives(content):
        end_ns, status, reason = (
            _seen_ns(content, last_ns),
            "running",
            f"process {content.head.owner.pid} is running it",
        )
    else:
        end_ns, status, reason = _seen_ns(content, last_ns), "partial", f"{_why(content)}: recovered from its journal"
    end_ns = max(end_ns, start_ns)
    bounds = Bounds(start_ns, end_ns, _start_unix_ns(content, start_ns))
    return Ending(bounds, status, reason, tuple(_events(content, bounds, last_ns)))


def _why(content: Found) -> str:
    """Return why a journal ends: only a sampler that outlives its owner can see that the owner was killed."""
    if content.gone_ns is not None:
        return "killed"
    return "its disk was full" if content.head.owner.alive() else "killed, or its disk was full"


def _seen_ns(content: Found, last_ns: int) -> int:
    """Return the last instant at which the run is known to have been active."""
    spans_ns = int(content.trace.end_ns.max()) if content.trace is not None and len(content.trace) else 0
    return max(
        last_ns, content.beat_ns or 0, content.gone_ns or 0, spans_ns, *(w.end_ns for w in content.state.windows)
    )


def lives(content: Found) -> bool:
    """Return whether the journal is still being written."""
    if content.stop is not None or content.ended or content.gone_ns is not None:
        return False
    alive, silent_s = content.head.owner.alive(), time.time() - content.written_s
    return silent_s < LIVE_S if alive is None else alive and silent_s < SILENT_S


def last_reading_ns(recording: Recording) -> int:
    """Return the time of the last counter or power reading; 0 without readings."""
    return max((int(s.t_ns[-1]) for s in metering(recording)), default=0)


def metering(recording: Recording) -> list[Series]:
    """Return the series of counters and power channels that have readings."""
    return [s for s in recording.series if s.channel.quantity != "gauge" and len(s)]


def _start_ns(content: Found, recording: Recording) -> int:
    """Return when the run began; without a BEGIN frame, the last reading, or the first if the owner's file is lost."""
    if content.begin is not None:
        return content.begin.start_ns
    if not content.lost_work:
        return last_reading_ns(recording) or content.head.mono_ns
    return min((int(s.t_ns[0]) for s in metering(recording)), default=content.head.mono_ns)


def _start_unix_ns(content: Found, start_ns: int) -> int:
    if content.begin is not None:
        return content.begin.start_unix_ns
    return content.head.unix_ns + start_ns - content.head.mono_ns


def _events(content: Found, bounds: Bounds, last_ns: int) -> Iterator[Event]:
    def event(severity: Severity, code: str, message: str) -> Event:
        return Event(bounds.end_ns, severity, code, "run", message)

    if content.missing:
        yield event("warning", "JOURNAL_MISSING", f"missing files of the journal: {', '.join(content.missing)}")
    if content.damaged_bytes:
        where = " and ".join(content.damaged_in)
        yield event(
            "warning",
            "JOURNAL_DAMAGED",
            f"{content.damaged_bytes} bytes of {where} contain no complete frame and were discarded",
        )
    if content.stop is not None or lives(content):
        return
    if content.begin is None and not content.lost_work:
        yield event("warning", "NOT_BEGUN", "the process was killed before the run began, so nothing was metered")
    message = f"made from its journal ({_why(content)}): {_lost(content, bounds, last_ns)}"
    yield event("warning", "RECOVERED", message)


def _lost(content: Found, bounds: Bounds, last_ns: int) -> str:
    silent_s = max(bounds.end_ns - last_ns, 0) / NS_PER_S
    if not last_ns:
        return "it contains no readings"
    if content.gone_ns is not None:
        return f"its sampler detected the end of the process {silent_s:.3g} s after the last reading"
    silence_note = f"; readings are missing for its last {silent_s:.3g} s" if silent_s > 0.1 else ""
    return f"at most {content.head.lost_s:g} s of readings are lost after the last one{silence_note}"


def open_windows(content: Found, bounds: Bounds) -> Iterator[Window]:
    """Yield the nested runs that had not ended; they end with the run."""
    for window in content.state.open:
        yield Window(f"{window.name} (cut off)", window.start_ns, max(bounds.end_ns, window.start_ns), None)
