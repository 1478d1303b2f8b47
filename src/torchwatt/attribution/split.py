"""Split one host domain (CPU package, DRAM, RAM) over the slots of the trace."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import fsum

import numpy as np

from torchwatt.attribution.alike import alike_groups, share_strength
from torchwatt.attribution.apportion import Booked, apportion
from torchwatt.attribution.bands import Band, add_band
from torchwatt.attribution.exposure import Exposure, expose
from torchwatt.attribution.fit import Fit, fit_power, share_by_time
from torchwatt.attribution.gaps import GAP_SLOTS, name_gaps
from torchwatt.attribution.lag import LAGS_NS, Lag, best_lag
from torchwatt.attribution.repeats import Spread, grid_of, reading_shares_j, spread_of
from torchwatt.attribution.timeline import Pieces, pieces
from torchwatt.core.curve import EnergyCurve
from torchwatt.core.ledger import Entry
from torchwatt.core.meter import FloatArray, IntArray, Series
from torchwatt.core.report import Z90
from torchwatt.core.terms import IDLE, OUTSIDE, Slot
from torchwatt.core.trace import Trace

TRIAL_NS = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """A curve, its slots, and the joules of each.

    `energy_j` is after shrinkage of alike modules; `spread` the spread between repeats, None where it cannot be
    estimated.
    """

    curve: EnergyCurve
    trace: Trace
    slots: tuple[Slot, ...]
    exposure: Exposure
    fit: Fit
    booked: Booked
    energy_j: FloatArray
    fit_sd_j: FloatArray
    spread: Spread | None

    @property
    def interval_j(self) -> tuple[float, float] | tuple[None, None]:
        """Return the 90 % interval between repeats of the domain's joules."""
        if self.spread is None:
            return None, None
        total_j, half_j = self.curve.total_j, self.spread.total_half_j(self.curve.u_j)
        return max(total_j - half_j, 0.0), total_j + half_j

    def entries(self, static_w: float | None, band: Band | None) -> tuple[Entry, ...]:
        """Return one entry for every slot with time or joules; `band` is the meter's."""
        time_s, energy_j = self.exposure.time_s(), self._exact_j()
        carried, calls = self._carried_share(time_s), calls_of(self.trace, self.curve, len(self.slots))
        reading_j = reading_shares_j(self.curve, energy_j)
        half_j = self.spread.half_j(self.fit_sd_j, reading_j) if self.spread is not None else None
        return tuple(
            add_band(
                self._entry(
                    i,
                    float(energy_j[i]),
                    float(time_s[i]),
                    None if i in self.trace.untold_calls else int(calls[i]),
                    half_j=float(half_j[i]) if half_j is not None else None,
                    static_j=min(static_w * float(time_s[i]), float(energy_j[i])) if static_w is not None else None,
                    carried=float(carried[i]),
                ),
                band,
                self._unknown_j(i),
            )
            for i in np.flatnonzero((time_s > 0) | (energy_j != 0)).tolist()
        )

    def _entry(
        self,
        i: int,
        own_j: float,
        time_s: float,
        calls: int | None,
        *,
        half_j: float | None,
        static_j: float | None,
        carried: float,
    ) -> Entry:
        measured = self.curve.provenance == "measured"
        return Entry(
            domain=self.curve.domain,
            fqn=self.slots[i].fqn,
            phase=self.slots[i].phase,
            energy_self_j=own_j,
            energy_self_lo_j=max(own_j - half_j, 0.0) if half_j is not None else None,
            energy_self_hi_j=own_j + half_j if half_j is not None else None,
            energy_static_j=static_j,
            energy_dynamic_j=own_j - static_j if static_j is not None else None,
            time_self_s=time_s,
            calls=calls,
            method=self.fit.method if measured else "load_model",
            provenance="apportioned" if measured else self.curve.provenance,
            carried_share=carried,
        )

    def _exact_j(self) -> FloatArray:
        """Return the joules, with the rounding error of their sum added to the largest slot."""
        energy_j = self.energy_j.copy()
        energy_j[int(np.argmax(energy_j))] += self.curve.total_j - fsum(energy_j)
        return energy_j

    def _carried_share(self, time_s: FloatArray) -> FloatArray:
        carried_s = self.exposure.carried_s()
        return np.divide(carried_s, time_s, out=np.zeros_like(time_s), where=time_s > 0)

    def _unknown_j(self, i: int) -> float:
        """Return half the 90 % interval of the slot's joules against the true value, in every repeat.

        The fit's own uncertainty; where time is shared, the usual spread of layers' powers.
        """
        return Z90 * float(self.booked.sd_j[i]) if self.booked.sd_j is not None else 0.0


def calls_of(trace: Trace, curve: EnergyCurve, slots: int) -> FloatArray:
    """Count the calls of each slot inside the curve."""
    overlaps = (trace.end_ns > curve.start_ns) & (trace.start_ns < curve.end_ns)
    return np.asarray(np.bincount(trace.slot[overlaps], trace.calls[overlaps], slots), dtype=np.float64)


def split(curve: EnergyCurve, trace: Trace, process_cpu: Series | None) -> Split:
    """Fit the power of every slot to the curve and book the curve's joules."""
    curve = moving(curve) if curve.provenance == "measured" else curve
    slots = (*trace.slots, *GAP_SLOTS)
    idle = np.array([slot.fqn in {IDLE, OUTSIDE} for slot in slots])
    # One cut that reaches back far enough for every lag; time before the first span is outside.
    cut = pieces(trace, curve.start_ns - max(LAGS_NS) - 2 * TRIAL_NS, curve.end_ns)
    named = name_gaps(cut, trace, process_cpu)
    group = alike_groups(slots, trace.modules)
    if curve.provenance == "measured":
        lag = best_lag(curve, named, idle)
        exposure, fit, booked = _booked(curve, named, idle, group, lag.ns)
        if fit.method == "fit":
            booked = _with_lag(booked, _booked(curve, named, idle, group, lag.ns + TRIAL_NS)[2], lag)
    else:
        exposure = expose(named, curve.t_ns, curve.energy_j, len(slots), curve.unheard())
        fit = share_by_time(exposure, idle, "the load model has no per-layer information")
        booked = apportion(exposure, fit)
    grid = grid_of(curve, trace, len(slots))
    by_step = expose(named, grid.t_ns, curve.at(grid.t_ns), len(slots))
    spread = spread_of(by_step, fit.power_w, grid, slots, trace.carry_rel_sd)
    energy_j, fit_j = booked.energy_j, booked.sampling_j
    if spread is not None:
        errors_j = np.hypot(spread.traced_sd_j, fit_j)
        energy_j, after_j = share_strength(energy_j, errors_j, calls_of(trace, curve, len(slots)), group)
        less = _ratio(after_j, errors_j)
        spread, fit_j = spread.rescaled(_ratio(energy_j, booked.energy_j), less), fit_j * less
    return Split(curve, trace, slots, exposure, fit, booked, energy_j, fit_j, spread)


def _ratio(after: FloatArray, before: FloatArray) -> FloatArray:
    return np.divide(after, before, out=np.ones_like(before), where=before > 0)


def moving(curve: EnergyCurve) -> EnergyCurve:
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


def _booked(
    curve: EnergyCurve, named: Pieces, idle: np.ndarray, group: IntArray, lag_ns: int
) -> tuple[Exposure, Fit, Booked]:
    exposure = expose(named, curve.t_ns - lag_ns, curve.energy_j, len(idle), curve.unheard())
    fit = fit_power(exposure, idle, group)
    return exposure, fit, apportion(exposure, fit)


def _with_lag(booked: Booked, later: Booked, lag: Lag) -> Booked:
    """Add the error of the lag, common to all slots: the change of each slot's joules for one more millisecond."""
    if booked.sd_j is None:
        return booked
    moved_j = (later.energy_j - booked.energy_j) * (lag.sd_ns / TRIAL_NS)
    return replace(booked, sd_j=np.asarray(np.hypot(booked.sd_j, moved_j), dtype=np.float64))
