"""Makes the report of a run from its journal."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import fsum

from torchwatt.attribution.accuracy_bands import add_bands
from torchwatt.attribution.device_fit import DevicePriors
from torchwatt.attribution.run_attribution import Attribution, attribute_recording
from torchwatt.core.errors import BundleError, LedgerError
from torchwatt.core.ledger import Entry, Ledger, book_entry
from torchwatt.core.meter import Event, Recording, Series, Severity
from torchwatt.core.report import Report, Status, Window
from torchwatt.core.terms import UNATTRIBUTED, Slot
from torchwatt.core.trace import EMPTY_TRACE, Trace
from torchwatt.core.units import NS_PER_S
from torchwatt.journal.journal_reader import JournalContent, read_journal, rebuild_recording
from torchwatt.journal.journal_records import RunState
from torchwatt.reports.report_builder import RunInterval, RunOutcome, assemble_report, device_priors
from torchwatt.reports.run_options import RunOptions

ALIVE_S = 3.0  # an owner on another host counts as alive if its journal grew within this time
MAX_SILENT_S = 60.0  # an owner that is alive but has not written for longer has left this run


@dataclass(frozen=True, slots=True)
class RunEnding:
    """Interval of the run, its status, and events about its end."""

    bounds: RunInterval
    status: Status
    reason: str
    events: tuple[Event, ...]


def determine_ending(content: JournalContent, recording: Recording) -> RunEnding:
    """Determine interval, status and events of a run from its journal."""
    last_ns = last_reading_ns(recording)
    start_ns = _start_ns(content, recording)
    if content.stop is not None:
        end_ns, status, reason = content.stop.end_ns, content.stop.status, content.stop.reason
        if not content.ended:
            status, reason = "partial", "killed while its report was made"
    elif is_running(content):
        end_ns, status, reason = (
            _last_active_ns(content, last_ns),
            "running",
            f"process {content.head.owner.pid} is running it",
        )
    else:
        end_ns, status, reason = (
            _last_active_ns(content, last_ns),
            "partial",
            f"{_end_reason(content)}: recovered from its journal",
        )
    end_ns = max(end_ns, start_ns)
    bounds = RunInterval(start_ns, end_ns, _start_unix_ns(content, start_ns))
    return RunEnding(bounds, status, reason, tuple(_ending_events(content, bounds, last_ns)))


def _end_reason(content: JournalContent) -> str:
    """Return why a journal ends: only a sampler that outlives its owner can see that the owner was killed."""
    if content.gone_ns is not None:
        return "killed"
    return "its disk was full" if content.head.owner.alive() else "killed, or its disk was full"


def _last_active_ns(content: JournalContent, last_ns: int) -> int:
    """Return the last instant at which the run is known to have been active."""
    spans_ns = int(content.trace.end_ns.max()) if content.trace is not None and len(content.trace) else 0
    return max(
        last_ns, content.beat_ns or 0, content.gone_ns or 0, spans_ns, *(w.end_ns for w in content.state.windows)
    )


def is_running(content: JournalContent) -> bool:
    """Return whether the journal is still being written."""
    if content.stop is not None or content.ended or content.gone_ns is not None:
        return False
    alive, silent_s = content.head.owner.alive(), time.time() - content.written_s
    return silent_s < ALIVE_S if alive is None else alive and silent_s < MAX_SILENT_S


def last_reading_ns(recording: Recording) -> int:
    """Return the time of the last counter or power reading; 0 without readings."""
    return max((int(s.t_ns[-1]) for s in metered_series(recording)), default=0)


def metered_series(recording: Recording) -> list[Series]:
    """Return the series of counters and power channels that have readings."""
    return [s for s in recording.series if s.channel.quantity != "gauge" and len(s)]


def _start_ns(content: JournalContent, recording: Recording) -> int:
    """Return when the run began; without a BEGIN frame, the last reading, or the first if the owner's file is lost."""
    if content.begin is not None:
        return content.begin.start_ns
    if not content.lost_work:
        return last_reading_ns(recording) or content.head.mono_ns
    return min((int(s.t_ns[0]) for s in metered_series(recording)), default=content.head.mono_ns)


def _start_unix_ns(content: JournalContent, start_ns: int) -> int:
    if content.begin is not None:
        return content.begin.start_unix_ns
    return content.head.unix_ns + start_ns - content.head.mono_ns


def _ending_events(content: JournalContent, bounds: RunInterval, last_ns: int) -> Iterator[Event]:
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
    if content.stop is not None or is_running(content):
        return
    if content.begin is None and not content.lost_work:
        yield event("warning", "NOT_BEGUN", "the process was killed before the run began, so nothing was metered")
    message = f"made from its journal ({_end_reason(content)}): {_describe_loss(content, bounds, last_ns)}"
    yield event("warning", "RECOVERED", message)


def _describe_loss(content: JournalContent, bounds: RunInterval, last_ns: int) -> str:
    silent_s = max(bounds.end_ns - last_ns, 0) / NS_PER_S
    if not last_ns:
        return "it contains no readings"
    if content.gone_ns is not None:
        return f"its sampler detected the end of the process {silent_s:.3g} s after the last reading"
    silence_note = f"; readings are missing for its last {silent_s:.3g} s" if silent_s > 0.1 else ""
    return f"at most {content.head.lost_s:g} s of readings are lost after the last one{silence_note}"


def open_windows(content: JournalContent, bounds: RunInterval) -> Iterator[Window]:
    """Yield the nested runs that had not ended; they end with the run."""
    for window in content.state.open:
        yield Window(f"{window.name} (cut off)", window.start_ns, max(bounds.end_ns, window.start_ns), None)


def attribute_until(
    recording: Recording, trace: Trace, until_ns: int, bounds: RunInterval, priors: DevicePriors
) -> tuple[Attribution, tuple[Event, ...]]:
    """Attribute a run whose spans are known up to `until_ns` only.

    Up to then it is attributed as usual; joules after it are booked to `(unattributed)`. Nothing is extrapolated.
    """
    if until_ns >= bounds.end_ns:
        return attribute_recording(recording, trace, bounds.start_ns, bounds.end_ns, priors), ()
    run_attribution = attribute_recording(recording, EMPTY_TRACE, bounds.start_ns, bounds.end_ns, priors)
    if until_ns <= bounds.start_ns:
        return run_attribution, tuple(_tail_events(run_attribution.ledgers, (), bounds.start_ns, bounds))
    split = attribute_recording(recording, trace, bounds.start_ns, until_ns, priors)
    by_domain = {ledger.domain: ledger for ledger in split.ledgers}
    ledgers = tuple(
        add_tail(by_domain[ledger.domain], ledger) if ledger.domain in by_domain else ledger
        for ledger in run_attribution.ledgers
    )
    ledgers = add_bands(ledgers, recording.meters)
    run_events = {(event.code, event.subject, event.message) for event in run_attribution.events}
    events = (*run_attribution.events, *(e for e in split.events if (e.code, e.subject, e.message) not in run_events))
    return replace(run_attribution, ledgers=ledgers, events=events), tuple(
        _tail_events(ledgers, split.ledgers, until_ns, bounds)
    )


def add_tail(split: Ledger, run_ledger: Ledger) -> Ledger:
    """Return the ledger of the whole run with the rows of its first part, and the rest unattributed.

    Raises:
        LedgerError: The part has more joules than the whole.
    """
    is_excluded = not run_ledger.counted and not run_ledger.part_of  # the ledger is a single row
    if is_excluded or split.counted != run_ledger.counted:
        return run_ledger
    tail_j = run_ledger.energy_j - split.energy_j
    if tail_j < -1e-9 * run_ledger.energy_j:
        raise LedgerError(
            f"{run_ledger.domain}: {split.energy_j!r} J before the tail, {run_ledger.energy_j!r} J with it"
        )
    tail_s = max(run_ledger.known_s - split.known_s, 0.0)
    rows = [
        _limit_static(entry, run_ledger.static_w)
        for entry in split.entries
        if (entry.fqn, entry.phase) != (UNATTRIBUTED, "other")
    ]
    mine = next((entry for entry in split.entries if (entry.fqn, entry.phase) == (UNATTRIBUTED, "other")), None)
    own_j = run_ledger.energy_j - fsum(entry.energy_self_j for entry in rows)
    rows.append(
        _extend_entry(mine, own_j, tail_s, run_ledger.static_w)
        if mine is not None
        else _tail_entry(run_ledger, own_j, tail_s)
    )
    return replace(run_ledger, entries=tuple(rows), sentence=split.sentence)


def _limit_static(entry: Entry, static_w: float | None) -> Entry:
    """Limit an entry's static part to the static power of the whole run, which may be lower than that of its part."""
    if static_w is None or entry.energy_static_j is None:
        return entry
    static_j = min(entry.energy_static_j, static_w * entry.time_self_s)
    return replace(entry, energy_static_j=static_j, energy_dynamic_j=entry.energy_self_j - static_j)


def _extend_entry(entry: Entry, own_j: float, tail_s: float, static_w: float | None) -> Entry:
    """Add the tail to the existing row; its intervals shift by the same amount, because the tail is metered."""
    more_j = own_j - entry.energy_self_j
    ends_j = (
        entry.energy_self_lo_j,
        entry.energy_self_hi_j,
        entry.energy_systematic_lo_j,
        entry.energy_systematic_hi_j,
    )
    lo_j, hi_j, systematic_lo_j, systematic_hi_j = (None if end is None else max(end + more_j, 0.0) for end in ends_j)
    time_s = entry.time_self_s + tail_s
    static_j = None if static_w is None or entry.energy_static_j is None else min(static_w * time_s, own_j)
    return replace(
        entry,
        energy_self_j=own_j,
        energy_self_lo_j=None if lo_j is None else min(lo_j, own_j),
        energy_self_hi_j=None if hi_j is None else max(hi_j, own_j),
        energy_systematic_lo_j=None if systematic_lo_j is None else min(systematic_lo_j, own_j),
        energy_systematic_hi_j=None if systematic_hi_j is None else max(systematic_hi_j, own_j),
        energy_static_j=static_j,
        energy_dynamic_j=None if static_j is None else own_j - static_j,
        time_self_s=time_s,
        carried_share=entry.carried_share * entry.time_self_s / time_s if time_s > 0 else 0.0,
        time_share_j=None,
    )


def _tail_entry(run_ledger: Ledger, own_j: float, tail_s: float) -> Entry:
    return book_entry(
        run_ledger.domain,
        Slot(UNATTRIBUTED, "other"),
        own_j,
        tail_s,
        method=run_ledger.method,
        provenance=run_ledger.provenance,
        static_j=None if run_ledger.static_w is None else run_ledger.static_w * tail_s,
    )


def _tail_events(ledgers: Sequence[Ledger], split: Sequence[Ledger], until_ns: int, bounds: RunInterval) -> list[Event]:
    known_s, all_s = ((t - bounds.start_ns) / NS_PER_S for t in (until_ns, bounds.end_ns))
    tail_j = fsum(x.energy_j for x in ledgers if x.counted) - fsum(x.energy_j for x in split if x.counted)
    message = (
        f"the trace covers {max(known_s, 0.0):.3f} of {all_s:.3f} s; the {tail_j:.4g} J after it are booked to "
        f"{UNATTRIBUTED}"
    )
    return [Event(until_ns, "warning", "LAYERS_END", "run", message)] if ledgers else []


def recover(path: str | os.PathLike[str]) -> Report:
    """Make the report of a run from its journal (`profile(journal=PATH)`, `torchwatt run`).

    A killed run gives a report of status `partial`: all joules up to its last readings, and layers up to the last
    written trace; joules after that are booked to `(unattributed)`, and events list what is lost. A running one
    gives a snapshot of status `running`; one that ended normally gives its whole report.

    Raises:
        BundleError: There is no journal, or its meters cannot be read.
    """
    return recover_report(read_journal(path))


def recover_report(content: JournalContent) -> Report:
    """Return the report of a journal, without layers if these are invalid.

    Raises:
        BundleError: The journal is invalid.
    """
    try:
        return _build_recovered_report(content)
    except Exception as error:  # files may come from elsewhere and contain anything
        loss = Event(content.head.mono_ns, "error", "ATTRIBUTION_LOST", "run", f"the layers were lost: {error!r}")
    bare = replace(content, trace=None, requests=[], state=replace(RunState(), mode=content.state.mode, events=(loss,)))
    try:
        return _build_recovered_report(bare)
    except Exception as error:
        raise BundleError(f"{content.path}: the journal is inconsistent: {error!r}") from error


def _build_recovered_report(content: JournalContent) -> Report:
    head, recording = content.head, rebuild_recording(content)
    end = determine_ending(content, recording)
    options = RunOptions(
        name=head.name, carbon=head.carbon, layers=head.layers, project=head.project, replays=head.replays,
        work=dict(head.work),
    )  # fmt: skip
    trace = content.trace or EMPTY_TRACE
    priors = device_priors(DevicePriors(sensors=head.sensors), options.replays, options.work, trace)
    until_ns = _layers_until_ns(content, trace, end.bounds.end_ns) if head.layers else end.bounds.end_ns
    attribution, tail_events = attribute_until(recording, trace, until_ns, end.bounds, priors)
    outcome = RunOutcome(
        end.status,
        end.reason,
        dict(content.state.units),
        (*content.state.windows, *open_windows(content, end.bounds)),
        (*end.events, *tail_events),
        priors,
        head.software,
        requests=tuple(content.requests),
    )
    return assemble_report(head.run_id, options, end.bounds, recording, trace, outcome, attribution)


def _layers_until_ns(content: JournalContent, trace: Trace, end_ns: int) -> int:
    """Return up to when layers are known: the end of the last span, or of the run if the trace was written then."""
    if content.stop is not None and content.trace is not None and content.trace_until_ns >= content.stop.end_ns:
        return end_ns
    return int(trace.end_ns.max()) if len(trace) else 0
