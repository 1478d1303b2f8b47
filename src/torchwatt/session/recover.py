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


def report_from(content: Found) -> Report:
    """Return the report of a journal, without layers if these are invalid.

    Raises:
        BundleError: The journal is invalid.
    """
    try:
        return _report(content)
    except Exception as error:  # files may come from elsewhere and contain anything
        loss = Event(content.head.mono_ns, "error", "ATTRIBUTION_LOST", "run", f"the layers were lost: {error!r}")
    bare = replace(content, trace=None, state=replace(State(), mode=content.state.mode, events=(loss,)))
    try:
        return _report(bare)
    except Exception as error:
        raise BundleError(f"{content.path}: the journal is inconsistent: {error!r}") from error


def _report(content: Found) -> Report:
    head, recording = content.head, recorded(content)
    end = ending(content, recording)
    options = Options(
        name=head.name, carbon=head.carbon, layers=head.layers, project=head.project, replays=head.replays,
        work=dict(head.work),
    )  # fmt: skip
    trace = content.trace or EMPTY_TRACE
    priors = known_of(Known(sensors=head.sensors), options.replays, options.work, trace)
    until_ns = _known_until_ns(content, trace, end.bounds.end_ns) if head.layers else end.bounds.end_ns
    attribution, tail_events = attributed(recording, trace, until_ns, end.bounds, priors)
    outcome = Outcome(
        end.status,
        end.reason,
        dict(content.state.units),
        (*content.state.windows, *open_windows(content, end.bounds)),
        (*end.events, *tail_events),
        priors,
        head.software,
    )
    return report_of(head.run_id, options, end.bounds, recording, trace, outcome, attribution)


def _known_until_ns(content: Found, trace: Trace, end_ns: int) -> int:
    """Return up to when layers are known: the end of the last span, or of the run if the trace was written then."""
    if content.stop is not None and content.trace is not None and content.trace_until_ns >= content.stop.end_ns:
        return end_ns
    return int(trace.end_ns.max()) if len(trace) else 0
