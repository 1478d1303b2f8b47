"""Cumulative energy of one domain over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.errors import SensorError
from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.core.terms import Domain, Method, Provenance
from torchwatt.core.units import NS_PER_S


def interpolate(at_ns: IntArray | Sequence[int] | int, t_ns: IntArray, values: FloatArray | IntArray) -> FloatArray:
    """Return values at instants, linear between neighbours and constant beyond the ends.

    Times are taken relative to `t_ns[0]` as integers before conversion to float, so that no precision is lost.

    Args:
        at_ns: Instants, of any shape.
        t_ns: Increasing instants of the values, at least one.
        values: One for each of `t_ns`.
    """
    t_ns = np.asarray(t_ns, dtype=np.int64)
    since_ns = np.asarray(at_ns, dtype=np.int64) - t_ns[0]
    return np.asarray(np.interp(since_ns, t_ns - t_ns[0], values), dtype=np.float64)


def spaced_instants(start_ns: int, end_ns: int, count: int) -> IntArray:
    """Return `count` instants from the start to the end, both included."""
    return np.linspace(0, end_ns - start_ns, count).astype(np.int64) + start_ns


@dataclass(frozen=True, slots=True, eq=False)
class EnergyCurve:
    """Joules since the first point, linear between points, never decreasing.

    `t_ns` is strictly increasing and has at least two points. `u_j` is the standard uncertainty of the difference
    between any two points due to reading the meter (resolution and timing); the meter's gain is not part of it.
    """

    domain: Domain
    t_ns: IntArray
    energy_j: FloatArray
    method: Method
    provenance: Provenance
    u_j: float = 0.0
    cross_check_j: float | None = None  # the energy by the second method, such as integrated power beside a counter
    silent: tuple[tuple[int, int], ...] = ()  # (start_ns, end_ns) without readings: flat, energy unknown

    def __post_init__(self) -> None:
        if len(self.t_ns) < 2 or len(self.t_ns) != len(self.energy_j):
            raise SensorError(f"{self.domain}: a curve needs two points, got {len(self.t_ns)}")
        if np.any(np.diff(self.t_ns) <= 0) or np.any(np.diff(self.energy_j) < 0):
            raise SensorError(f"{self.domain}: a curve must go forward in time and never lose energy")

    @property
    def start_ns(self) -> int:
        """Return the instant of the first point."""
        return int(self.t_ns[0])

    @property
    def end_ns(self) -> int:
        """Return the instant of the last point."""
        return int(self.t_ns[-1])

    @property
    def total_j(self) -> float:
        """Return the energy from the first to the last point."""
        return float(self.energy_j[-1] - self.energy_j[0])

    def at(self, t_ns: IntArray | int) -> FloatArray:
        """Return cumulative joules at instants; constant before the first and after the last point."""
        return interpolate(t_ns, self.t_ns, self.energy_j)

    def between(self, start_ns: int, end_ns: int) -> float:
        """Return the joules between two instants; intervals without readings count 0 J."""
        lo, hi = self.at(np.array([start_ns, end_ns]))
        return float(hi - lo)

    def mean_w(self, start_ns: int, end_ns: int) -> float | None:
        """Return the mean power over the metered part of a window: its joules by its time with readings.

        None where no part of the window was metered.
        """
        lo, hi = max(start_ns, self.start_ns), min(end_ns, self.end_ns)
        known_ns = hi - lo - sum(max(min(b, hi) - max(a, lo), 0) for a, b in self.unheard_ns())
        return self.between(lo, hi) / (known_ns / NS_PER_S) if hi > lo and known_ns > 0 else None

    def is_metered(self, start_ns: int, end_ns: int) -> bool:
        """Return whether a window was metered throughout; one median interval is tolerated at each end of the curve."""
        return not np.isnan(self.parts_j(np.array([start_ns]), np.array([end_ns]))[0])

    def parts_j(self, start_ns: IntArray, end_ns: IntArray) -> FloatArray:
        """Return the joules of each window, as `between` does; NaN for a window that was not metered throughout."""
        edge_ns = 0 if len(self.t_ns) < 3 else int(np.median(np.diff(self.t_ns)))
        metered = (self.start_ns <= start_ns + edge_ns) & (end_ns - edge_ns <= self.end_ns)
        metered &= (start_ns < self.end_ns) & (end_ns > self.start_ns)  # the others have no reading at all
        for lo, hi in self.silent:
            metered &= ~((lo < end_ns) & (hi > start_ns))
        return np.where(metered, self.at(end_ns) - self.at(start_ns), np.nan)

    def clip(self, start_ns: int, end_ns: int) -> EnergyCurve | None:
        """Return the part inside a window, cut exactly at its ends; None if they do not overlap."""
        lo, hi = max(start_ns, self.start_ns), min(end_ns, self.end_ns)
        if hi <= lo:
            return None
        inner = (self.t_ns > lo) & (self.t_ns < hi)
        t_ns = np.concatenate(([lo], self.t_ns[inner], [hi]))
        energy_j = self.at(t_ns)
        return EnergyCurve(
            self.domain,
            t_ns,
            energy_j - energy_j[0],
            self.method,
            self.provenance,
            self.u_j,
            self.cross_check_j,
            tuple((max(a, lo), min(b, hi)) for a, b in self.silent if a < hi and b > lo),
        )

    def unheard(self) -> NDArray[np.bool_]:
        """Return a mask of the intervals between points that have no readings and 0 J: their energy is unknown."""
        silent = np.zeros(len(self.t_ns) - 1, dtype=np.bool_)
        for lo, hi in self.silent:
            silent |= (self.t_ns[:-1] < hi) & (self.t_ns[1:] > lo)
        return np.asarray(silent & (np.diff(self.energy_j) == 0), dtype=np.bool_)

    def unheard_ns(self) -> tuple[tuple[int, int], ...]:
        """Return the intervals of `unheard`, merged, disjoint and in order."""
        edge = np.flatnonzero(np.diff(np.concatenate(([False], self.unheard(), [False])).astype(np.int8)))
        return tuple((int(self.t_ns[a]), int(self.t_ns[b])) for a, b in edge.reshape(-1, 2))

    def power_w(self) -> FloatArray:
        """Return the mean power between neighbouring points in W; NaN in intervals without readings."""
        power_w = np.diff(self.energy_j) / (np.diff(self.t_ns) / NS_PER_S)
        for lo, hi in self.silent:
            power_w[(self.t_ns[:-1] < hi) & (self.t_ns[1:] > lo)] = np.nan
        return np.asarray(power_w, dtype=np.float64)
