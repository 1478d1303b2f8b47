"""Estimate the cost of tracing from traced and untraced durations of the same work. Pure."""

from __future__ import annotations

from collections import deque
from math import hypot
from statistics import median

KEPT = 32
ENOUGH = 6  # durations of each kind needed for a comparison
MAD_TO_SD = 1.4826  # of a normal distribution
MEDIAN_TO_MEAN = 1.2533  # the standard error of a median over that of a mean: sqrt(pi / 2)
Z95 = 1.645  # one-sided


class Observed:
    """Recent durations with and without tracing, and estimates of the cost of tracing."""

    def __init__(self) -> None:
        self._plain: deque[int] = deque(maxlen=KEPT)
        self._traced: deque[int] = deque(maxlen=KEPT)

    def add(self, duration_ns: int, *, traced: bool) -> None:
        """Record the duration of one piece of work."""
        (self._traced if traced else self._plain).append(duration_ns)

    def excess_ns(self) -> float:
        """Return the lower 95 % bound of traced minus plain, of medians, in ns; 0 with too few durations."""
        if min(len(self._plain), len(self._traced)) < ENOUGH:
            return 0.0
        plain, plain_se = _median(self._plain)
        traced, traced_se = _median(self._traced)
        return max(traced - plain - Z95 * hypot(plain_se, traced_se), 0.0)

    def likely_ns(self, expected_ns: float, sd_ns: float) -> float:
        """Return the posterior mean of the cost of tracing: a normal prior, updated with traced minus plain.

        Two normal distributions weighted by their precision (Gelman et al., Bayesian Data Analysis, 3rd ed., 2.5).
        """
        if min(len(self._plain), len(self._traced)) < ENOUGH:
            return expected_ns
        plain, plain_se = _median(self._plain)
        traced, traced_se = _median(self._traced)
        prior, likelihood = sd_ns**-2, max(plain_se**2 + traced_se**2, 1.0) ** -1
        return (prior * expected_ns + likelihood * (traced - plain)) / (prior + likelihood)

    def plain_ns(self) -> float:
        """Return the median untraced duration in ns, else the traced one, else 0."""
        return float(median(self._plain or self._traced or (0,)))


def _median(values: deque[int]) -> tuple[float, float]:
    middle = median(values)
    spread = MAD_TO_SD * median(abs(value - middle) for value in values)
    return float(middle), float(MEDIAN_TO_MEAN * spread / len(values) ** 0.5)
