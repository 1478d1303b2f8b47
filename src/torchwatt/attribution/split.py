"""Split one host domain (CPU package, DRAM, RAM) over the slots of the trace."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import fsum

import numpy as np

from torchwatt.attribution.apportion import Z90, Booked, apportion
from torchwatt.attribution.exposure import Exposure, expose
from torchwatt.attribution.fit import Fit, fit_power, share_by_time
from torchwatt.attribution.gaps import GAP_SLOTS, name_gaps
from torchwatt.attribution.lag import LAGS_NS, Lag, best_lag
from torchwatt.attribution.timeline import Pieces, pieces
from torchwatt.core.curve import EnergyCurve
from torchwatt.core.ledger import Entry
from torchwatt.core.meter import FloatArray, Series
from torchwatt.core.terms import IDLE, OUTSIDE, Slot
from torchwatt.core.trace import Trace

TRIAL_NS = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """A curve, the slots that could own its joules, and what each got."""

    curve: EnergyCurve
    trace: Trace
    slots: tuple[Slot, ...]
    exposure: Exposure
    fit: Fit
    booked: Booked

    def entries(self, static_w: float | None) -> tuple[Entry, ...]:
        """Make one entry for every slot that had time or joules."""
        time_s, energy_j = self.exposure.time_s(), self._exact_j()
        carried, sd_j, calls = self._carried_share(time_s), self._sd_j(time_s), self._calls()
        return tuple(
            self._entry(
                i,
                float(energy_j[i]),
                float(time_s[i]),
                int(calls[i]),
                sd_j=float(sd_j[i]) if sd_j is not None else None,
                static_j=min(static_w * float(time_s[i]), float(energy_j[i])) if static_w is not None else None,
                carried=float(carried[i]),
            )
            for i in np.flatnonzero((time_s > 0) | (energy_j != 0)).tolist()
        )

    def _entry(
        self,
        i: int,
        own_j: float,
        time_s: float,
        calls: int,
        *,
        sd_j: float | None,
        static_j: float | None,
        carried: float,
    ) -> Entry:
        measured = self.curve.provenance == "measured"
        return Entry(
            domain=self.curve.domain,
            fqn=self.slots[i].fqn,
            phase=self.slots[i].phase,
            energy_self_j=own_j,
            energy_self_lo_j=max(own_j - Z90 * sd_j, 0.0) if sd_j is not None else None,
            energy_self_hi_j=max(min(own_j + Z90 * sd_j, self.curve.total_j), own_j) if sd_j is not None else None,
            energy_static_j=static_j,
            energy_dynamic_j=own_j - static_j if static_j is not None else None,
            time_self_s=time_s,
            calls=calls,
            method=self.fit.method if measured else "load_model",
            provenance="apportioned" if measured else self.curve.provenance,
            carried_share=carried,
        )

    def _exact_j(self) -> FloatArray:
        """Give the last bits that summation rounded away to the largest slot."""
        energy_j = self.booked.energy_j.copy()
        energy_j[int(np.argmax(energy_j))] += self.curve.total_j - fsum(energy_j)
        return energy_j

    def _carried_share(self, time_s: FloatArray) -> FloatArray:
        carried_s = self.exposure.carried_s()
        return np.divide(carried_s, time_s, out=np.zeros_like(time_s), where=time_s > 0)

    def _sd_j(self, time_s: FloatArray) -> FloatArray | None:
        """Add the uncertainty of shares carried over from traced windows to that of the fit."""
        if self.booked.sd_j is None:
            return None
        rel = np.zeros(len(time_s))
        for slot, sd in self.trace.carry_rel_sd.items():
            rel[slot] = sd
        carried_j = self.booked.energy_j * self._carried_share(time_s)
        return np.asarray(np.hypot(self.booked.sd_j, rel * carried_j), dtype=np.float64)

    def _calls(self) -> np.ndarray:
        trace, curve = self.trace, self.curve
        inside = (trace.end_ns > curve.start_ns) & (trace.start_ns < curve.end_ns)
        return np.bincount(trace.slot[inside], trace.calls[inside], len(self.slots))


def split(curve: EnergyCurve, trace: Trace, process_cpu: Series | None) -> Split:
    """Fit the power of every slot to the curve and book the curve's joules."""
    curve = moving(curve) if curve.provenance == "measured" else curve
    slots = (*trace.slots, *GAP_SLOTS)
    idle = np.array([slot.fqn in {IDLE, OUTSIDE} for slot in slots])
    # One cut that reaches back far enough for every lag; what lies before the first span is outside.
    cut = pieces(trace, curve.start_ns - max(LAGS_NS) - 2 * TRIAL_NS, curve.end_ns)
    named = name_gaps(cut, trace, process_cpu)
    if curve.provenance == "measured":
        lag = best_lag(curve, named, idle)
        exposure, fit, booked = _booked(curve, named, idle, lag.ns)
        if fit.method == "fit":
            booked = _with_lag(booked, _booked(curve, named, idle, lag.ns + TRIAL_NS)[2], lag)
    else:
        exposure = expose(named, curve.t_ns, curve.energy_j, len(slots), curve.unheard())
        fit = share_by_time(exposure, idle, "a model of load knows no layers")
        booked = apportion(exposure, fit)
    return Split(curve, trace, slots, exposure, fit, booked)


def moving(curve: EnergyCurve) -> EnergyCurve:
    """Join intervals in which the meter did not move to the next one in which it did, at the end to the one before.

    What is metered draws power all the time: these joules were read later, or never, and what ran meanwhile was not
    free. Silences, of which nothing is known, stay as they are: what is joined lies between two of them.
    """
    unheard = curve.unheard()
    still = np.concatenate(([False], (np.diff(curve.energy_j) == 0) & ~unheard))  # into each point
    bound = np.concatenate((unheard, [True])) | np.concatenate(([True], unheard))
    keep = ~still | bound
    for end in np.flatnonzero(still & bound).tolist():  # it stood still at the end of a stretch
        last = int(np.flatnonzero(keep[:end])[-1])  # the point of its latest move
        keep[last] = bound[last]
    if keep.all():
        return curve
    return replace(curve, t_ns=curve.t_ns[keep], energy_j=curve.energy_j[keep])


def _booked(curve: EnergyCurve, named: Pieces, idle: np.ndarray, lag_ns: int) -> tuple[Exposure, Fit, Booked]:
    exposure = expose(named, curve.t_ns - lag_ns, curve.energy_j, len(idle), curve.unheard())
    fit = fit_power(exposure, idle)
    return exposure, fit, apportion(exposure, fit)


def _with_lag(booked: Booked, later: Booked, lag: Lag) -> Booked:
    """Add what a wrong lag would do to every slot at once: the change of its joules for one more millisecond."""
    if booked.sd_j is None:
        return booked
    moved_j = (later.energy_j - booked.energy_j) * (lag.sd_ns / TRIAL_NS)
    return replace(booked, sd_j=np.asarray(np.hypot(booked.sd_j, moved_j), dtype=np.float64))
