"""Fit the powers of a device's columns to its power sensor's readings, with prior information where there is some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from torchwatt.attribution.design_matrix import (
    WorkColumns,
    WorkRecords,
    build_design_rows,
    build_work_columns,
    build_work_records,
)
from torchwatt.attribution.estimator import (
    LOCKED_GAP,
    MIN_ROWS,
    Estimator,
    PowerEstimate,
    find_repeat_marks,
    measure_phase_gap,
)
from torchwatt.attribution.observed_windows import find_intervals_inside
from torchwatt.attribution.posterior import ColumnGroups, Moments, build_column_groups, compute_moments
from torchwatt.attribution.response_fit import ResponseFit, fit_response_lag, fit_sensor_response
from torchwatt.attribution.sensor_response import SensorModel, SensorResponse, nominal_response
from torchwatt.attribution.sensor_updates import SensorUpdates, find_sensor_updates
from torchwatt.core.meter import FloatArray, IntArray, Series
from torchwatt.core.terms import Slot
from torchwatt.core.trace import Activity
from torchwatt.core.units import NS_PER_S

# Mean power of a layer in its own loop against the same layer in its run: caches and clocks differ.
REPLAY_CONTEXT_REL = 0.05


@dataclass(frozen=True, slots=True)
class SlotReplay:
    """Mean power of a slot that was run in its own loop; `sd_rel` is the uncertainty due to its context."""

    slot: Slot
    power_w: float
    sd_rel: float = REPLAY_CONTEXT_REL


@dataclass(frozen=True, slots=True)
class CudaUse:
    """This process's use of CUDA, at its end.

    `domains` are the devices on which it held memory, `library` whether CUDA's driver library is loaded.
    """

    initialised: bool = False
    library: bool | None = None
    domains: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class DevicePriors:
    """By domain name, such as "gpu:0": sensor families, idle watts, replays. Calibrated sensors by channel key.

    `work` has operations and bytes: of one record by signature, or of the whole run by slot.
    """

    sensors: Mapping[str, SensorModel] = field(default_factory=dict)
    families: Mapping[str, str] = field(default_factory=dict)
    idle_w: Mapping[str, float] = field(default_factory=dict)
    replays: Mapping[str, tuple[SlotReplay, ...]] = field(default_factory=dict)
    work: Mapping[str | Slot, tuple[float, float]] = field(default_factory=dict)
    cuda: CudaUse | None = None  # None: not queried
    named: frozenset[str] = frozenset()  # devices that the user named: they count in any case
    baseline: bool = True  # the readings before the run are an idle baseline, and give the static power


NO_PRIORS = DevicePriors()


def compute_work_rates(
    work: Mapping[str | Slot, tuple[float, float]], activity: Activity, columns: WorkColumns
) -> FloatArray | None:
    """Return (C, 2) operations and bytes per second of each column, as parts of the largest; None where unknown.

    A column without a known rate gets the mean of the others, so that the slope has no effect on it.
    """
    if not work:
        return None
    total = np.zeros((columns.count, 2))
    has_rate = np.zeros(columns.count, dtype=np.bool_)
    time_s = columns.seconds.sum(axis=0)
    records = np.bincount(columns.of_record, minlength=columns.count)
    for column in range(columns.count):
        each = work.get(activity.signatures[columns.signature[column]]) if len(activity.signature) else None
        if each is not None:
            total[column], has_rate[column] = np.asarray(each) * records[column], True
    for slot, in_slot in enumerate(columns.seconds):
        run_work = work.get(columns.slots[slot])
        mine = (in_slot > 0) & ~has_rate
        if run_work is not None and mine.any():
            total[mine] = np.asarray(run_work) * (in_slot[mine] / in_slot[mine].sum())[:, None]
            has_rate |= mine
    if has_rate.sum() < 3:
        return None
    rate = total / np.maximum(time_s, 1e-12)[:, None]
    rate /= np.maximum(rate[has_rate].max(axis=0), 1e-12)
    rate[~has_rate] = rate[has_rate].mean(axis=0)
    return np.asarray(rate, dtype=np.float64)


def build_replay_moments(replays: tuple[SlotReplay, ...], columns: WorkColumns) -> Moments | None:
    """Return replays as pseudo-observations of the slots' mean powers, weighted by 1 / sd^2; None without any."""
    rows, power_w, weight = [], [], []
    for replay in replays:
        in_slot = columns.seconds[columns.slots.index(replay.slot)] if replay.slot in columns.slots else np.zeros(1)
        if in_slot.sum() > 0:
            rows.append(np.append(in_slot / in_slot.sum(), 0.0))
            power_w.append(replay.power_w)
            weight.append((replay.sd_rel * replay.power_w) ** -2)
    return compute_moments(np.array(rows), np.array(power_w), np.array(weight)) if rows else None


MIN_IDLE_UPDATES = 5  # publications before the run needed for an idle baseline
SETTLE_S = 0.05  # end of the idle baseline, left out before the run begins
RESPONSE_COLUMNS = 200  # while the common response is fitted, beyond this number the smallest are pooled
CHUNK_READINGS = 2000  # readings processed together: bounds the memory of a long run


@dataclass(frozen=True, slots=True, eq=False)
class DeviceFit:
    """The powers of a device's columns from its power sensor.

    `estimate` is None where there are too few readings; `reason` then has why, as where time share must be used.
    """

    columns: WorkColumns
    estimate: PowerEstimate | None
    reason: str
    idle_w: float | None
    publications: SensorUpdates | None = None
    kernel: ResponseFit | None = None
    phase_gap: float | None = None
    locked: bool = False  # time share is booked because the steps run in step with the sensor

    @property
    def fitted(self) -> bool:
        """Return whether the fit is booked, rather than time share."""
        return self.estimate is not None and not self.reason


@dataclass(frozen=True, slots=True, eq=False)
class DeviceFitInput:
    """The input of a fit: a device's work and its sensor's updates on one clock, and the recorded intervals."""

    records: WorkRecords
    updates: SensorUpdates
    parts: IntArray
    shape: ColumnGroups
    idle_w: float | None

    def inside(self, kernel: SensorResponse) -> SensorUpdates:
        """Return the readings whose window lies inside the recorded intervals."""
        at_s = self.updates.at_s
        keep = find_intervals_inside(self.parts, self.updates.origin_ns, at_s - kernel.reach_s, at_s - kernel.lag_s)
        return replace(self.updates, at_s=at_s[keep], power_w=self.updates.power_w[keep])


def fit_device(
    activity: Activity, parts: IntArray, power: Series | None, family: str | None, priors: DevicePriors
) -> DeviceFit:
    """Estimate the powers of a device's columns.

    Args:
        activity: Clipped to `parts`.
        parts: The covered intervals of the run, (n, 2) instants.
        power: Polls of the power sensor, or the driver's own samples; those before the run included.
        family: The sensor's family by the device's name, where known.
        priors: Calibrations, idle watts, replays, work.
    """
    columns = build_work_columns(activity)
    updates = find_sensor_updates(power) if power is not None else None
    quiet_w = _idle_baseline_w(updates, int(parts[0, 0])) if priors.baseline else None
    idle_w = priors.idle_w.get(activity.device, quiet_w)
    result = DeviceFit(columns, None, "", idle_w, updates)
    if power is None or updates is None:
        return replace(result, reason="no power sensor, or its value hardly changes")
    if columns.count == 0:
        return replace(result, reason="no work on the device")
    watched = _build_fit_input(activity, columns, updates, parts, idle_w, priors)
    kernel, why = nominal_response(priors.families.get(activity.device, family), power.channel.sensor, updates.period_s)
    sensor = priors.sensors.get(power.channel.key)
    replays = build_replay_moments(priors.replays.get(activity.device, ()), columns)
    marks_s = _find_marks(activity, watched)
    result = replace(
        result, kernel=ResponseFit(kernel, 0.0, why), phase_gap=measure_phase_gap(watched.inside(kernel).at_s, marks_s)
    )
    coarse = watched
    if columns.count > RESPONSE_COLUMNS:
        pooled = build_work_columns(activity, RESPONSE_COLUMNS)
        coarse = _build_fit_input(activity, pooled, updates, parts, idle_w, priors)
    return _solve_fit(result, watched, coarse, sensor, replays)


def _build_fit_input(
    activity: Activity,
    columns: WorkColumns,
    updates: SensorUpdates,
    parts: IntArray,
    idle_w: float | None,
    priors: DevicePriors,
) -> DeviceFitInput:
    shape = build_column_groups(
        (columns.signature, columns.kind, columns.module), compute_work_rates(priors.work, activity, columns)
    )
    return DeviceFitInput(build_work_records(activity, columns, updates.origin_ns), updates, parts, shape, idle_w)


def _solve_fit(
    result: DeviceFit,
    watched: DeviceFitInput,
    coarse: DeviceFitInput,
    sensor: SensorModel | None,
    replays: Moments | None,
) -> DeviceFit:
    """Check identifiability, then fit the response, then the powers."""
    if result.kernel is None:
        return replace(result, reason="no sensor kernel")
    readings = coarse.inside(result.kernel.kernel)
    if len(readings) < MIN_ROWS:
        return replace(result, reason=f"only {len(readings)} readings while the work was recorded")
    in_step = result.phase_gap is not None and result.phase_gap > LOCKED_GAP
    kernel = result.kernel if in_step else _fit_sensor_response(coarse, readings, result.kernel, sensor)
    estimate = _estimate_powers(watched, kernel.kernel, replays)
    reason = estimate.reason if estimate is not None else "too few readings"
    locked = in_step and replays is None
    if locked:
        reason = f"steps run in step with the sensor: {result.phase_gap:.0%} of the step was never sampled"
    return replace(result, kernel=kernel, estimate=estimate, reason=reason, locked=locked)


def _fit_sensor_response(
    watched: DeviceFitInput, readings: SensorUpdates, start: ResponseFit, sensor: SensorModel | None
) -> ResponseFit:
    """Fit the response, or only the lag where the sensor is calibrated."""
    if sensor is None:
        return fit_sensor_response(watched.records, readings, watched.shape, start.kernel, start.why, watched.idle_w)
    kernel = fit_response_lag(watched.records, readings, watched.shape, sensor.kernel, watched.idle_w)
    return ResponseFit(kernel, 0.0, f"calibrated: {sensor.source}")


def _estimate_powers(watched: DeviceFitInput, kernel: SensorResponse, replays: Moments | None) -> PowerEstimate | None:
    updates = watched.inside(kernel)
    estimator = Estimator(watched.shape, watched.records.columns, watched.idle_w)
    for start in range(0, len(updates), CHUNK_READINGS):
        part = slice(start, start + CHUNK_READINGS)
        estimator.add(build_design_rows(watched.records, updates.at_s[part], updates.power_w[part], kernel))
    return estimator.solve(replays)


def _idle_baseline_w(updates: SensorUpdates | None, start_ns: int) -> float | None:
    """Return the mean of the updates before the run, in W; None with fewer than `MIN_IDLE_UPDATES`."""
    if updates is None:
        return None
    quiet = updates.power_w[updates.at_s < (start_ns - updates.origin_ns) / NS_PER_S - SETTLE_S]
    return float(quiet.mean()) if len(quiet) >= MIN_IDLE_UPDATES else None


def _find_marks(activity: Activity, watched: DeviceFitInput) -> FloatArray:
    steps = np.array([start for start, _ in activity.steps], dtype=np.int64)
    return find_repeat_marks(
        watched.records.start_s, watched.records.column, (steps - watched.updates.origin_ns) / NS_PER_S
    )
