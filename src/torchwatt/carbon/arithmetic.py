"""Evaluates a formula and propagates the intervals of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import hypot, isfinite

from torchwatt.core.errors import FactorError


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number and its 90 % interval; `lo` and `hi` are None if unstated."""

    value: float
    lo: float | None = None
    hi: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The value of a formula and its 90 % interval.

    `dominant` names the input with the largest effect on the interval, or the inputs that state no interval.
    """

    value: float
    lo: float | None
    hi: float | None
    dominant: str


def combine(compute: Callable[[Mapping[str, float]], float], inputs: Mapping[str, Quantity]) -> Result:
    """Evaluate a formula and propagate the intervals of its inputs.

    Each input is set to the ends of its interval while the others keep their values. The deviations downward and
    upward are added in quadrature, as for independent inputs (JCGM 100:2008, 5.1, with differences instead of
    derivatives). If any input states no interval, the result has none: omitting a term would claim that it is exact.

    Raises:
        FactorError: An input or the result is negative or not finite.
    """
    at = {name: quantity.value for name, quantity in inputs.items()}
    if bad := [f"{name}={value!r}" for name, value in at.items() if not isfinite(value) or value < 0]:
        raise FactorError(f"cannot compute with {', '.join(bad)}")
    value = compute(at)
    unstated = [name for name, quantity in inputs.items() if quantity.lo is None or quantity.hi is None]
    if unstated:
        return Result(value, None, None, f"not stated for {', '.join(unstated)}")
    moved = {
        name: (compute(at | {name: quantity.lo or 0.0}) - value, compute(at | {name: quantity.hi or 0.0}) - value)
        for name, quantity in inputs.items()
    }
    low = hypot(*(min(down, up, 0.0) for down, up in moved.values()))
    high = hypot(*(max(down, up, 0.0) for down, up in moved.values()))
    dominant = max(moved, key=lambda name: max(map(abs, moved[name])))
    return Result(value, max(value - low, 0.0), value + high, dominant)
