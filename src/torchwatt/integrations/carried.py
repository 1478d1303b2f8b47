"""Totals of the earlier runs of one training, stored in its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Carried:
    """Joules, grams and runs up to a checkpoint; None is unknown."""

    energy_j: float | None = None
    carbon_g: float | None = None
    run_ids: tuple[str, ...] = ()

    def plus(self, energy_j: float | None, carbon_g: float | None, run_id: str) -> Carried:
        """Return the sums with another run added; None if either summand is unknown."""
        if not self.run_ids:
            return Carried(energy_j, carbon_g, (run_id,))
        return Carried(_sum(self.energy_j, energy_j), _sum(self.carbon_g, carbon_g), (*self.run_ids, run_id))

    def to_json(self) -> dict[str, Any]:
        """Return the values to store in a checkpoint."""
        return {**asdict(self), "run_ids": list(self.run_ids)}


def _sum(total: float | None, addition: float | None) -> float | None:
    return None if total is None or addition is None else total + addition


NOTHING = Carried()


def carried_from(stored: Mapping[str, Any] | None) -> Carried:
    """Parse the totals in a checkpoint; missing or invalid values become unknown."""
    if not stored:
        return NOTHING
    ids = stored.get("run_ids")
    numbers = [stored.get(name) for name in ("energy_j", "carbon_g")]
    energy_j, carbon_g = (float(x) if isinstance(x, int | float) and x >= 0 else None for x in numbers)
    return Carried(energy_j, carbon_g, tuple(str(run_id) for run_id in ids) if isinstance(ids, list | tuple) else ())
