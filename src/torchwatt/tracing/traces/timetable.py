"""Tabulate how long each layer kept a device busy, where energy is not available."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchwatt.core.activity import Activity
from torchwatt.core.terms import Slot
from torchwatt.core.units import NS_PER_S
from torchwatt.tracing.traces.busy import shares_ns


@dataclass(frozen=True, slots=True)
class TimeRow:
    """One layer in one phase: its share of the device's busy time, and its records."""

    slot: Slot
    busy_s: float
    records: int


def timetable(activity: Activity) -> tuple[TimeRow, ...]:
    """Return one row per slot, longest first; records that run at the same time share it, so that rows add up."""
    share = shares_ns(activity.start_ns, activity.end_ns)
    busy = np.bincount(activity.slot, share, len(activity.slots)) / NS_PER_S
    count = np.bincount(activity.slot, minlength=len(activity.slots))
    rows = [TimeRow(slot, float(busy[i]), int(count[i])) for i, slot in enumerate(activity.slots)]
    return tuple(sorted(rows, key=lambda row: (-row.busy_s, row.slot.fqn, row.slot.phase)))
