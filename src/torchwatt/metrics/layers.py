"""Joules by layer, of the runs that have ended; the number of names is bounded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from torchwatt.core.ledger import Ledger
from torchwatt.core.terms import RESERVED

OTHERS = "(other layers)"


@dataclass(frozen=True, slots=True, order=True)
class LayerKey:
    """One series of layers."""

    run: str
    project: str
    device: str
    layer: str
    phase: str
    provenance: str


class LayerBooks:
    """Adds up layers under at most `most` names and the reserved ones; the others are one, so that sums come out."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._names: set[str] = set()
        self._joules: dict[LayerKey, float] = defaultdict(float)

    def add(self, run: str, project: str, ledgers: Iterable[Ledger]) -> None:
        """Add a run; the first names to come are the ones with the most joules."""
        if not self._most:
            return
        entries = sorted((e for ledger in ledgers for e in ledger.entries), key=lambda e: -e.energy_self_j)
        for entry in entries:
            if entry.fqn not in RESERVED and len(self._names) < self._most:
                self._names.add(entry.fqn)
            name = entry.fqn if entry.fqn in self._names or entry.fqn in RESERVED else OTHERS
            key = LayerKey(run, project, str(entry.domain), name, entry.phase, entry.provenance)
            # An estimate may be a little below 0; a counter may not go back.
            self._joules[key] += max(entry.energy_self_j, 0.0)

    def known(self) -> dict[LayerKey, float]:
        """Return the sums."""
        return dict(self._joules)
