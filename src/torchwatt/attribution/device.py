"""Fit the powers of a device's columns to its power sensor's readings."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from torchwatt.attribution.columns import Columns, columns_of, records_of
from torchwatt.attribution.covered import wholly_inside
from torchwatt.attribution.estimate import MIN_ROWS, Estimate, Estimator
from torchwatt.attribution.guards import LOCKED_GAP, marks_of, phase_gap
from torchwatt.attribution.kernel import Kernel, SensorModel, nominal
from torchwatt.attribution.kernel_fit import KernelFit, fit_kernel, fit_lag
from torchwatt.attribution.known import Known, rates, replayed
from torchwatt.attribution.look import Records, look
from torchwatt.attribution.moments import Moments
from torchwatt.attribution.prior import Structure, structure
from torchwatt.attribution.publications import Publications, publications
from torchwatt.core.activity import Activity
from torchwatt.core.meter import FloatArray, IntArray, Series
from torchwatt.core.units import NS_PER_S

MIN_QUIET = 5  # publications before the run needed for an idle baseline
SETTLE_S = 0.05  # end of the idle baseline, left out before the run begins
KERNEL_COLUMNS = 200  # the response is common to all columns: the smallest are pooled while it is fitted
CHUNK = 2000  # readings processed together: bounds the memory of a long run


@dataclass(frozen=True, slots=True, eq=False)
class DeviceFit:
    """The powers of a device's columns from its power sensor.

    `estimate` is None where there are too few readings; `reason` then has why, as where time share must be used.
    """

    columns: Columns
    estimate: Estimate | None
    reason: str
    idle_w: float | None
    publications: Publications | None = None
    kernel: KernelFit | None = None
    phase_gap: float | None = None

    @property
    def fitted(self) -> bool:
        """Return whether the fit is booked, rather than time share."""
        return self.estimate is not None and not self.reason


@dataclass(frozen=True, slots=True, eq=False)
class Watched:
    """A device's work and its sensor's readings on one clock, and the intervals in which the work was recorded."""

    records: Records
    seen: Publications
    parts: IntArray
    shape: Structure
    idle_w: float | None

    def inside(self, kernel: Kernel) -> Publications:
        """Return the readings whose window lies inside the recorded intervals."""
        at_s = self.seen.at_s
        keep = wholly_inside(self.parts, self.seen.origin_ns, at_s - kernel.reach_s, at_s - kernel.lag_s)
        return replace(self.seen, at_s=at_s[keep], power_w=self.seen.power_w[keep])


def fit_device(
    activity: Activity, parts: IntArray, power: Series | None, family: str | None, known: Known
) -> DeviceFit:
    """Estimate the powers of a device's columns.

    Args:
        activity: Clipped to `parts`.
        parts: The covered intervals of the run, (n, 2) instants.
        power: Polls of the power sensor, or the driver's own samples; those before the run included.
        family: The sensor's family by the device's name, where known.
        known: Calibrations, idle watts, replays, work.
    """
    columns = columns_of(activity)
    seen = publications(power) if power is not None else None
    quiet_w = _quiet_w(seen, int(parts[0, 0])) if known.baseline else None
    idle_w = known.idle_w.get(activity.device, quiet_w)
    result = DeviceFit(columns, None, "", idle_w, seen)
    if power is None or seen is None:
        return replace(result, reason="no power sensor, or one that hardly ever changes")
    if columns.count == 0:
        return replace(result, reason="no work on the device")
    watched = _watched(activity, columns, seen, parts, idle_w, known)
    kernel, why = nominal(known.families.get(activity.device, family), power.channel.sensor, seen.period_s)
    sensor = known.sensors.get(power.channel.key)
    replays = replayed(known.replays.get(activity.device, ()), columns)
    marks_s = _marks(activity, watched)
    result = replace(
        result, kernel=KernelFit(kernel, 0.0, why), phase_gap=phase_gap(watched.inside(kernel).at_s, marks_s)
    )
    coarse = watched
    if columns.count > KERNEL_COLUMNS:
        pooled = columns_of(activity, KERNEL_COLUMNS)
        coarse = _watched(activity, pooled, seen, parts, idle_w, known)
    return _solve(result, watched, coarse, sensor, replays)


def _watched(
    activity: Activity, columns: Columns, seen: Publications, parts: IntArray, idle_w: float | None, known: Known
) -> Watched:
    shape = structure((columns.signature, columns.kind, columns.module), rates(known.work, activity, columns))
    return Watched(records_of(activity, columns, seen.origin_ns), seen, parts, shape, idle_w)


def _solve(
    result: DeviceFit, watched: Watched, coarse: Watched, sensor: SensorModel | None, replays: Moments | None
) -> DeviceFit:
    """Check identifiability, then fit the response, then the powers."""
    if result.kernel is None:
        return replace(result, reason="no sensor kernel")
    inside = coarse.inside(result.kernel.kernel)
    if len(inside) < MIN_ROWS:
        return replace(result, reason=f"only {len(inside)} readings while the work was watched")
    locked = result.phase_gap is not None and result.phase_gap > LOCKED_GAP
    kernel = result.kernel if locked else _kernel(coarse, inside, result.kernel, sensor)
    estimate = _estimate(watched, kernel.kernel, replays)
    reason = estimate.reason if estimate is not None else "too few readings"
    if locked and replays is None:
        reason = f"steps run in step with the sensor: {result.phase_gap:.0%} of a step's phases were never read"
    return replace(result, kernel=kernel, estimate=estimate, reason=reason)


def _kernel(watched: Watched, inside: Publications, start: KernelFit, sensor: SensorModel | None) -> KernelFit:
    """Fit the response, or only the lag where the sensor is calibrated."""
    if sensor is None:
        return fit_kernel(watched.records, inside, watched.shape, start.kernel, start.why, watched.idle_w)
    kernel = fit_lag(watched.records, inside, watched.shape, sensor.kernel, watched.idle_w)
    return KernelFit(kernel, 0.0, f"calibrated: {sensor.source}")


def _estimate(watched: Watched, kernel: Kernel, replays: Moments | None) -> Estimate | None:
    seen = watched.inside(kernel)
    estimator = Estimator(watched.shape, watched.records.columns, watched.idle_w)
    for first in range(0, len(seen), CHUNK):
        part = slice(first, first + CHUNK)
        estimator.add(look(watched.records, seen.at_s[part], seen.power_w[part], kernel))
    return estimator.solve(replays)


def _quiet_w(seen: Publications | None, start_ns: int) -> float | None:
    """Return the mean reading before the run; None with too few."""
    if seen is None:
        return None
    quiet = seen.power_w[seen.at_s < (start_ns - seen.origin_ns) / NS_PER_S - SETTLE_S]
    return float(quiet.mean()) if len(quiet) >= MIN_QUIET else None


def _marks(activity: Activity, watched: Watched) -> FloatArray:
    steps = np.array([start for start, _ in activity.steps], dtype=np.int64)
    return marks_of(watched.records.start_s, watched.records.column, (steps - watched.seen.origin_ns) / NS_PER_S)
