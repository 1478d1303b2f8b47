"""The 90 % interval of a group of entries, from the intervals of the entries and of their domains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import fsum

from torchwatt.core.ledger import Entry, Ledger, sum_if_known
from torchwatt.core.terms import Domain

Interval = tuple[float, float]


class GroupIntervals:
    """Bounds the joules of groups of the entries of some ledgers, in repeats of the run.

    A report has no covariances, and none can be assumed: drift of the machine is common to all rows, the choice of
    traced steps moves some up and others down, and alike modules share one error. Two laws need none. Half widths of a
    group add up to at most their sum. And a group is its domain without the other rows, so its half width is at most
    the domain's own plus the sum of theirs. The narrower of the two is taken; a group of all rows has the domain's own
    interval, one row its own. Half widths of domains are added, as in the total.
    """

    def __init__(self, ledgers: Iterable[Ledger]) -> None:
        self._ledgers = {ledger.domain: ledger for ledger in ledgers}
        self._halves_j = {
            domain: sum_if_known(_half_j(entry) for entry in ledger.entries) for domain, ledger in self._ledgers.items()
        }

    def bound(self, entries: Iterable[Entry]) -> Interval | None:
        """Return the interval of a group of entries in J; None if one of them has none, or without entries."""
        by_domain: dict[Domain, list[Entry]] = defaultdict(list)
        for entry in entries:
            by_domain[entry.domain].append(entry)
        bounds = [self._bound_domain(self._ledgers[domain], members) for domain, members in by_domain.items()]
        known = [interval for interval in bounds if interval is not None]
        if not bounds or len(known) < len(bounds):
            return None
        return fsum(lo for lo, _ in known), fsum(hi for _, hi in known)

    def _bound_domain(self, ledger: Ledger, members: Sequence[Entry]) -> Interval | None:
        lows, highs = ([getattr(entry, f"energy_self_{end}_j") for entry in members] for end in ("lo", "hi"))
        lo_j, hi_j = sum_if_known(lows), sum_if_known(highs)
        if lo_j is None or hi_j is None:
            return None
        all_j = self._halves_j[ledger.domain]
        if ledger.energy_lo_j is None or ledger.energy_hi_j is None or all_j is None:
            return lo_j, hi_j
        if len(members) == len(ledger.entries):
            return ledger.energy_lo_j, ledger.energy_hi_j
        if len(members) == 1:
            return lo_j, hi_j
        energy_j = fsum(entry.energy_self_j for entry in members)
        others_j = all_j - (hi_j - energy_j)
        by_others_j = ledger.energy_hi_j - ledger.energy_j + others_j
        return max(lo_j, energy_j - by_others_j), min(hi_j, energy_j + by_others_j)


def _half_j(entry: Entry) -> float | None:
    return None if entry.energy_self_hi_j is None else entry.energy_self_hi_j - entry.energy_self_j
