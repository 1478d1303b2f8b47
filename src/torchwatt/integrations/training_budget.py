"""Energy and carbon budget of a training, and the schedule of its checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from torchwatt.core.errors import ConfigError
from torchwatt.core.ledger import sum_if_known

MAX_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class TrainingBudget:
    """Limits of a training's joules and grams of CO2e; None is no limit.

    Raises:
        ConfigError: A limit is not a positive finite number.
    """

    energy_j: float | None = None
    carbon_g: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("energy_budget_j", self.energy_j), ("carbon_budget_g", self.carbon_g)):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value <= 0:
                raise ConfigError(f"{name}={value!r}: give a positive number, or None for no budget")

    def __bool__(self) -> bool:
        return self.energy_j is not None or self.carbon_g is not None

    def used_part(self, energy_j: float | None, carbon_g: float | None) -> float:
        """Return the used part of the budget that is closer to its limit (1: used up); unknown amounts count as 0."""
        pairs = ((energy_j, self.energy_j), (carbon_g, self.carbon_g))
        return max((value / limit for value, limit in pairs if value is not None and limit is not None), default=0.0)

    def describe_excess(self, energy_j: float | None, carbon_g: float | None) -> str:
        """Return the message that names the budget that is used up."""
        if self.energy_j is not None and energy_j is not None and energy_j >= self.energy_j:
            return f"energy budget of {self.energy_j:.6g} J used up: {energy_j:.6g} J"
        return f"carbon budget of {self.carbon_g:.6g} gCO2e used up: {carbon_g:.6g} g"


class BudgetSchedule:
    """Schedules budget checks: every 0.5 s or more often, close to the limit.

    The wait is half of the time in which the remaining budget would be used at the current rate, so a step that exceeds
    the limit is detected at its end, unless power more than doubles between two checks. Until a rate is known, the wait
    is a tenth of the time since the first check.
    """

    def __init__(self) -> None:
        self._first_s: float | None = None
        self._at_s = self._next_s = self._used = 0.0

    @property
    def near(self) -> bool:
        """Return whether the next check is less than 0.5 s after the last one, so that it needs fresh readings."""
        return self._next_s - self._at_s < MAX_WAIT_S

    def is_due(self, now_s: float) -> bool:
        """Return whether a check is due."""
        return now_s >= self._next_s

    def record_check(self, now_s: float, used: float) -> None:
        """Record a check with the used part of the budget, and schedule the next one."""
        if self._first_s is None:
            self._first_s, wait_s = now_s, 0.0
        else:
            rate = (used - self._used) / max(now_s - self._at_s, 1e-9)
            wait_s = max(1 - used, 0.0) / rate / 2 if rate > 0 else (now_s - self._first_s) / 10
        self._at_s, self._used, self._next_s = now_s, used, now_s + min(wait_s, MAX_WAIT_S)


@dataclass(frozen=True, slots=True)
class CheckpointTotals:
    """Joules, grams and runs up to a checkpoint; None is unknown."""

    energy_j: float | None = None
    carbon_g: float | None = None
    run_ids: tuple[str, ...] = ()

    def plus(self, energy_j: float | None, carbon_g: float | None, run_id: str) -> CheckpointTotals:
        """Return the sums with another run added; None if either summand is unknown."""
        if not self.run_ids:
            return CheckpointTotals(energy_j, carbon_g, (run_id,))
        return CheckpointTotals(
            sum_if_known((self.energy_j, energy_j)), sum_if_known((self.carbon_g, carbon_g)), (*self.run_ids, run_id)
        )

    def to_json(self) -> dict[str, Any]:
        """Return the values to store in a checkpoint."""
        return {**asdict(self), "run_ids": list(self.run_ids)}


NO_TOTALS = CheckpointTotals()


def parse_totals(stored: Mapping[str, Any] | None) -> CheckpointTotals:
    """Parse the totals in a checkpoint; missing or invalid values become unknown."""
    if not stored:
        return NO_TOTALS
    ids = stored.get("run_ids")
    numbers = [stored.get(name) for name in ("energy_j", "carbon_g")]
    energy_j, carbon_g = (float(x) if isinstance(x, int | float) and x >= 0 else None for x in numbers)
    return CheckpointTotals(
        energy_j, carbon_g, tuple(str(run_id) for run_id in ids) if isinstance(ids, list | tuple) else ()
    )
