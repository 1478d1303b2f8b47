"""Split one host domain (CPU package, DRAM, RAM) over the slots of the trace."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import fsum

import numpy as np

from torchwatt.attribution.accuracy_bands import AccuracyBand, add_band
from torchwatt.attribution.host_fit import (
    LATENCIES_NS,
    HostFit,
    MeterLatency,
    SlotEnergy,
    apportion_intervals,
    estimate_latency,
    fit_host_power,
    fit_time_share,
)
from torchwatt.attribution.owned_intervals import (
    Exposure,
    OwnedIntervals,
    classify_gaps,
    compute_exposure,
    cut_by_owner,
    gap_slots,
)
from torchwatt.attribution.repeat_spread import (
    RepeatSpread,
    build_step_grid,
    estimate_repeat_spread,
    share_reading_error_j,
)
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.ledger import Entry, absorb_rounding, book_entry, interval_around
from torchwatt.core.meter import FloatArray, IntArray, Series
from torchwatt.core.terms import IDLE, OUTSIDE, Slot
from torchwatt.core.trace import ModuleInfo, Trace
from torchwatt.core.units import Z90

_INDEX_PATTERN = re.compile(r"(?<![^.])\d+(?![^.])")


def group_alike_slots(slots: Sequence[Slot], modules: Iterable[ModuleInfo]) -> IntArray:
    """Return a group number for each slot, the same for alike modules in one phase; -1: no other is alike."""
    module_by_name = {module.fqn: module for module in modules}
    kinds: dict[tuple[object, ...], list[int]] = {}
    for number, slot in enumerate(slots):
        module = module_by_name.get(slot.fqn)
        if module is not None and _INDEX_PATTERN.search(slot.fqn):
            place = _INDEX_PATTERN.sub("*", slot.fqn)
            key = (slot.phase, slot.stage, place, module.class_name, module.params, module.param_bytes)
            kinds.setdefault(key, []).append(number)
    group_of_slot = np.full(len(slots), -1, dtype=np.int64)
    for group, members in enumerate(members for members in kinds.values() if len(members) > 1):
        group_of_slot[members] = group
    return group_of_slot


def shrink_alike_energy(
    energy_j: FloatArray, sd_j: FloatArray, calls: FloatArray, group: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Return joules after shrinkage within groups, and their standard deviations.

    Args:
        energy_j: Joules of each slot.
        sd_j: Their independent errors, without errors common to all.
        calls: Calls of each slot; a group with an unknown number is unchanged.
        group: As `group_alike_slots` returns.
    """
    energy_j, sd_j = energy_j.copy(), sd_j.copy()
    for number in range(int(group.max(initial=-1)) + 1):
        mine = np.flatnonzero((group == number) & (energy_j > 0))
        if len(mine) < 2 or np.any(calls[mine] <= 0) or not np.all(sd_j[mine] > 0):
            continue
        energy_j[mine], sd_j[mine] = _shrink_group(energy_j[mine], sd_j[mine], calls[mine])
    return energy_j, sd_j


def _shrink_group(energy_j: FloatArray, sd_j: FloatArray, calls: FloatArray) -> tuple[FloatArray, FloatArray]:
    each, variance = energy_j / calls, (sd_j / calls) ** 2
    # The errors of small values are small because the values are: alike slots have one relative error, of their mean.
    variance = np.maximum(variance, float(np.median(variance)))
    moved, after = np.empty_like(each), np.empty_like(each)
    for level in _split_levels(each, variance):
        moved[level], after[level] = _shrink_level(each[level], variance[level])
        moved[level] *= fsum(energy_j[level]) / fsum(moved[level] * calls[level])
    return moved * calls, np.sqrt(after) * calls


def _split_levels(each: FloatArray, variance: FloatArray) -> list[IntArray]:
    """Cut values into significantly different levels: the first of equal blocks often does less, and is kept apart.

    Sorted values are cut in two where that explains most, as long as it explains more than cutting noise would.
    """
    todo, levels = [np.argsort(each, kind="stable")], []
    while todo:
        level = todo.pop()
        weight = np.cumsum(1.0 / variance[level])
        pull = np.cumsum(each[level] / variance[level])
        lower_weight, upper_weight = weight[:-1], weight[-1] - weight[:-1]
        explained = (
            lower_weight
            * upper_weight
            / weight[-1]
            * (pull[:-1] / lower_weight - (pull[-1] - pull[:-1]) / upper_weight) ** 2
        )
        if len(level) > 1 and explained.max() > _chance_limit(len(level)):
            cut = int(np.argmax(explained)) + 1
            todo += [level[:cut], level[cut:]]
        else:
            levels.append(level)
    return levels


def _chance_limit(count: int) -> float:
    """Return the 95 % limit of what the best cut of `count` equal values explains of their noise, in variances.

    The mean of Hartigan (Annals of Statistics 6, 1978), 2/pi each; the rest from draws of 2 to 200 values.
    """
    return 2.0 / np.pi * count + 1.65 * float(np.sqrt(count)) + 0.8


def _shrink_level(each: FloatArray, variance: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the shrunk values of one level, and their variances.

    Values are shrunk as far as chance (95 %) can explain their differences; the variances include the distance to the
    most likely values.
    """
    weight = 1.0 / variance
    mean = float(weight @ each / weight.sum())
    freedom = len(each) - 1
    least, usual = (_variance_between(each, variance, chance) for chance in (_chi_square_95(freedom), freedom))
    moved, likely = (mean + _shrinkage_factor(true, variance) * (each - mean) for true in (least, usual))
    retained = _shrinkage_factor(usual, variance)
    return moved, retained * variance + (1.0 - retained) ** 2 / weight.sum() + (likely - moved) ** 2


def _shrinkage_factor(true: float, variance: FloatArray) -> FloatArray:
    return true / (true + variance)


def _variance_between(each: FloatArray, variance: FloatArray, chance: float) -> float:
    """Return the variance of the true values around their mean, by moments; 0 where chance explains all differences.

    Args:
        each: Values.
        variance: Of their errors.
        chance: The weighted sum of squares attributed to errors.
    """
    weight = 1.0 / variance
    mean = weight @ each / weight.sum()
    surplus = float(weight @ (each - mean) ** 2) - chance
    spread = float(weight.sum() - (weight**2).sum() / weight.sum())
    return max(surplus / spread, 0.0) if spread > 0 else 0.0


def _chi_square_95(freedom: int) -> float:
    """Return the upper 5 % point of chi square (Wilson and Hilferty, 1931)."""
    if freedom == 0:
        return 0.0
    part = 2.0 / (9.0 * freedom)
    return float(freedom * (1.0 - part + 1.645 * np.sqrt(part)) ** 3)


LATENCY_TRIAL_NS = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class HostAttribution:
    """A curve, its slots, and the joules of each.

    `energy_j` is after shrinkage of alike modules; `spread` the spread between repeats, None where it cannot be
    estimated.
    """

    curve: EnergyCurve
    trace: Trace
    slots: tuple[Slot, ...]
    exposure: Exposure
    fit: HostFit
    booked: SlotEnergy
    energy_j: FloatArray
    fit_sd_j: FloatArray
    spread: RepeatSpread | None

    @property
    def interval_j(self) -> tuple[float, float] | tuple[None, None]:
        """Return the 90 % interval between repeats of the domain's joules."""
        half_j = None if self.spread is None else self.spread.total_half_j(self.curve.u_j)
        return interval_around(self.curve.total_j, half_j)

    def entries(self, static_w: float | None, band: AccuracyBand | None) -> tuple[Entry, ...]:
        """Return one entry for every slot with time or joules; `band` is the meter's."""
        time_s, energy_j = self.exposure.time_s(), absorb_rounding(self.energy_j, self.curve.total_j)
        carried, calls = self._carried_share(time_s), count_slot_calls(self.trace, self.curve, len(self.slots))
        reading_j = share_reading_error_j(self.curve, energy_j)
        half_j = self.spread.half_j(self.fit_sd_j, reading_j) if self.spread is not None else None
        measured = self.curve.provenance == "measured"
        rows = []
        for i in np.flatnonzero((time_s > 0) | (energy_j != 0)).tolist():
            own_j, own_s = float(energy_j[i]), float(time_s[i])
            entry = book_entry(
                self.curve.domain,
                self.slots[i],
                own_j,
                own_s,
                method=self.fit.method if measured else "load_model",
                provenance="apportioned" if measured else self.curve.provenance,
                static_j=None if static_w is None else static_w * own_s,
                interval_j=interval_around(own_j, None if half_j is None else float(half_j[i])),
            )
            own_calls = None if i in self.trace.untold_calls else int(calls[i])
            entry = replace(entry, calls=own_calls, carried_share=float(carried[i]))
            rows.append(add_band(entry, band, self._unknown_j(i)))
        return tuple(rows)

    def _carried_share(self, time_s: FloatArray) -> FloatArray:
        carried_s = self.exposure.carried_s()
        return np.divide(carried_s, time_s, out=np.zeros_like(time_s), where=time_s > 0)

    def _unknown_j(self, i: int) -> float:
        """Return half the 90 % interval of the slot's joules against the true value, in every repeat.

        The fit's own uncertainty; where time is shared, the usual spread of layers' powers.
        """
        return Z90 * float(self.booked.sd_j[i]) if self.booked.sd_j is not None else 0.0


def count_slot_calls(trace: Trace, curve: EnergyCurve, slots: int) -> FloatArray:
    """Count the calls of each slot inside the curve."""
    overlaps = (trace.end_ns > curve.start_ns) & (trace.start_ns < curve.end_ns)
    return np.asarray(np.bincount(trace.slot[overlaps], trace.calls[overlaps], slots), dtype=np.float64)


def attribute_host(curve: EnergyCurve, trace: Trace, process_cpu: Series | None) -> HostAttribution:
    """Fit the power of every slot to the curve and book the curve's joules."""
    curve = merge_constant_intervals(curve) if curve.provenance == "measured" else curve
    slots = (*trace.slots, *gap_slots(trace))
    idle = np.array([slot.fqn in {IDLE, OUTSIDE} for slot in slots])
    # One cut that reaches back far enough for every lag; time before the first span is outside.
    cut = cut_by_owner(trace, curve.start_ns - max(LATENCIES_NS) - 2 * LATENCY_TRIAL_NS, curve.end_ns)
    named = classify_gaps(cut, trace, process_cpu)
    group = group_alike_slots(slots, trace.modules)
    if curve.provenance == "measured":
        lag = estimate_latency(curve, named, idle)
        exposure, fit, booked = _fit_and_apportion(curve, named, idle, group, lag.ns)
        if fit.method == "fit":
            booked = _add_latency_error(
                booked, _fit_and_apportion(curve, named, idle, group, lag.ns + LATENCY_TRIAL_NS)[2], lag
            )
    else:
        exposure = compute_exposure(named, curve.t_ns, curve.energy_j, len(slots), curve.unheard())
        fit = fit_time_share(exposure, idle, "the load model has no per-layer information")
        booked = apportion_intervals(exposure, fit)
    grid = build_step_grid(curve, trace, len(slots))
    by_step = compute_exposure(named, grid.t_ns, curve.at(grid.t_ns), len(slots))
    spread = estimate_repeat_spread(by_step, fit.power_w, grid, slots, trace.carry_rel_sd)
    energy_j, fit_j = booked.energy_j, booked.sampling_j
    if spread is not None:
        errors_j = np.hypot(spread.traced_sd_j, fit_j)
        energy_j, after_j = shrink_alike_energy(energy_j, errors_j, count_slot_calls(trace, curve, len(slots)), group)
        less = _divide(after_j, errors_j)
        spread, fit_j = spread.rescale(_divide(energy_j, booked.energy_j), less), fit_j * less
    return HostAttribution(curve, trace, slots, exposure, fit, booked, energy_j, fit_j, spread)


def _divide(after: FloatArray, before: FloatArray) -> FloatArray:
    return np.divide(after, before, out=np.ones_like(before), where=before > 0)


def merge_constant_intervals(curve: EnergyCurve) -> EnergyCurve:
    """Merge intervals in which the meter did not move with the next in which it did; at the end with the one before.

    A metered device always draws power: the joules of these intervals were published later, or never. Silent intervals
    are kept: merged ones lie between two of them.
    """
    unheard = curve.unheard()
    still = np.concatenate(([False], (np.diff(curve.energy_j) == 0) & ~unheard))  # of the interval before each point
    bound = np.concatenate((unheard, [True])) | np.concatenate(([True], unheard))
    keep = ~still | bound
    for end in np.flatnonzero(still & bound).tolist():  # constant at the end of a part
        latest_move = int(np.flatnonzero(keep[:end])[-1])  # the point of its latest move
        keep[latest_move] = bound[latest_move]
    if keep.all():
        return curve
    return replace(curve, t_ns=curve.t_ns[keep], energy_j=curve.energy_j[keep])


def _fit_and_apportion(
    curve: EnergyCurve, named: OwnedIntervals, idle: np.ndarray, group: IntArray, lag_ns: int
) -> tuple[Exposure, HostFit, SlotEnergy]:
    exposure = compute_exposure(named, curve.t_ns - lag_ns, curve.energy_j, len(idle), curve.unheard())
    fit = fit_host_power(exposure, idle, group)
    return exposure, fit, apportion_intervals(exposure, fit)


def _add_latency_error(booked: SlotEnergy, later: SlotEnergy, lag: MeterLatency) -> SlotEnergy:
    """Add the error of the lag, common to all slots: the change of each slot's joules for one more millisecond."""
    if booked.sd_j is None:
        return booked
    moved_j = (later.energy_j - booked.energy_j) * (lag.sd_ns / LATENCY_TRIAL_NS)
    return replace(booked, sd_j=np.asarray(np.hypot(booked.sd_j, moved_j), dtype=np.float64))
