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
    updates: Publications
    parts: IntArray
    shape: Structure
    idle_w: float | None

    def inside(self, kernel: Kernel) -> Publications:
        """Return the readings whose window lies inside the recorded intervals."""
        at_s = self.updates.at_s
        keep = wholly_inside(self.parts, self.updates.origin_ns, at_s - kernel.reach_s, at_s - kernel.lag_s)
        return replace(self.updates, at_s=at_s[keep], power_w=self.updates.power_w[keep])


def fit_device(
    activity: Activity, parts: IntArray, power: Series | None, family: str | None, priors: Known
) -> DeviceFit:
    """Estimate the powers of a device's columns.

    Args:
        activity: Clipped to `parts`.
        parts: The covered intervals of the run, (n, 2) instants.
        power: Polls of the power sensor, or the driver's own samples; those before the run included.
        family: The sensor's family by the device's name, where known.
        priors: Calibrations, idle watts, replays, work.
    """
    columns = columns_of(activity)
    updates = publications(power) if power is not None else None
    quiet_w = _quiet_w(updates, int(parts[0, 0])) if priors.baseline else None
    idle_w = priors.idle_w.get(activity.device, quiet_w)
    result = DeviceFit(columns, None, "", idle_w, updates)
    if power is None or updates is None:
        return replace(result, reason="no power sensor, or its value hardly changes")
    if columns.count == 0:
        return replace(result, reason="no work on the device")
    watched = _watched(activity, columns, updates, parts, idle_w, priors)
    kernel, why = nominal(priors.families.get(activity.device, family), power.channel.sensor, updates.period_s)
    sensor = priors.sensors.get(power.channel.key)
    replays = replayed(priors.replays.get(activity.device, ()), columns)
    marks_s = _marks(activity, watched)
    result = replace(
        result, kernel=KernelFit(kernel, 0.0, why), phase_gap=phase_gap(watched.inside(kernel).at_s, marks_s)
    )
    coarse = watched
    if columns.count > KERNEL_COLUMNS:
        pooled = columns_of(activity, KERNEL_COLUMNS)
        coarse = _watched(activity, pooled, updates, parts, idle_w, priors)
    return _solve(result, watched, coarse, sensor, replays)


def _watched(
    activity: Activity, columns: Columns, updates: Publications, parts: IntArray, idle_w: float | None, priors: Known
) -> Watched:
    shape = structure((columns.signature, columns.kind, columns.module), rates(priors.work, activity, columns))
    return Watched(records_of(activity, columns, updates.origin_ns), updates, parts, shape, idle_w)


def _solve(
    result: DeviceFit, watched: Watched, coarse: Watched, sensor: SensorModel | None, replays: Moments | None
) -> DeviceFit:
    """Check identifiability, then fit the response, then the powers."""
    if result.kernel is None:
        return replace(result, reason="no sensor kernel")
    readings = coarse.inside(result.kernel.kernel)
    if len(readings) < MIN_ROWS:
        return replace(result, reason=f"only {len(readings)} readings while the work was recorded")
    locked = result.phase_gap is not None and result.phase_gap > LOCKED_GAP
    kernel = result.kernel if locked else _kernel(coarse, readings, result.kernel, sensor)
    estimate = _estimate(watched, kernel.kernel, replays)
    reason = estimate.reason if estimate is not None else "too few readings"
    if locked and replays is None:
        reason = f"steps run in step with the sensor: {result.phase_gap:.0%} of the step was never sampled"
    return replace(result, kernel=kernel, estimate=estimate, reason=reason)


def _kernel(watched: Watched, readings: Publications, start: KernelFit, sensor: SensorModel | None) -> KernelFit:
    """Fit the response, or only the lag where the sensor is calibrated."""
    if sensor is None:
        return fit_kernel(watched.records, readings, watched.shape, start.kernel, start.why, watched.idle_w)
    kernel = fit_lag(watched.records, readings, watched.shape, sensor.kernel, watched.idle_w)
    return KernelFit(kernel, 0.0, f"calibrated: {sensor.source}")


def _estimate(watched: Watched, kernel: Kernel, replays: Moments | None) -> Estimate | None:
    updates = watched.inside(kernel)
    estimator = Estimator(watched.shape, watched.records.columns, watched.idle_w)
    for start in range(0, len(updates), CHUNK):
        part = slice(start, start + CHUNK)
        estimator.add(look(watched.records, updates.at_s[part], updates.power_w[part], kernel))
    return estimator.solve(replays)


def _quiet_w(updates: Publications | None, start_ns: int) -> float | None:
    """Return the mean reading before the run; None with too few."""
    if updates is None:
        return None
    quiet = updates.power_w[updates.at_s < (start_ns - updates.origin_ns) / NS_PER_S - SETTLE_S]
    return float(quiet.mean()) if len(quiet) >= MIN_QUIET else None


def _marks(activity: Activity, watched: Watched) -> FloatArray:
    steps = np.array([start for start, _ in activity.steps], dtype=np.int64)
    return marks_of(watched.records.start_s, watched.records.column, (steps - watched.updates.origin_ns) / NS_PER_S)
