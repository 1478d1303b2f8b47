"""Attributes a run whose spans end before its readings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import fsum

from torchwatt.attribution.attribute import Attribution, attribute
from torchwatt.attribution.bands import add_bands
from torchwatt.attribution.known import Known
from torchwatt.core.errors import LedgerError
from torchwatt.core.ledger import Entry, Ledger
from torchwatt.core.meter import Event, Recording
from torchwatt.core.terms import UNATTRIBUTED
from torchwatt.core.trace import EMPTY_TRACE, Trace
from torchwatt.core.units import NS_PER_S
from torchwatt.session.settle import Bounds


def attributed(
    recording: Recording, trace: Trace, until_ns: int, bounds: Bounds, priors: Known
) -> tuple[Attribution, tuple[Event, ...]]:
    """Attribute a run whose spans are known up to `until_ns` only.

    Up to then it is attributed as usual; joules after it are booked to `(unattributed)`. Nothing is extrapolated.
    """
    if until_ns >= bounds.end_ns:
        return attribute(recording, trace, bounds.start_ns, bounds.end_ns, priors), ()
    run_attribution = attribute(recording, EMPTY_TRACE, bounds.start_ns, bounds.end_ns, priors)
    if until_ns <= bounds.start_ns:
        return run_attribution, tuple(_told(run_attribution.ledgers, (), bounds.start_ns, bounds))
    split = attribute(recording, trace, bounds.start_ns, until_ns, priors)
    by_domain = {ledger.domain: ledger for ledger in split.ledgers}
    ledgers = tuple(
        with_tail(by_domain[ledger.domain], ledger) if ledger.domain in by_domain else ledger
        for ledger in run_attribution.ledgers
    )
    ledgers = add_bands(ledgers, recording.meters)
    run_events = {(event.code, event.subject, event.message) for event in run_attribution.events}
    events = (*run_attribution.events, *(e for e in split.events if (e.code, e.subject, e.message) not in run_events))
    return replace(run_attribution, ledgers=ledgers, events=events), tuple(
        _told(ledgers, split.ledgers, until_ns, bounds)
    )


def with_tail(split: Ledger, run_ledger: Ledger) -> Ledger:
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
    rows = [entry for entry in split.entries if (entry.fqn, entry.phase) != (UNATTRIBUTED, "other")]
    mine = next((entry for entry in split.entries if (entry.fqn, entry.phase) == (UNATTRIBUTED, "other")), None)
    own_j = run_ledger.energy_j - fsum(entry.energy_self_j for entry in rows)
    rows.append(
        _longer(mine, own_j, tail_s, run_ledger.static_w) if mine is not None else _tail(run_ledger, own_j, tail_s)
    )
    return replace(run_ledger, entries=tuple(rows), sentence=split.sentence)


def _longer(entry: Entry, own_j: float, tail_s: float, static_w: float | None) -> Entry:
    """Add the tail to the existing row; its interval shifts by the same amount, because the tail is metered."""
    more_j = own_j - entry.energy_self_j
    lo_j, hi_j = (
        None if end is None else max(end + more_j, 0.0) for end in (entry.energy_self_lo_j, entry.energy_self_hi_j)
    )
    time_s = entry.time_self_s + tail_s
    static_j = None if static_w is None or entry.energy_static_j is None else min(static_w * time_s, own_j)
    return replace(
        entry,
        energy_self_j=own_j,
        energy_self_lo_j=None if lo_j is None else min(lo_j, own_j),
        energy_self_hi_j=None if hi_j is None else max(hi_j, own_j),
        energy_systematic_lo_j=None,
        energy_systematic_hi_j=None,
        energy_static_j=static_j,
        energy_dynamic_j=None if static_j is None else own_j - static_j,
        time_self_s=time_s,
        carried_share=entry.carried_share * entry.time_self_s / time_s if time_s > 0 else 0.0,
        time_share_j=None,
    )


def _tail(run_ledger: Ledger, own_j: float, tail_s: float) -> Entry:
    static_j = None if run_ledger.static_w is None else min(run_ledger.static_w * tail_s, own_j)
    return Entry(
        run_ledger.domain, UNATTRIBUTED, "other", own_j, None, None, static_j,
        None if static_j is None else own_j - static_j, tail_s, 0, run_ledger.method, run_ledger.provenance,
    )  # fmt: skip


def _told(ledgers: Sequence[Ledger], split: Sequence[Ledger], until_ns: int, bounds: Bounds) -> list[Event]:
    known_s, all_s = ((t - bounds.start_ns) / NS_PER_S for t in (until_ns, bounds.end_ns))
    tail_j = fsum(x.energy_j for x in ledgers if x.counted) - fsum(x.energy_j for x in split if x.counted)
    message = (
        f"the trace covers {max(known_s, 0.0):.3f} of {all_s:.3f} s; the {tail_j:.4g} J after it are booked to "
        f"{UNATTRIBUTED}"
    )
    return [Event(until_ns, "warning", "LAYERS_END", "run", message)] if ledgers else []
