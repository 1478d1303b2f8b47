"""Date the publications of a polled power sensor: a periodic grid locked to the polls in which its value changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchwatt.attribution.power_integral import drop_unusable, find_increasing
from torchwatt.core.meter import FloatArray, IntArray, Series
from torchwatt.core.units import NS_PER_S

# A changed value was published between the previous poll and this one; with fewer changes no grid is fitted.
MIN_CHANGES = 12
# A grid consistent with this share of the brackets, within TOLERANCE_S, is the sensor's clock.
MIN_CONSISTENT_SHARE = 0.9
GRID_TOLERANCE_S = 3e-4
STAMP_SD_S = 1e-3  # of timestamps that a driver wrote with its own samples


@dataclass(frozen=True, slots=True, eq=False)
class SensorUpdates:
    """Readings as the sensor published them, in seconds since `origin_ns`.

    `locked`: one period explains the polls; else a reading is dated midway between two polls. `stamped`: dated by the
    driver.
    """

    origin_ns: int
    at_s: FloatArray
    power_w: FloatArray
    period_s: float
    locked: bool
    timing_sd_s: float
    stamped: bool = False

    def __len__(self) -> int:
        return len(self.at_s)

    def at_ns(self) -> IntArray:
        """Return the instants on the session's clock."""
        return np.asarray(np.round(self.at_s * NS_PER_S), dtype=np.int64) + self.origin_ns


@dataclass(frozen=True, slots=True, eq=False)
class _UpdateBrackets:
    """Each change was published in (before_s, seen_s]."""

    before_s: FloatArray
    seen_s: FloatArray

    @property
    def middle_s(self) -> FloatArray:
        return (self.before_s + self.seen_s) / 2

    @property
    def half_s(self) -> FloatArray:
        return (self.seen_s - self.before_s) / 2


def find_sensor_updates(power: Series) -> SensorUpdates | None:
    """Return the publications behind polls; None with too few changes of the value.

    Args:
        power: Polls in time order, repeated values included; or a driver's own samples.
    """
    if len(power) < 2:
        return None
    t_s = (power.t_ns - power.t_ns[0]) / NS_PER_S
    power_w = power.raw * power.channel.scale
    changed = np.flatnonzero(np.diff(power_w) != 0) + 1
    if len(changed) < MIN_CHANGES:
        return None
    if power.channel.stamped:
        return _driver_updates(int(power.t_ns[0]), t_s, power_w)
    brackets = _UpdateBrackets(t_s[changed - 1], t_s[changed] + _resolution_s(power.t_ns))
    origin_ns = int(power.t_ns[0])
    grid = fit_update_grid(brackets)
    if grid is not None:
        return _read_grid_updates(origin_ns, t_s, power_w, *grid)
    period_s = float(np.median(np.diff(brackets.middle_s)))
    sd_s = float(np.sqrt(np.mean(brackets.half_s**2) / 3))
    return SensorUpdates(
        origin_ns,
        brackets.middle_s,
        np.asarray(power_w[changed], dtype=np.float64),
        period_s,
        locked=False,
        timing_sd_s=sd_s,
    )


def _driver_updates(origin_ns: int, t_s: FloatArray, power_w: FloatArray) -> SensorUpdates:
    """Return the driver's own samples unchanged, repeated values too; they may deviate by 10 ms from a grid."""
    period_s = float(np.median(np.diff(t_s)))
    return SensorUpdates(origin_ns, t_s, power_w, period_s, locked=True, timing_sd_s=STAMP_SD_S, stamped=True)


def _resolution_s(t_ns: IntArray) -> float:
    """Return the resolution of the polls' timestamps in s: a file in milliseconds truncates them."""
    fits = [unit for unit in (1_000_000, 100_000, 10_000, 1_000) if not np.any((t_ns - t_ns[0]) % unit)]
    return fits[0] / NS_PER_S if fits else 0.0


def fit_update_grid(brackets: _UpdateBrackets) -> tuple[float, float, float] | None:
    """Fit instants a + k T that are consistent with the brackets.

    The fit grows from the first changes to all of them, so that k is always unambiguous: with n changes fitted, the
    period is known to about bracket / n.

    Returns:
        a, T and the standard deviation of the instants around the grid, in seconds; None where no grid fits.
    """
    distances_s = np.diff(brackets.middle_s)
    # Some publications repeat the value before: distances near the smallest are one period.
    single = distances_s < 1.5 * np.quantile(distances_s, 0.1)
    period_s = float(np.median(distances_s[single]))
    if period_s <= 2 * float(np.median(brackets.half_s)):
        return None  # a change at nearly every poll: the sensor is faster than the polls
    count = len(brackets.middle_s)
    used = MIN_CHANGES
    start_s, period_s = _initial_grid(_UpdateBrackets(brackets.before_s[:used], brackets.seen_s[:used]), period_s)
    while True:
        part = _UpdateBrackets(brackets.before_s[:used], brackets.seen_s[:used])
        start_s, period_s = _refine_grid(part, start_s, period_s)
        if used == count:
            break
        used = min(2 * used, count)
    k = np.round((brackets.middle_s - start_s) / period_s)
    miss = _bracket_error_s(brackets, start_s + k * period_s)
    admitted = float((np.abs(miss) <= GRID_TOLERANCE_S).mean())
    if admitted < MIN_CONSISTENT_SHARE:
        return None
    return start_s, period_s, float(np.clip(np.sqrt(np.mean(miss**2)), 1e-5, GRID_TOLERANCE_S))


def _initial_grid(brackets: _UpdateBrackets, about_s: float) -> tuple[float, float]:
    """Return the line most consistent with the first brackets, among periods within 15 % of the distance of changes."""
    lines: list[tuple[float, float, float]] = []
    for period_s in about_s * np.linspace(0.85, 1.15, 241):
        k = np.round((brackets.middle_s - brackets.middle_s[0]) / period_s)
        late, early = brackets.seen_s - k * period_s, brackets.before_s - k * period_s
        start_s = float(late.min() + early.max()) / 2  # middle of the starts that fit all brackets, or nearest to it
        lines.append((float((_bracket_error_s(brackets, start_s + k * period_s) ** 2).sum()), start_s, float(period_s)))
    least = min(lines)[0]
    admitted = [(start_s, period_s) for miss, start_s, period_s in lines if miss <= least + 1e-12]
    return admitted[len(admitted) // 2]


def _bracket_error_s(brackets: _UpdateBrackets, at_s: FloatArray) -> FloatArray:
    """Return how far instants lie outside their brackets (0 inside), in s."""
    late = np.maximum(at_s - brackets.seen_s, 0.0)
    early = np.maximum(brackets.before_s - at_s, 0.0)
    return np.asarray(late - early, dtype=np.float64)


def _refine_grid(brackets: _UpdateBrackets, start_s: float, period_s: float, rounds: int = 30) -> tuple[float, float]:
    """Refine a and T: first a line through the middles, then the posterior mean of `_average_grids`."""
    for _ in range(rounds):
        k = np.round((brackets.middle_s - start_s) / period_s)
        off = brackets.middle_s - (start_s + k * period_s)
        # A change with a wide bracket (its value repeated, the poller slept) has little weight.
        weight = 1.0 / np.maximum(brackets.half_s, 1e-5) ** 2
        step = _fit_line(k, off, weight)
        start_s, period_s = start_s + step[0], period_s + step[1]
        if abs(step[1]) < 1e-12:
            break
    return _average_grids(brackets, start_s, period_s)


def _average_grids(brackets: _UpdateBrackets, start_s: float, period_s: float) -> tuple[float, float]:
    """Return the mean of the lines consistent with the brackets, weighted by likelihood.

    The likelihood is flat inside the brackets, so a few hundred lines around the least-squares one, each scored by its
    squared misses, give the posterior mean.
    """
    k = np.round((brackets.middle_s - start_s) / period_s)
    mid, span = float((k.max() + k.min()) / 2), max(float(k.max() - k.min()), 1.0)
    at_mid, slope = start_s + mid * period_s, period_s
    reach_a = reach_b = float(np.median(brackets.half_s)) / 2
    for _ in range(6):
        da, db = (part.ravel() for part in np.meshgrid(np.linspace(-1, 1, 17), np.linspace(-1, 1, 17)))
        lines = (at_mid + da * reach_a)[:, None] + (slope + 2 * db * reach_b / span)[:, None] * (k - mid)[None, :]
        badness = np.minimum((_bracket_error_s(brackets, lines) / 1e-4) ** 2, 100.0).sum(axis=1)
        weight = np.exp(-(badness - badness.min()) / 2)
        weight /= weight.sum()
        best_a, best_b = float(weight @ da), float(weight @ db)
        at_mid += best_a * reach_a
        slope += 2 * best_b * reach_b / span
        reach_a = max(reach_a * max(3 * float(np.sqrt(weight @ (da - best_a) ** 2)), 0.2), 1e-6)
        reach_b = max(reach_b * max(3 * float(np.sqrt(weight @ (db - best_b) ** 2)), 0.2), 1e-6)
    return at_mid - mid * slope, slope


def _fit_line(k: FloatArray, off: FloatArray, weight: FloatArray) -> tuple[float, float]:
    mean_k, mean_off = np.average(k, weights=weight), np.average(off, weights=weight)
    spread = float((weight * (k - mean_k) ** 2).sum())
    slope = float((weight * (k - mean_k) * (off - mean_off)).sum()) / spread if spread > 0 else 0.0
    return float(mean_off - slope * mean_k), slope


def _read_grid_updates(
    origin_ns: int, t_s: FloatArray, power_w: FloatArray, start_s: float, period_s: float, sd_s: float
) -> SensorUpdates:
    """Take the value of every publication from the poll nearest to the middle of its period."""
    first_period = int(np.ceil((t_s[0] - start_s) / period_s))
    last_period = int(np.floor((t_s[-1] - start_s) / period_s))
    at_s = np.asarray(start_s + np.arange(first_period, last_period + 1) * period_s, dtype=np.float64)
    middles_s = at_s + period_s / 2
    after = np.clip(np.searchsorted(t_s, middles_s), 1, len(t_s) - 1)
    nearest = after - (middles_s - t_s[after - 1] < t_s[after] - middles_s)
    has_poll = np.abs(t_s[nearest] - middles_s) < 0.4 * period_s  # otherwise no poll saw it
    at_s, value_w = at_s[has_poll], np.asarray(power_w[nearest[has_poll]], dtype=np.float64)
    return SensorUpdates(origin_ns, at_s, value_w, period_s, locked=True, timing_sd_s=sd_s)


# A driver's ring that was not read for a part of the run has no information on the layers that ran then.
MIN_COVERED_SHARE = 0.9
GAP_PERIODS = 10
# A ring is read once a second: during a run its newest samples, up to half of it, are not available yet.
UNREAD_TAIL_NS = 2 * NS_PER_S
MIN_SHARE_SO_FAR = 0.5


def select_power_series(powers: Sequence[Series], start_ns: int, end_ns: int) -> tuple[Series | None, str]:
    """Return the readings to fit layers to, and why they are not the driver's own samples where there are any.

    The driver's samples are preferred, since they are the densest and have known times; then `nvml_power_instant`,
    whose window is shortest.

    Args:
        powers: All powers of one device.
        start_ns: Start of the run.
        end_ns: Its end.
    """
    usable_powers = [power for power in map(_clean_power, powers) if len(power) >= 2]
    usable_powers.sort(key=lambda power: power.channel.sensor != "nvml_power_instant")
    stamped = [power for power in usable_powers if power.channel.stamped]
    polled = [power for power in usable_powers if not power.channel.stamped]
    why = _unsuitable_reason(stamped[0], start_ns, end_ns) if stamped and polled else ""
    ordered = [*polled, *stamped] if why else [*stamped, *polled]
    return (ordered[0] if ordered else None), why


def _clean_power(power: Series) -> Series:
    readings = drop_unusable(power)
    keep = find_increasing(readings.t_ns)
    return Series(readings.channel, readings.t_ns[keep], readings.raw[keep], readings.late_ns[keep])


def _unsuitable_reason(samples: Series, start_ns: int, end_ns: int) -> str:
    heard, later_on = _covered_share(samples, start_ns, end_ns)
    if heard < MIN_SHARE_SO_FAR or heard + later_on < MIN_COVERED_SHARE:
        return f"they cover {heard:.0%} of the run"
    return "" if find_sensor_updates(samples) is not None else "their value hardly changes"


def _covered_share(samples: Series, start_ns: int, end_ns: int) -> tuple[float, float]:
    """Return the share of a run without gaps in the samples, and the share that may be read later."""
    instants_ns = samples.between(start_ns, end_ns).t_ns
    distances_ns = np.diff(np.concatenate(([start_ns], instants_ns, [end_ns])))
    silent = np.where(distances_ns > GAP_PERIODS * samples.channel.period_ns, distances_ns, 0)
    whole_ns = max(end_ns - start_ns, 1)
    return 1.0 - float(silent.sum()) / whole_ns, min(float(silent[-1]), UNREAD_TAIL_NS) / whole_ns
