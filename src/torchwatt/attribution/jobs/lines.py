"""Map the curves of a job's meters to the job's clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import fsum, sqrt

import numpy as np

from torchwatt.attribution.jobs.clocks import Clock
from torchwatt.attribution.jobs.meters import Group
from torchwatt.core.curve import EnergyCurve
from torchwatt.core.terms import Domain


def curve_of(group: Group, clock: Mapping[str, Clock]) -> EnergyCurve | None:
    """Return the device's curve, or the sum of the shares that its ranks modelled."""
    machine_clock = clock[group.host]
    if not group.added:
        curve = group.holder.curve
        return None if curve is None else _moved(curve, group.domain, machine_clock)
    curves = [_moved(view.curve, group.domain, machine_clock) for view in group.looks if view.curve is not None]
    return _sum(curves) if curves else None


def _moved(curve: EnergyCurve, domain: Domain, clock: Clock) -> EnergyCurve:
    """Map a curve to the job's clock; points that coincide there are merged."""
    t_ns = clock.shift(curve.t_ns)
    keep = np.concatenate(([True], np.diff(t_ns) > 0))
    keep[-1] = True
    silent = tuple((clock.one(lo), clock.one(hi)) for lo, hi in curve.silent)
    return replace(curve, domain=domain, t_ns=t_ns[keep], energy_j=curve.energy_j[keep], silent=silent)


def _sum(curves: Sequence[EnergyCurve]) -> EnergyCurve:
    """Add curves of several processes: each is constant before its start and after its end."""
    if len(curves) == 1:
        return curves[0]
    t_ns = np.unique(np.concatenate([curve.t_ns for curve in curves]))
    energy_j = np.sum([curve.at(t_ns) - curve.at(t_ns[:1]) for curve in curves], axis=0)
    first_curve = curves[0]
    return EnergyCurve(
        first_curve.domain,
        t_ns,
        np.maximum.accumulate(energy_j - energy_j[0]),
        first_curve.method,
        first_curve.provenance,
        sqrt(fsum(curve.u_j**2 for curve in curves)),
        None,
        tuple(sorted({hole for curve in curves for hole in curve.silent})),
    )
