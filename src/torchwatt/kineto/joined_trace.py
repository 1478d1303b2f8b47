"""The result of a join: activities, and how much of the work has an owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from torchwatt.core.intervals import busy_shares_ns
from torchwatt.core.terms import Slot
from torchwatt.core.trace import Activity, ModuleInfo
from torchwatt.core.units import NS_PER_S

Outcome = Literal[
    "module-forward", "module-backward", "recompute", "optimizer", "data", "communication", "transfer",
    "scope", "op", "outside", "orphan", "graph",
]  # fmt: skip

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
OUTCOME_CODES: Mapping[Outcome, int] = {outcome: i for i, outcome in enumerate(OUTCOMES)}
OUTCOME_MEANINGS: Mapping[Outcome, str] = {
    "module-forward": "launched inside a module's call",
    "module-backward": "launched by an autograd node of a module's call",
    "recompute": "a module called again inside backward (activation checkpoint)",
    "optimizer": "launched inside an optimizer's step or zero_grad",
    "data": "launched inside a data loader",
    "communication": "a collective operation between devices",
    "transfer": "a copy between host and device outside modules",
    "scope": "launched inside a named range, or by an autograd node of one",
    "op": "no module and no range: named by the operator",
    "outside": "launched where no name is known",
    "orphan": "launched before the trace began",
    "graph": "replayed from a graph whose capture was not seen: booked to what encloses the replay",
}
NAMED_OUTCOMES: tuple[Outcome, ...] = (
    "module-forward", "module-backward", "recompute", "optimizer", "data", "communication", "transfer", "scope",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class JoinedTrace:
    """A trace's device records with a module and a phase each, and the evidence for them.

    Times by outcome are sums of durations, of kernels in `kernel_ns` and of copies and fills in `copy_ns`: amounts of
    work. `busy_ns`, the union of a device's records, is how long it was busy.
    """

    source: str
    rank: int | None
    activities: tuple[Activity, ...]
    records: int
    kernel_ns: Mapping[Outcome, int]
    copy_ns: Mapping[Outcome, int]
    busy_ns: Mapping[str, int]  # by device
    labels: str  # how labels were found
    clock: str  # "base", "unix" or "unknown", as in `KinetoTrace`
    offset_ns: int  # added to the trace's times
    lost: int  # launches whose record is missing
    modules: tuple[ModuleInfo, ...] = ()
    notes: tuple[str, ...] = ()
    device_names: tuple[tuple[str, str], ...] = ()  # model by device, from the trace
    annotations: frozenset[str] = frozenset()  # labels of named ranges on the host, stages among them

    @property
    def total_kernel_ns(self) -> int:
        """Return the sum of all kernels' durations in the trace."""
        return sum(self.kernel_ns.values())

    def share(self, *outcomes: Outcome) -> float:
        """Return the part of kernel time with these outcomes; 0 without kernels."""
        total = self.total_kernel_ns
        return sum(self.kernel_ns[outcome] for outcome in outcomes) / total if total else 0.0

    @property
    def named_share(self) -> float:
        """Return the part of kernel time that has a module, a reserved row or a named range."""
        return self.share(*NAMED_OUTCOMES)


@dataclass(frozen=True, slots=True)
class TimeRow:
    """One layer in one phase: its share of the device's busy time, and its records."""

    slot: Slot
    busy_s: float
    records: int


def busy_timetable(activity: Activity) -> tuple[TimeRow, ...]:
    """Return one row per slot, longest first; records that run at the same time share it, so that rows add up."""
    share = busy_shares_ns(activity.start_ns, activity.end_ns)
    busy = np.bincount(activity.slot, share, len(activity.slots)) / NS_PER_S
    count = np.bincount(activity.slot, minlength=len(activity.slots))
    rows = [TimeRow(slot, float(busy[i]), int(count[i])) for i, slot in enumerate(activity.slots)]
    return tuple(sorted(rows, key=lambda row: (-row.busy_s, row.slot.fqn, row.slot.phase, row.slot.stage)))
