"""Makes the report of a run from its journal."""

from __future__ import annotations

import os
from dataclasses import replace

from torchwatt.attribution.known import Known
from torchwatt.core.errors import BundleError
from torchwatt.core.meter import Event
from torchwatt.core.report import Report
from torchwatt.core.trace import EMPTY_TRACE, Trace
from torchwatt.session.journal.ending import ending, open_windows
from torchwatt.session.journal.read import Found, read_journal
from torchwatt.session.journal.recorded import recorded
from torchwatt.session.journal.tail import attributed
from torchwatt.session.journal.told import State
from torchwatt.session.known import known_of
from torchwatt.session.options import Options
from torchwatt.session.settle import Outcome, report_of


def recover(path: str | os.PathLike[str]) -> Report:
    """Make the report of a run from its journal (`profile(journal=PATH)`, `torchwatt run`).

    A killed run gives a report of status `partial`: all joules up to its last readings, and layers up to the last
    written trace; joules after that are booked to `(unattributed)`, and events list what is lost. A running one
    gives a snapshot of status `running`; one that ended normally gives its whole report.

    Raises:
        BundleError: There is no journal, or its meters cannot be read.
    """
    return report_from(read_journal(path))


def report_from(found: Found) -> Report:
    """Return the report of a journal, without layers if these are invalid.

    Raises:
        BundleError: The journal is invalid.
    """
    try:
        return _report(found)
    except Exception as error:  # files may come from elsewhere and contain anything
        told = Event(found.head.mono_ns, "error", "ATTRIBUTION_LOST", "run", f"the layers were lost: {error!r}")
    bare = replace(found, trace=None, state=replace(State(), mode=found.state.mode, events=(told,)))
    try:
        return _report(bare)
    except Exception as error:
        raise BundleError(f"{found.path}: the journal does not make sense: {error!r}") from error


def _report(found: Found) -> Report:
    head, recording = found.head, recorded(found)
    end = ending(found, recording)
    asked = Options(
        name=head.name, carbon=head.carbon, layers=head.layers, project=head.project, replays=head.replays,
        work=dict(head.work),
    )  # fmt: skip
    trace = found.trace or EMPTY_TRACE
    known = known_of(Known(sensors=head.sensors), asked.replays, asked.work, trace)
    until_ns = _known_until_ns(found, trace, end.bounds.end_ns) if head.layers else end.bounds.end_ns
    whole, said = attributed(recording, trace, until_ns, end.bounds, known)
    outcome = Outcome(
        end.status,
        end.reason,
        dict(found.state.units),
        (*found.state.windows, *open_windows(found, end.bounds)),
        (*end.events, *said),
        known,
        head.software,
    )
    return report_of(head.run_id, asked, end.bounds, recording, trace, outcome, whole)


def _known_until_ns(found: Found, trace: Trace, end_ns: int) -> int:
    """Return up to when layers are known: the end of the last span, or of the run if the trace was written then."""
    if found.stop is not None and found.trace is not None and found.trace_until_ns >= found.stop.end_ns:
        return end_ns
    return int(trace.end_ns.max()) if len(trace) else 0
