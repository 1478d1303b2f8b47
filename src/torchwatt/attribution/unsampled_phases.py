"""Uncertainty of integrated power between the sensor's updates, at the run's ends, and from unsampled step phases.

A sensor that updates every 100 ms and averages over 25 ms does not sample the other 75 ms (arXiv 2312.02741). If the
step length and the update period are incommensurate, all phases of a step are sampled in time, and the error of the
mean is that of a random sample. If steps run in sync with the updates, the same phases are sampled every time; power in
the other phases is bounded only by 0 W and the device's limit. Between readings that are seconds apart, as in saved
logs, power is bounded by assuming that it stays between the two readings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from torchwatt.attribution.power_integral import GAP_NS, gap_limit_ns
from torchwatt.attribution.sensor_response import ONE_SECOND_MEAN, SENSOR_FAMILIES, find_sensor_family, nominal_response
from torchwatt.attribution.sensor_updates import GRID_TOLERANCE_S, find_sensor_updates
from torchwatt.core.energy_curve import interpolate
from torchwatt.core.meter import FloatArray, IntArray, Meter, Series
from torchwatt.core.units import NS_PER_S, Z90

# Consecutive readings are correlated, so the error of a mean of n of them is larger than sd / sqrt(n).
CORRELATION_FACTOR = 1.6
MIN_STEPS = 3  # fewer do not show a repetition
# Steps whose starts deviate by this much of a step from a periodic clock are sampled in all phases.
MIN_STEP_JITTER = 0.3
# Updates with a larger timing error, as a part of a step, have no known phase.
MAX_TIMING_ERROR = 0.125
# With fewer polls per update the fitted grid is unreliable.
MIN_POLLS_PER_UPDATE = 2.5
# A part of a step up to this length is interpolated from the phases beside it.
PHASE_RESOLUTION = 0.05
CHANCE_LEVEL = 0.05
# A sensor that averages over so much of its period misses nothing.
MOST_OF_PERIOD = 0.9
# Readings within this part of their mean show no work that comes and goes.
CONSTANT_POWER_REL = 0.1
# Work in less than 2.3 / n of the time is missed by n samples in one of ten cases: 0.1 = (1 - 2.3 / n) ** n.
MISSED_SAMPLES = 2.3
# For devices without a known limit: no board on the market in 2026 is sold for more than 1.4 kW, most for less than
# 700 W.
LIMIT_W = {"gpu": 1000.0, "cpu": 500.0}
LIMIT_DEFAULT_W = 2000.0


@dataclass(frozen=True, slots=True)
class UnsampledPhases:
    """The uncertainty of a run's joules due to sampling.

    `u_j` is the standard uncertainty of a sample of the run's power; `share` the part of the run that may never have
    been sampled, in which power was anything from 0 to `limit_w`. `period_s` and `window_s` are the sensor's, in a run
    without steps whose updates do not average over all of the time between them; `window_s` is 0 where it is unknown.
    """

    u_j: float
    share: float
    limit_w: float
    period_s: float = 0.0
    window_s: float = 0.0

    def band(self, energy_j: float, seconds: float) -> tuple[float, float]:
        """Return the lower and upper deviation of the joules, as parts of them."""
        if self.share <= 0 or energy_j <= 0:
            return 0.0, 0.0
        return -self.share, self.share * max(self.limit_w * seconds / energy_j - 1.0, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class PowerUpdates:
    """A sensor's updates and their values, in seconds since `origin_ns`; `sd_s` is their timing error."""

    origin_ns: int
    at_s: FloatArray
    power_w: FloatArray
    period_s: float
    sd_s: float

    def between(self, start_ns: int, end_ns: int) -> PowerUpdates:
        """Return the updates of a window."""
        lo, hi = ((t - self.origin_ns) / NS_PER_S for t in (start_ns, end_ns))
        keep = (self.at_s >= lo) & (self.at_s <= hi)
        return PowerUpdates(self.origin_ns, self.at_s[keep], self.power_w[keep], self.period_s, self.sd_s)


def find_power_updates(power: Series) -> PowerUpdates:
    """Return a sensor's updates: on its grid where it has one, else where its value changed.

    If the value never changes, each reading counts as an update, with the length of the series as timing error.
    """
    origin_ns, watts = int(power.t_ns[0]), power.raw * power.channel.scale
    poll_s = float(np.median(np.diff(power.t_ns))) / NS_PER_S
    sensor_updates = find_sensor_updates(power)
    if (
        sensor_updates is not None
        and sensor_updates.locked
        and (sensor_updates.stamped or sensor_updates.period_s > MIN_POLLS_PER_UPDATE * poll_s)
    ):
        return PowerUpdates(
            sensor_updates.origin_ns,
            sensor_updates.at_s,
            sensor_updates.power_w,
            sensor_updates.period_s,
            max(sensor_updates.timing_sd_s, GRID_TOLERANCE_S),
        )
    t_s = (power.t_ns - origin_ns) / NS_PER_S
    changed = np.flatnonzero(np.diff(watts) != 0) + 1
    if len(changed) < 2:
        return PowerUpdates(origin_ns, t_s, watts, poll_s, float(t_s[-1]))
    period_s = float(np.median(np.diff(t_s[changed])))
    changes = np.concatenate(([0], changed))
    return PowerUpdates(origin_ns, t_s[changes], watts[changes], period_s, poll_s / sqrt(12.0))


def averaging_window_s(power: Series, model: str, period_s: float) -> tuple[float, float]:
    """Return the averaging window of an update in s: a certain minimum, and a possible maximum."""
    family, sensor = find_sensor_family(model), power.channel.sensor
    if sensor == "nvml_power_average":
        return ONE_SECOND_MEAN.window_s, ONE_SECOND_MEAN.window_s
    if family in SENSOR_FAMILIES:
        known_s = nominal_response(family, sensor, period_s)[0].window_s
        return known_s, known_s
    return 0.0, ONE_SECOND_MEAN.window_s if sensor == "nvml_power" else period_s


def estimate_unsampled(
    power: Series, meter: Meter, start_ns: int, end_ns: int, steps: Sequence[tuple[int, int, int]] = ()
) -> UnsampledPhases:
    """Return the sampling uncertainty of the integral of a power sensor over a run.

    Args:
        power: Usable readings, those before and after the run included, at least two.
        meter: Theirs.
        start_ns: Start of the run.
        end_ns: Its end.
        steps: Start, end and number of the steps in each row, in time order.
    """
    every = find_power_updates(power)
    sure_s, most_s = averaging_window_s(power, meter.model, every.period_s)
    limit_w = _power_limit_w(meter, power)
    u_j = sampling_uncertainty_j(power, every, start_ns, end_ns, most_s)
    u_j = float(np.hypot(u_j, max_line_error_j(power, start_ns, end_ns) / Z90))
    run_steps = [(a, b, n) for a, b, n in steps if a >= start_ns and b <= end_ns and b > a]
    if sum(n for *_, n in run_steps) < MIN_STEPS:
        if sure_s >= MOST_OF_PERIOD * every.period_s:
            return UnsampledPhases(u_j, 0.0, limit_w)
        share = _missed_share(power, every, start_ns, end_ns, 1.0 - sure_s / every.period_s)
        return UnsampledPhases(u_j, share, limit_w, every.period_s, sure_s)
    of_run = min(sum(b - a for a, b, _ in run_steps) / (end_ns - start_ns), 1.0)
    share, grain = measure_unsampled_phases(every, run_steps, sure_s)
    # A change between two sampled phases may be anywhere between them.
    seen_w = every.between(start_ns, end_ns).power_w
    between_j = of_run * grain * (float(np.ptp(seen_w)) if len(seen_w) else 0.0) * (end_ns - start_ns) / NS_PER_S
    return UnsampledPhases(float(np.hypot(u_j, between_j / Z90)), of_run * share, limit_w)


def _missed_share(power: Series, every: PowerUpdates, start_ns: int, end_ns: int, most: float) -> float:
    """Return the part of a run without steps that no update may have sampled; 0 where power does not change.

    Between readings that are seconds apart, power is assumed to stay between both.
    """
    seen_w = every.between(start_ns - int(every.period_s * NS_PER_S), end_ns).power_w
    changes = len(seen_w) > 1 and float(np.ptp(seen_w)) > CONSTANT_POWER_REL * float(np.mean(seen_w))
    if not changes or len(find_sparse_intervals(power, start_ns, end_ns)[0]):
        return 0.0
    return min(MISSED_SAMPLES / len(seen_w), most)


def sampling_uncertainty_j(power: Series, every: PowerUpdates, start_ns: int, end_ns: int, most_s: float) -> float:
    """Return the standard uncertainty of a window's joules due to sampling power at intervals.

    The spread of the updates, as of a sample, and at both ends the variation of power over an update's age.
    """
    seconds = (end_ns - start_ns) / NS_PER_S
    sampled_w = every.between(start_ns, end_ns).power_w
    spread_w = float(np.std(sampled_w if len(sampled_w) > 2 else power.raw * power.channel.scale))
    old_s = max(most_s, every.period_s)
    ends_j = [_power_range_w(power, t_ns, old_s) * old_s / 2 for t_ns in (start_ns, end_ns)]
    sample_j = CORRELATION_FACTOR * spread_w * seconds / sqrt(max(len(sampled_w), 1))
    return float(np.hypot(sample_j, sum(ends_j) / Z90))


def find_sparse_intervals(power: Series, start_ns: int, end_ns: int) -> tuple[IntArray, FloatArray]:
    """Return the parts of a window that lie between two readings further apart than GAP_NS, gaps left out.

    Returns:
        (n, 2) starts and ends in ns, and (n, 2) watts: the readings before and after each.
    """
    watts = power.raw * power.channel.scale
    apart_ns = np.diff(power.t_ns)
    slow = np.flatnonzero(
        (apart_ns > GAP_NS)
        & (apart_ns <= gap_limit_ns(power))
        & (power.t_ns[1:] > start_ns)
        & (power.t_ns[:-1] < end_ns)
    )
    edges = np.stack((np.maximum(power.t_ns[slow], start_ns), np.minimum(power.t_ns[slow + 1], end_ns)), axis=1)
    return edges, np.stack((watts[slow], watts[slow + 1]), axis=1)


def max_line_error_j(power: Series, start_ns: int, end_ns: int) -> float:
    """Return how far the joules of a window may be from a straight line between readings that are seconds apart.

    Power may have been at either reading's value for any part of the time between both: all of them high, or all low.
    """
    edges, watts = find_sparse_intervals(power, start_ns, end_ns)
    seconds = np.diff(edges, axis=1)[:, 0] / NS_PER_S
    line_w = interpolate(edges, power.t_ns, power.raw).mean(axis=1) * power.channel.scale
    above_j = float(((watts.max(axis=1) - line_w) * seconds).sum())
    below_j = float(((line_w - watts.min(axis=1)) * seconds).sum())
    return max(above_j, below_j)


def _power_range_w(power: Series, t_ns: int, reach_s: float) -> float:
    """Return the range of power around an instant, in W."""
    reach_ns = int(2 * reach_s * NS_PER_S)
    near = power.between(t_ns - reach_ns, t_ns + reach_ns).raw * power.channel.scale
    return float(np.ptp(near)) if len(near) else 0.0


def measure_unsampled_phases(
    every: PowerUpdates, steps: Sequence[tuple[int, int, int]], window: float
) -> tuple[float, float]:
    """Return the share of a step's phases without an update, and the longest gap between sampled ones.

    Gaps between sampled phases count as far as they exceed FINE, and the gaps expected by chance for that number
    of updates.
    """
    starts, ends, counts = (np.array(column, dtype=np.int64) for column in zip(*steps, strict=True))
    length_s = (ends - starts) / counts / NS_PER_S
    step_s = float(np.median(length_s))
    if window >= step_s:
        return 0.0, 0.0
    if every.sd_s > MAX_TIMING_ERROR * step_s:
        return 0.0 if _steps_stray(starts, counts, step_s) else 1.0, 0.0
    begin_s = (starts - every.origin_ns) / NS_PER_S
    row = np.searchsorted(begin_s, every.at_s, side="right") - 1
    in_step = (row >= 0) & (every.at_s < ((ends - every.origin_ns) / NS_PER_S)[row])
    phase = np.sort((every.at_s[in_step] - begin_s[row[in_step]]) / length_s[row[in_step]] % 1.0)
    if not len(phase):
        return 1.0, 0.0
    phase_gaps = np.diff(np.append(phase, phase[0] + 1.0))
    fine = max(float(np.log(len(phase))) / len(phase), PHASE_RESOLUTION)
    # Expected number of gaps of that length by chance: a longer gap counts in full.
    by_chance = len(phase) * np.maximum(1.0 - phase_gaps, 0.0) ** (len(phase) - 1) > CHANCE_LEVEL
    gaps = np.maximum(phase_gaps - window / step_s, 0.0)
    share = float(np.maximum(gaps - np.where(by_chance, fine, 0.0), 0.0).sum()) + MISSED_SAMPLES / len(phase)
    return min(share, 1.0), min(float(gaps.max()), fine)


def _steps_stray(starts: IntArray, counts: IntArray, step_s: float) -> bool:
    """Return whether steps begin at all phases of any clock: their starts deviate from a straight line."""
    number = np.concatenate(([0], np.cumsum(counts)[:-1])).astype(np.float64)
    at_s = (starts - starts[0]) / NS_PER_S
    if len(at_s) < MIN_STEPS:
        return False
    slope, offset = np.polyfit(number, at_s, 1)
    return float(np.std(at_s - (offset + slope * number))) > MIN_STEP_JITTER * step_s


def _power_limit_w(meter: Meter, power: Series) -> float:
    """Return the maximum power of the device: its own limit, or the highest reading if that is larger."""
    try:
        told_w = float(meter.fact("power_limit_w") or 0.0)
    except ValueError:
        told_w = 0.0
    limit_w = told_w if told_w > 0 else LIMIT_W.get(meter.domain.kind, LIMIT_DEFAULT_W)
    return max(limit_w, float(power.raw.max()) * power.channel.scale)
