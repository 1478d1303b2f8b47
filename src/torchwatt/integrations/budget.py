"""How much a training may use, and when to look whether it has."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from torchwatt.core.errors import ConfigError

LONGEST_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Budget:
    """Joules and grams of CO2e that a training may use; None is no limit.

    Raises:
        ConfigError: A limit is no positive number.
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

    def used(self, energy_j: float | None, carbon_g: float | None) -> float:
        """Return the part of the scarcer budget that is used: 1 is all of it. What is unknown does not count."""
        pairs = ((energy_j, self.energy_j), (carbon_g, self.carbon_g))
        return max((value / most for value, most in pairs if value is not None and most is not None), default=0.0)

    def told(self, energy_j: float | None, carbon_g: float | None) -> str:
        """Say which budget is used up."""
        if self.energy_j is not None and energy_j is not None and energy_j >= self.energy_j:
            return f"energy budget of {self.energy_j:.6g} J used up: {energy_j:.6g} J"
        return f"carbon budget of {self.carbon_g:.6g} gCO2e used up: {carbon_g:.6g} g"


class Pace:
    """When to look at the meters: twice a second, and ever more often as the end of a budget comes near.

    The wait is half of the time that the rest would last at the rate of late: a step that crosses the budget is
    found when it ends, unless power rises more than twofold between two looks. Until there is a rate, waits grow.
    """

    def __init__(self) -> None:
        self._first_s: float | None = None
        self._at_s = self._next_s = self._used = 0.0

    @property
    def near(self) -> bool:
        """Return whether the rest is small: only a fresh reading will do."""
        return self._next_s - self._at_s < LONGEST_WAIT_S

    def is_due(self, now_s: float) -> bool:
        """Return whether it is time for a look."""
        return now_s >= self._next_s

    def looked(self, now_s: float, used: float) -> None:
        """Note a look and decide on the next one."""
        if self._first_s is None:
            self._first_s, wait_s = now_s, 0.0
        else:
            rate = (used - self._used) / max(now_s - self._at_s, 1e-9)
            wait_s = max(1 - used, 0.0) / rate / 2 if rate > 0 else (now_s - self._first_s) / 10
        self._at_s, self._used, self._next_s = now_s, used, now_s + min(wait_s, LONGEST_WAIT_S)
