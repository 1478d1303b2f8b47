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
    recording: Recording, trace: Trace, until_ns: int, bounds: Bounds, known: Known
) -> tuple[Attribution, tuple[Event, ...]]:
    """Attribute a run whose spans are known up to `until_ns` only.

    Up to then it is attributed as usual; joules after it are booked to `(unattributed)`. Nothing is extrapolated.
    """
    if until_ns >= bounds.end_ns:
        return attribute(recording, trace, bounds.start_ns, bounds.end_ns, known), ()
    whole = attribute(recording, EMPTY_TRACE, bounds.start_ns, bounds.end_ns, known)
    if until_ns <= bounds.start_ns:
        return whole, tuple(_told(whole.ledgers, (), bounds.start_ns, bounds))
    split = attribute(recording, trace, bounds.start_ns, until_ns, known)
    by_domain = {ledger.domain: ledger for ledger in split.ledgers}
    ledgers = tuple(
        with_tail(by_domain[ledger.domain], ledger) if ledger.domain in by_domain else ledger
        for ledger in whole.ledgers
    )
    ledgers = add_bands(ledgers, recording.meters)
    seen = {(event.code, event.subject, event.message) for event in whole.events}
    events = (*whole.events, *(e for e in split.events if (e.code, e.subject, e.message) not in seen))
    return replace(whole, ledgers=ledgers, events=events), tuple(_told(ledgers, split.ledgers, until_ns, bounds))


def with_tail(split: Ledger, whole: Ledger) -> Ledger:
    """Return the ledger of the whole run with the rows of its first part, and the rest unattributed.

    Raises:
        LedgerError: The part has more joules than the whole.
    """
    others = not whole.counted and not whole.part_of  # all of it is one row already
    if others or split.counted != whole.counted:
        return whole
    tail_j = whole.energy_j - split.energy_j
    if tail_j < -1e-9 * whole.energy_j:
        raise LedgerError(f"{whole.domain}: {split.energy_j!r} J before the tail, {whole.energy_j!r} J with it")
    tail_s = max(whole.known_s - split.known_s, 0.0)
    rows = [entry for entry in split.entries if (entry.fqn, entry.phase) != (UNATTRIBUTED, "other")]
    mine = next((entry for entry in split.entries if (entry.fqn, entry.phase) == (UNATTRIBUTED, "other")), None)
    own_j = whole.energy_j - fsum(entry.energy_self_j for entry in rows)
    rows.append(_longer(mine, own_j, tail_s, whole.static_w) if mine is not None else _tail(whole, own_j, tail_s))
    return replace(whole, entries=tuple(rows), sentence=split.sentence)


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


def _tail(whole: Ledger, own_j: float, tail_s: float) -> Entry:
    static_j = None if whole.static_w is None else min(whole.static_w * tail_s, own_j)
    return Entry(
        whole.domain, UNATTRIBUTED, "other", own_j, None, None, static_j,
        None if static_j is None else own_j - static_j, tail_s, 0, whole.method, whole.provenance,
    )  # fmt: skip


def _told(ledgers: Sequence[Ledger], split: Sequence[Ledger], until_ns: int, bounds: Bounds) -> list[Event]:
    known_s, all_s = ((t - bounds.start_ns) / NS_PER_S for t in (until_ns, bounds.end_ns))
    tail_j = fsum(x.energy_j for x in ledgers if x.counted) - fsum(x.energy_j for x in split if x.counted)
    message = (
        f"who ran is known for {max(known_s, 0.0):.3f} of {all_s:.3f} s; the {tail_j:.4g} J after that are booked to "
        f"{UNATTRIBUTED}"
    )
    return [Event(until_ns, "warning", "LAYERS_END", "run", message)] if ledgers else []
