"""Fit a sensor's response from a known load: a square wave of work, or power from a second meter.

Readings are y_k = gain * x_k + offset + noise with x_k the known signal through the response; gain and offset follow by
least squares, and window, low-pass and lag minimise the squares. Beside a second meter gain and offset are the card's
own; for a square wave they are its two levels, without reference to true power.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np

from torchwatt.attribution.design_matrix import WorkRecords, build_design_rows
from torchwatt.attribution.posterior import minimise_nelder_mead
from torchwatt.attribution.sensor_response import MIN_WINDOW_S, SensorModel, SensorResponse, candidate_responses
from torchwatt.attribution.sensor_updates import SensorUpdates, find_sensor_updates
from torchwatt.core.errors import SensorError
from torchwatt.core.meter import FloatArray, IntArray, Series
from torchwatt.core.units import NS_PER_S

LAGS_S = (-0.06, 0.16)
WIDEST_RESPONSE = SensorResponse(0.3, 0.03, LAGS_S[1])  # widest response that can be fitted
# Maximum timing error of the polls over the calibration: one poll of 5 ms.
MAX_STRETCH_S = 0.005
# A low-pass is kept if it removes this part of the squares.
MIN_LOW_PASS_GAIN = 0.05
MIN_READINGS = 20
MIN_SAMPLE_S = 0.001
START_COUNT = 2  # number of starting points: the squares have several minima


def calibrate_square_wave(edges_ns: IntArray, power: Series, start: SensorResponse | None = None) -> SensorModel:
    """Fit the sensor's response to a load that was on between edges 0 and 1, 2 and 3, and so on.

    The load's period must not be a multiple of the sensor's, or all readings have the same phase; 20 to 30 s are
    enough.

    Args:
        edges_ns: Instants at which the load went on and off, in turn, on the polls' clock.
        power: Polls of the sensor from before the first edge to after the last.
        start: The nominal response, if there is one.

    Raises:
        SensorError: Too few readings, or they follow the load too little.
    """
    updates = _require_updates(power)
    edges_s = (edges_ns[: len(edges_ns) // 2 * 2] - updates.origin_ns) / NS_PER_S
    none = np.zeros(len(edges_s) // 2, dtype=np.int64)
    load = WorkRecords(edges_s[0::2], edges_s[1::2], none, none.astype(np.bool_), 1)
    model = _fit_sensor_model(load, updates, start, f"a square wave of {len(none)} pulses")
    return replace(model, gain=1.0, offset_w=0.0)


def calibrate_beside_meter(
    meter_ns: IntArray, meter_w: FloatArray, power: Series, start: SensorResponse | None = None
) -> SensorModel:
    """Fit the sensor's response, gain and offset to the samples of a fast meter.

    Args:
        meter_ns: Instants of the samples; a sample holds until the next.
        meter_w: Watts, one for each instant.
        power: Polls of the sensor over the same time.
        start: The nominal response, if there is one.

    Raises:
        SensorError: Too few readings, or they follow the meter too little.
    """
    updates = _require_updates(power)
    samples = build_signal_records(meter_ns, meter_w, updates.origin_ns)
    return _fit_sensor_model(
        samples, updates, start, f"a second meter at {len(meter_ns) / _duration_s(meter_ns):.0f} Hz"
    )


def build_signal_records(t_ns: IntArray, watts: FloatArray, origin_ns: int) -> WorkRecords:
    """Return records of a sampled signal, weighted by its watts."""
    t_s = (t_ns - origin_ns) / NS_PER_S
    none = np.zeros(len(t_s) - 1, dtype=np.int64)
    return WorkRecords(t_s[:-1], t_s[1:], none, none.astype(np.bool_), 1, np.asarray(watts[:-1], dtype=np.float64))


def predict_readings(
    model: SensorModel, meter_ns: IntArray, meter_w: FloatArray, power: Series
) -> tuple[FloatArray, FloatArray]:
    """Return the published readings inside a meter's recording, and the model's predictions of them, in W."""
    updates = _require_updates(power)
    records = build_signal_records(meter_ns, meter_w, updates.origin_ns)
    timed = _stretch_clock(updates, model.period_s / updates.period_s, _middle_time_s(updates))
    usable = _readings_inside(records, timed, model.kernel)
    rows = build_design_rows(records, usable.at_s, usable.power_w, model.kernel)
    return usable.power_w, np.asarray(model.gain * rows.design[:, 0] + model.offset_w, dtype=np.float64)


def _require_updates(power: Series) -> SensorUpdates:
    updates = find_sensor_updates(power)
    if updates is None:
        raise SensorError(f"{power.channel.key}: the sensor never changed while the load did; calibrate with more load")
    return updates


def _duration_s(t_ns: IntArray) -> float:
    return float(t_ns[-1] - t_ns[0]) / NS_PER_S


def _readings_inside(records: WorkRecords, updates: SensorUpdates, kernel: SensorResponse) -> SensorUpdates:
    """Keep the readings whose window and low-pass memory lie inside the signal."""
    start_s = float(records.start_s.min()) if records.weight is not None else -np.inf
    end_s = float(records.end_s.max()) if records.weight is not None else np.inf
    keep = (updates.at_s - kernel.reach_s >= start_s) & (updates.at_s - kernel.lag_s <= end_s)
    return replace(updates, at_s=updates.at_s[keep], power_w=updates.power_w[keep])


def _fit_sensor_model(
    records: WorkRecords, updates: SensorUpdates, start: SensorResponse | None, source: str
) -> SensorModel:
    """Search with the readings that every response may use, then refine with all that the fitted one may use."""
    used = _readings_inside(
        records, _readings_inside(records, updates, WIDEST_RESPONSE), replace(WIDEST_RESPONSE, lag_s=LAGS_S[0])
    )
    if len(used) < MIN_READINGS:
        raise SensorError(f"only {len(used)} readings during the load; calibrate for longer")
    period_s = min(updates.period_s, WIDEST_RESPONSE.window_s)
    trials = [
        k
        for k in candidate_responses(start or SensorResponse(period_s), period_s)
        if k.window_s <= WIDEST_RESPONSE.window_s
    ]
    fit = _CalibrationFit(records, used, _middle_time_s(updates))
    kernel, stretch_s = _search_response(replace(fit, records=_thin_records(records)), trials)
    more = _readings_inside(records, updates, replace(kernel, lag_s=kernel.lag_s + 2 * MAX_STRETCH_S))
    fit = _CalibrationFit(
        records, _readings_inside(records, more, replace(kernel, lag_s=kernel.lag_s - 2 * MAX_STRETCH_S)), fit.about_s
    )
    kernel, stretch_s, total = _refine_fit(fit, kernel, stretch_s, low_pass=kernel.tau_s > 0)
    gain, offset_w, _ = fit.levels(kernel, stretch_s)
    if total > 0.5 * float(((fit.updates.power_w - fit.updates.power_w.mean()) ** 2).sum()):
        raise SensorError("the readings do not follow the load; is it the right device, and are the clocks the same?")
    period_s = updates.period_s * (1.0 + stretch_s / fit.length_s)
    return SensorModel(kernel, period_s, float(np.sqrt(total / len(fit.updates))), source, gain, offset_w)


def _thin_records(records: WorkRecords) -> WorkRecords:
    """Average neighbouring samples of a meter over at least a millisecond, which is fine enough for the search."""
    if records.weight is None:
        return records
    long_s = records.end_s - records.start_s
    starts = np.arange(0, len(long_s), max(int(MIN_SAMPLE_S / np.median(long_s)), 1))
    total_s = np.add.reduceat(long_s, starts)
    weight = np.add.reduceat(long_s * records.weight, starts) / total_s
    start_s = records.start_s[starts]
    return WorkRecords(start_s, start_s + total_s, records.column[starts], records.filled[starts], 1, weight)


@dataclass(frozen=True, slots=True, eq=False)
class _CalibrationFit:
    """A signal and the readings that are fitted to it."""

    records: WorkRecords
    updates: SensorUpdates
    about_s: float  # the clock is stretched about this instant

    @property
    def length_s(self) -> float:
        return float(np.ptp(self.updates.at_s))

    def levels(self, kernel: SensorResponse, stretch_s: float = 0.0) -> tuple[float, float, float]:
        """Return gain, offset and the remaining sum of squares."""
        timed = _stretch_clock(self.updates, 1.0 + stretch_s / self.length_s, self.about_s)
        rows = build_design_rows(self.records, timed.at_s, timed.power_w, kernel)
        x, y = rows.design[:, 0], rows.power_w
        spread = float(((x - x.mean()) ** 2).sum())
        gain = float((x - x.mean()) @ y) / spread if spread > 0 else 0.0
        offset_w = float(y.mean()) - gain * float(x.mean())
        return gain, offset_w, float(((y - gain * x - offset_w) ** 2).sum())

    def squares(self, kernel: SensorResponse) -> float:
        return self.levels(kernel)[2]


def _search_response(fit: _CalibrationFit, trials: list[SensorResponse]) -> tuple[SensorResponse, float]:
    """Return response and stretch; a low-pass only where it reduces the squares enough."""
    best = sorted((_best_lag_response(fit, kernel) for kernel in trials), key=fit.squares)
    boxcars = [kernel for kernel in best if kernel.tau_s == 0]
    plain = min((_refine_fit(fit, kernel, low_pass=False) for kernel in boxcars[:START_COUNT]), key=itemgetter(2))
    low_pass = min(
        (_refine_fit(fit, kernel, low_pass=True) for kernel in (*best[:START_COUNT], plain[0])), key=itemgetter(2)
    )
    return low_pass[:2] if low_pass[2] < (1 - MIN_LOW_PASS_GAIN) * plain[2] else plain[:2]


def _middle_time_s(updates: SensorUpdates) -> float:
    return float(updates.at_s[0] + updates.at_s[-1]) / 2


def _stretch_clock(updates: SensorUpdates, factor: float, about_s: float) -> SensorUpdates:
    """Stretch the readings' clock by a factor, since the polls determine the period only roughly."""
    return replace(updates, at_s=about_s + (updates.at_s - about_s) * factor)


def _best_lag_response(fit: _CalibrationFit, kernel: SensorResponse) -> SensorResponse:
    step_s = max(kernel.window_s, 2 * kernel.tau_s) / 6
    lags_s = np.arange(LAGS_S[0], LAGS_S[1], max(step_s, 0.004))
    return min((replace(kernel, lag_s=float(lag)) for lag in lags_s), key=fit.squares)


def _refine_fit(
    fit: _CalibrationFit, kernel: SensorResponse, stretch_s: float = 0.0, *, low_pass: bool
) -> tuple[SensorResponse, float, float]:
    """Optimise window, lag, the clock's stretch and the low-pass; return response, stretch and squares."""

    def at(x: FloatArray) -> tuple[SensorResponse, float]:
        window_s = float(np.clip(np.exp(x[0]), MIN_WINDOW_S, 2.0))
        tau_s = float(min(x[3] ** 2, 0.5)) if low_pass else 0.0
        return SensorResponse(window_s, tau_s, float(np.clip(x[1], *LAGS_S))), float(
            np.clip(x[2], -MAX_STRETCH_S, MAX_STRETCH_S)
        )

    start = np.array([np.log(kernel.window_s), kernel.lag_s, stretch_s, np.sqrt(max(kernel.tau_s, 1e-3))])
    size = np.array([0.2, 0.003, 0.001, 0.02])
    n = 4 if low_pass else 3
    best, cost = minimise_nelder_mead(
        lambda x: fit.levels(*at(x))[2], start[:n], size[:n], max_evaluations=250, close=1e-6
    )
    return (*at(best), cost)
