"""The result of a join: activities, and how much of the work has an owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torchwatt.core.activity import Activity
from torchwatt.core.trace import ModuleInfo

Outcome = Literal[
    "module-forward", "module-backward", "recompute", "optimizer", "data", "communication", "transfer",
    "scope", "op", "outside", "orphan", "graph",
]  # fmt: skip

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
CODE: Mapping[Outcome, int] = {outcome: i for i, outcome in enumerate(OUTCOMES)}
MEANING: Mapping[Outcome, str] = {
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
NAMED: tuple[Outcome, ...] = (
    "module-forward", "module-backward", "recompute", "optimizer", "data", "communication", "transfer", "scope",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
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
    clock: str  # "base", "unix" or "unknown", as in `Kineto`
    offset_ns: int  # added to the trace's times
    lost: int  # launches whose record is missing
    modules: tuple[ModuleInfo, ...] = ()
    notes: tuple[str, ...] = ()
    device_names: tuple[tuple[str, str], ...] = ()  # model by device, from the trace

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
        return self.share(*NAMED)
