"""Systematic bands of entries: the accuracy of the meter, and the uncertainty of the split between rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import hypot

from torchwatt.core.ledger import Entry, Ledger
from torchwatt.core.meter import Meter

Band = tuple[float, float]  # lower and upper deviation of another meter, as parts of the joules


def add_band(entry: Entry, band: Band | None, unknown_j: float = 0.0) -> Entry:
    """Return an entry with its systematic band; for a meter without stated accuracy, only that of the split.

    Args:
        entry: Any.
        band: Of its meter.
        unknown_j: Half width of the uncertainty of its share that is the same in every repeat: that of a fit, or the
            spread of powers that time share assumes to be equal.
    """
    if band is None and unknown_j == 0:
        return replace(entry, energy_systematic_lo_j=None, energy_systematic_hi_j=None)
    below_j, above_j = (hypot(entry.energy_self_j * end, unknown_j) for end in band or (0.0, 0.0))
    own_j = entry.energy_self_j
    return replace(entry, energy_systematic_lo_j=own_j - below_j, energy_systematic_hi_j=own_j + above_j)


def add_bands(ledgers: Iterable[Ledger], meters: Iterable[Meter]) -> tuple[Ledger, ...]:
    """Widen every entry's band to at least that of its meter: another rank may have less information on a meter."""
    bands = {meter.domain: meter.accuracy_rel for meter in meters}
    return tuple(
        replace(ledger, entries=tuple(_at_least(entry, bands.get(ledger.domain)) for entry in ledger.entries))
        for ledger in ledgers
    )


def _at_least(entry: Entry, band: Band | None) -> Entry:
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
