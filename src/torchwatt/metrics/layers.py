"""Joules by layer of the runs that have ended, under a bounded number of names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from torchwatt.core.ledger import Ledger
from torchwatt.core.terms import RESERVED

OTHERS = "(other layers)"


@dataclass(frozen=True, slots=True, order=True)
class LayerKey:
    """The labels of one layer series."""

    run: str
    project: str
    device: str
    layer: str
    phase: str
    provenance: str


class LayerBooks:
    """Sums joules under at most `max_names` layer names and the reserved ones; all others under `OTHERS`."""

    def __init__(self, max_names: int) -> None:
        self._max_names = max_names
        self._names: set[str] = set()
        self._joules: dict[LayerKey, float] = defaultdict(float)

    def add(self, run: str, project: str, ledgers: Iterable[Ledger]) -> None:
        """Add a run's entries; new names are taken in order of decreasing joules."""
        if not self._max_names:
            return
        entries = sorted((e for ledger in ledgers for e in ledger.entries), key=lambda e: -e.energy_self_j)
        for entry in entries:
            if entry.fqn not in RESERVED and len(self._names) < self._max_names:
                self._names.add(entry.fqn)
            name = entry.fqn if entry.fqn in self._names or entry.fqn in RESERVED else OTHERS
            key = LayerKey(run, project, str(entry.domain), name, entry.phase, entry.provenance)
            # An estimate may be slightly negative; a counter must not decrease.
            self._joules[key] += max(entry.energy_self_j, 0.0)

    def known(self) -> dict[LayerKey, float]:
        """Return the sums."""
        return dict(self._joules)
