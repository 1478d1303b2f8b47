"""Book a device's joules: to the slots of its columns, idle time to (idle), unrecorded time to (unattributed)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from torchwatt.attribution.accuracy_bands import AccuracyBand, add_band
from torchwatt.attribution.device_fit import DeviceFit, DevicePriors, fit_device
from torchwatt.attribution.estimator import MIN_GROUP_SHARE, MIN_SELF_SHARE, PowerEstimate, compute_measured_share
from torchwatt.attribution.observed_windows import clip_activity, find_observed_windows, subtract_gaps
from torchwatt.attribution.owned_intervals import OwnedIntervals, compute_exposure, find_gaps
from torchwatt.attribution.posterior import constrain_to_idle, constrain_to_total
from torchwatt.attribution.repeat_spread import (
    RepeatSpread,
    build_step_grid,
    estimate_repeat_spread,
    share_reading_error_j,
    student_quantile,
)
from torchwatt.core.energy_curve import EnergyCurve, interpolate
from torchwatt.core.ledger import Entry, absorb_rounding, book_entry, interval_around
from torchwatt.core.meter import FloatArray, IntArray, Series
from torchwatt.core.terms import IDLE, RESERVED, ROOT, UNATTRIBUTED, Slot
from torchwatt.core.trace import Activity, Trace
from torchwatt.core.units import NS_PER_S, Z90

# A sensor's own gain error, by which metered total and readings may differ (arXiv 2312.02741: 5 % is typical).
GAIN_SD_REL = 0.03
# Spread of layers' powers around the mean that time share gives them: uniform from 120 to 650 W is 0.40.
TIME_SHARE_SD_REL = 0.40


@dataclass(frozen=True, slots=True, eq=False)
class DeviceAttribution:
    """Joules of each slot, then of (idle); `unwatched_j` are joules of unrecorded time."""

    curve: EnergyCurve
    fit: DeviceFit
    energy_j: FloatArray  # (S + 1,)
    sd_j: FloatArray  # error against the true values
    sampling_j: FloatArray  # spread between repeats of the fit
    share_j: FloatArray  # by time
    time_s: FloatArray
    carried: FloatArray  # share of each slot's time extrapolated from traced steps
    measured: FloatArray | None
    measured_in: tuple[str, ...]
    unwatched_j: float
    unwatched_s: float
    spread: RepeatSpread | None  # of the slots, of (idle), and of unrecorded time; None where it cannot be estimated

    @property
    def half_j(self) -> FloatArray | None:
        """Return half the 90 % intervals between repeats of the rows, and of unrecorded time, in J."""
        if self.spread is None:
            return None
        reading_j = share_reading_error_j(self.curve, np.append(self.energy_j, self.unwatched_j))
        return self.spread.half_j(np.append(self.sampling_j, 0.0), reading_j)

    @property
    def interval_j(self) -> tuple[float, float] | tuple[None, None]:
        """Return the 90 % interval between repeats of the device's joules."""
        half_j = None if self.spread is None else self.spread.total_half_j(self.curve.u_j)
        return interval_around(self.curve.total_j, half_j)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Return the slots of the rows."""
        return (*self.fit.columns.slots, Slot(IDLE, "other"))


def attribute_device(
    curve: EnergyCurve, activity: Activity, trace: Trace, power: Series | None, family: str | None, priors: DevicePriors
) -> DeviceAttribution | None:
    """Split a device's curve; None where nothing was recorded on it."""
    unheard = curve.unheard_ns()
    parts = subtract_gaps(find_observed_windows(activity, curve.start_ns, curve.end_ns), unheard)
    if len(parts) == 0:
        return None
    watched = clip_activity(activity, parts)
    fit = fit_device(watched, parts, power, family, priors)
    watched_j = float(np.diff(curve.at(parts), axis=1).sum())
    watched_s = float(np.diff(parts, axis=1).sum()) / NS_PER_S
    jacobian = _energy_jacobian(fit, watched_s)
    share_j = _energy_by_time(fit, jacobian, watched_j)
    if fit.estimate is not None and not fit.reason:
        energy_j, sd_j, sampling_j = _energy_by_fit(fit.estimate, jacobian, watched_j)
    else:
        reading_rel = curve.u_j / curve.total_j if curve.total_j > 0 else 0.0
        sd_j = float(np.hypot(TIME_SHARE_SD_REL, reading_rel)) * share_j
        energy_j, sampling_j = share_j, np.zeros(len(share_j))
    measured, measured_in = _measured_shares(fit, jacobian)
    total_s = (curve.end_ns - curve.start_ns - sum(hi - lo for lo, hi in unheard)) / NS_PER_S
    time_s = np.append(fit.columns.shared_s, max(watched_s - fit.columns.shared_s.sum(), 0.0))
    unwatched_j, unwatched_s = curve.total_j - watched_j, max(total_s - watched_s, 0.0)
    power_w = _divide(np.append(energy_j, unwatched_j), np.append(time_s, unwatched_s))
    return DeviceAttribution(
        curve,
        fit,
        energy_j,
        sd_j,
        sampling_j,
        share_j,
        time_s,
        np.append(_extrapolated_share(watched), 0.0),
        measured,
        measured_in,
        unwatched_j,
        unwatched_s,
        _compare_steps(curve, watched, trace, parts, power_w),
    )


def _divide(over: FloatArray, under: FloatArray) -> FloatArray:
    return np.divide(over, under, out=np.zeros_like(over), where=under > 0)


def _compare_steps(
    curve: EnergyCurve, watched: Activity, trace: Trace, parts: IntArray, power_w: FloatArray
) -> RepeatSpread | None:
    """Compare the steps of the run on the device; columns are its slots, (idle) and unrecorded time."""
    grid = build_step_grid(curve, trace, len(watched.slots), watched.steps)
    count, energy_j = len(watched.slots), curve.at(grid.t_ns)
    work = OwnedIntervals(watched.start_ns, watched.end_ns, watched.slot, watched.filled, np.ones(len(watched)))
    lo, hi = find_gaps(watched.start_ns, watched.end_ns, curve.start_ns, curve.end_ns)
    nobody = np.zeros(len(lo), dtype=np.int64)
    still = compute_exposure(OwnedIntervals(lo, hi, nobody, nobody > 0, np.ones(len(lo))), grid.t_ns, energy_j, 1).mix(
        np.ones(1)
    )
    known_s = np.diff(interpolate(grid.t_ns, parts.ravel(), _recorded_seconds(parts)))
    unknown_s = np.maximum(np.diff(grid.t_ns) / NS_PER_S - known_s, 0.0)
    recorded = compute_exposure(work, grid.t_ns, energy_j, count + 2)
    rows = np.arange(recorded.rows)
    complete = replace(
        recorded,
        row=np.concatenate((recorded.row, rows, rows)),
        column=np.concatenate((recorded.column, np.full(len(rows), count), np.full(len(rows), count + 1))),
        seconds=np.concatenate((recorded.seconds, np.maximum(still - unknown_s, 0.0), unknown_s)),
        filled_s=np.concatenate((recorded.filled_s, np.zeros(2 * len(rows)))),
    )
    slots = (*watched.slots, Slot(IDLE, "other"), Slot(UNATTRIBUTED, "other"))
    return estimate_repeat_spread(complete, power_w, grid, slots, {})


def _recorded_seconds(parts: IntArray) -> FloatArray:
    """Return the recorded seconds until each end of the intervals, in order."""
    long_s = np.diff(parts, axis=1)[:, 0] / NS_PER_S
    done = np.cumsum(long_s)
    return np.stack((done - long_s, done), axis=1).ravel()


def _energy_jacobian(fit: DeviceFit, watched_s: float) -> FloatArray:
    """Return d(energy of a slot) / d(power of a column): own dynamic power, and an equal share of the static one.

    With q = p - p_idle: E_s = sum_j q_j t_sj + p_idle shared_s, and E_idle = p_idle idle_s.
    """
    columns = fit.columns
    rows = np.concatenate((columns.seconds, np.zeros((1, columns.count))))
    static_s = np.append(columns.shared_s - columns.seconds.sum(axis=1), max(watched_s - columns.shared_s.sum(), 0.0))
    return np.concatenate((rows, static_s[:, None]), axis=1)


def _energy_by_fit(
    estimate: PowerEstimate, jacobian: FloatArray, energy_j: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    time_s = jacobian.sum(axis=0)
    held = constrain_to_idle(constrain_to_total(estimate.posterior, time_s, energy_j, GAIN_SD_REL * energy_j))
    booked_j = jacobian @ held.power_w
    # Clusters show errors that the noise model lacks, but they are few: use the wider of the two, and Student's t.
    variance = np.maximum(*(_propagate_variance(jacobian, matrix) for matrix in (held.robust, held.model)))
    few = float(student_quantile(max(estimate.clusters - 1, 2))) / Z90
    sd_j, sampling_j = (
        np.sqrt(np.maximum(variances, 0.0)) * few
        for variances in (variance, _propagate_variance(jacobian, held.sampling))
    )
    return booked_j * (energy_j / booked_j.sum()), sd_j, sampling_j


def _propagate_variance(jacobian: FloatArray, covariance: FloatArray) -> FloatArray:
    return np.asarray(np.einsum("ij,jk,ik->i", jacobian, covariance, jacobian, optimize=True), dtype=np.float64)


def _energy_by_time(fit: DeviceFit, jacobian: FloatArray, energy_j: float) -> FloatArray:
    """Give idle time its baseline power and all busy columns an equal one; without a baseline idle is fitted."""
    columns = fit.columns
    idle_s = float(jacobian[-1, -1])
    busy_s = columns.shared_s
    if busy_s.sum() <= 0:
        return np.append(busy_s, energy_j)
    mean_w = energy_j / max(busy_s.sum() + idle_s, 1e-12)
    idle_w = min(fit.idle_w if fit.idle_w is not None else _fitted_idle_w(fit, mean_w), mean_w)
    idle_j = idle_w * idle_s
    return np.append(busy_s * ((energy_j - idle_j) / busy_s.sum()), idle_j)


def _fitted_idle_w(fit: DeviceFit, mean_w: float) -> float:
    """Return idle power as fitted to the readings; the mean power where that fails."""
    idle_w = float(fit.estimate.time_share_w[-1]) if fit.estimate is not None else mean_w
    return idle_w if idle_w > 0 else mean_w


def _extrapolated_share(activity: Activity) -> FloatArray:
    long_s = (activity.end_ns - activity.start_ns) / NS_PER_S
    all_s = np.bincount(activity.slot, long_s, len(activity.slots))
    filled_s = np.bincount(activity.slot, long_s * activity.filled, len(activity.slots))
    return np.divide(filled_s, all_s, out=np.zeros(len(all_s)), where=all_s > 0)


def _measured_shares(fit: DeviceFit, jacobian: FloatArray) -> tuple[FloatArray | None, tuple[str, ...]]:
    """Return each slot's measured share; below `MIN_SELF_SHARE`, also the enclosing module that is measured."""
    slots = fit.columns.slots
    none = ("",) * (len(slots) + 1)
    if fit.estimate is None:
        return None, none
    if not fit.fitted:
        return np.zeros(len(slots) + 1), none
    before, after = fit.estimate.prior.covariance, fit.estimate.posterior.robust
    own = compute_measured_share(jacobian, before, after)
    groups: dict[tuple[str, str], list[int]] = {}
    for i, slot in enumerate(slots):
        for name in _enclosing_modules(slot.fqn):
            groups.setdefault((name, slot.phase), []).append(i)
    sums = np.stack([jacobian[rows].sum(axis=0) for rows in groups.values()]) if groups else jacobian[:0]
    share = dict(zip(groups, compute_measured_share(sums, before, after).tolist(), strict=True))
    named = [
        next((n for n in _enclosing_modules(s.fqn) if share[n, s.phase] >= MIN_GROUP_SHARE), "")
        if own[i] < MIN_SELF_SHARE
        else ""
        for i, s in enumerate(slots)
    ]
    return own, (*named, "")


def _enclosing_modules(fqn: str) -> list[str]:
    """Return the modules around a module, the smallest first; the last is (root)."""
    if fqn in RESERVED or fqn == ROOT:
        return []
    parts = fqn.split(".")
    return [*(".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)), ROOT]


def build_device_entries(
    books: DeviceAttribution, static_w: float | None, calls: dict[Slot, int | None], band: AccuracyBand | None
) -> tuple[Entry, ...]:
    """Return one entry for every slot with time or joules; `band` is the meter's."""
    rows = {slot: i for i, slot in enumerate(books.slots)}
    exact_j = _exact_energy_j(books)
    half_j = [None] * len(exact_j) if books.half_j is None else books.half_j.tolist()
    slot_entries = [
        add_band(
            _build_entry(books, i, float(exact_j[i]), static_w, calls.get(slot, 0), half_j[i]),
            band,
            Z90 * float(books.sd_j[i]),
        )
        for slot, i in rows.items()
        if books.time_s[i] > 0 or exact_j[i] != 0
    ]
    nobody = Slot(UNATTRIBUTED, "other")
    if books.unwatched_s > 0 and nobody not in rows:
        unrecorded = _unrecorded_entry(books, float(exact_j[-1]), static_w, half_j[-1])
        slot_entries.append(add_band(unrecorded, band))
    return tuple(slot_entries)


def _exact_energy_j(books: DeviceAttribution) -> FloatArray:
    """Return joules of slots, (idle) and unrecorded time; they add up to the curve's.

    Joules of unrecorded time join (unattributed) work of the device, if it has such a slot: one name, one row.
    """
    energy_j = np.append(books.energy_j, books.unwatched_j)
    nobody = Slot(UNATTRIBUTED, "other")
    if nobody in books.slots:
        energy_j[books.slots.index(nobody)] += books.unwatched_j
        energy_j[-1] = 0.0
    return absorb_rounding(energy_j, books.curve.total_j)


def _build_entry(
    books: DeviceAttribution, i: int, own_j: float, static_w: float | None, calls: int | None, half_j: float | None
) -> Entry:
    slot, curve = books.slots[i], books.curve
    time_s = float(books.time_s[i])
    joins = slot == Slot(UNATTRIBUTED, "other")
    entry = book_entry(
        curve.domain,
        slot,
        own_j,
        time_s + (books.unwatched_s if joins else 0.0),
        method="fit" if books.fit.fitted else "time_share",
        provenance="apportioned" if curve.provenance == "measured" else curve.provenance,
        static_j=None if static_w is None else static_w * time_s,
        interval_j=interval_around(own_j, half_j),
    )
    return replace(
        entry,
        calls=calls,
        carried_share=float(books.carried[i]),
        measured_share=float(books.measured[i]) if books.measured is not None else None,
        measured_in=books.measured_in[i],
        time_share_j=float(books.share_j[i]) if not joins else None,
    )


def _unrecorded_entry(books: DeviceAttribution, own_j: float, static_w: float | None, half_j: float | None) -> Entry:
    curve = books.curve
    return book_entry(
        curve.domain,
        Slot(UNATTRIBUTED, "other"),
        own_j,
        books.unwatched_s,
        method=curve.method,
        provenance=curve.provenance,
        static_j=None if static_w is None else static_w * books.unwatched_s,
        interval_j=interval_around(own_j, half_j),
    )
