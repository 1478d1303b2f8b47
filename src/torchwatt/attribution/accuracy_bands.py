"""Systematic bands of entries: the accuracy of the meter, and the uncertainty of the split between rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import hypot

from torchwatt.core.ledger import Entry, Ledger
from torchwatt.core.meter import Meter
from torchwatt.core.units import Z90

AccuracyBand = tuple[float, float]  # lower and upper deviation of another meter, as parts of the joules


def add_band(entry: Entry, band: AccuracyBand | None, unknown_j: float = 0.0) -> Entry:
    """Return an entry with its systematic band; for a meter without stated accuracy, only that of the split.

    A fitted row always has one: a fit tells how far off its split may be, also where that is not at all.

    Args:
        entry: Any.
        band: Of its meter.
        unknown_j: Half width of the uncertainty of its share that is the same in every repeat: that of a fit, or the
            spread of powers that time share assumes to be equal.
    """
    if band is None and unknown_j == 0 and entry.method != "fit":
        return replace(entry, energy_systematic_lo_j=None, energy_systematic_hi_j=None)
    below_j, above_j = (hypot(entry.energy_self_j * end, unknown_j) for end in band or (0.0, 0.0))
    own_j = entry.energy_self_j
    lo_j = max(own_j - below_j, min(own_j, 0.0))  # energy is not negative
    return replace(entry, energy_systematic_lo_j=lo_j, energy_systematic_hi_j=own_j + above_j)


def add_bands(ledgers: Iterable[Ledger], meters: Iterable[Meter]) -> tuple[Ledger, ...]:
    """Complete the intervals of all entries, once their ledgers are.

    The band of an entry is at least that of its meter, since ranks may state different accuracies for one meter. The
    upper bounds of a row are capped at those of the total.
    """
    bands = {meter.domain: meter.accuracy_rel for meter in meters}
    return tuple(_complete_ledger(ledger, bands.get(ledger.domain)) for ledger in ledgers)


def _complete_ledger(ledger: Ledger, band: AccuracyBand | None) -> Ledger:
    most_j = ledger.energy_hi_j
    reading_j = Z90 * (ledger.energy_u_j or 0.0)
    systematic_j = None if band is None else ledger.energy_j * (1.0 + band[1]) + reading_j
    entries = (_widen_to_band(entry, band) for entry in ledger.entries)
    return replace(
        ledger,
        entries=tuple(
            replace(
                entry,
                energy_self_hi_j=_cap_bound(entry.energy_self_hi_j, most_j, entry.energy_self_j),
                energy_systematic_hi_j=_cap_bound(entry.energy_systematic_hi_j, systematic_j, entry.energy_self_j),
            )
            for entry in entries
        ),
    )


def _cap_bound(hi_j: float | None, most_j: float | None, own_j: float) -> float | None:
    return hi_j if hi_j is None or most_j is None else max(min(hi_j, most_j), own_j)


def _widen_to_band(entry: Entry, band: AccuracyBand | None) -> Entry:
    lo_j, hi_j = entry.energy_systematic_lo_j, entry.energy_systematic_hi_j
    if lo_j is None or hi_j is None:
        return add_band(entry, band)
    if band is None:
        return entry
    below_j, above_j = (abs(entry.energy_self_j * end) for end in band)
    return replace(
        entry,
        energy_systematic_lo_j=min(lo_j, entry.energy_self_j - below_j),
        energy_systematic_hi_j=max(hi_j, entry.energy_self_j + above_j),
    )
