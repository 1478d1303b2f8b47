"""A distributed job: the place of each rank, the facts that merging ranks needs, and the energy of each rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import fsum
from typing import Literal

from torchwatt.core.ledger import Entry
from torchwatt.core.terms import COMMUNICATION, Phase

Launcher = Literal["torchrun", "slurm", "environment", "torch.distributed"]
ClockMethod = Literal["same_clock", "store", "wall_clock"]
RankStatus = Literal["complete", "partial", "aborted", "running", "missing"]


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Place of a process in its job: `rank` of `world_size`, `local_rank` of `local_world_size` on its node."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    job: str
    launcher: Launcher

    @property
    def is_node_leader(self) -> bool:
        """Return whether this rank meters the devices that its node's ranks share."""
        return self.local_rank == 0


@dataclass(frozen=True, slots=True)
class HostShare:
    """CPU seconds of one slot of a rank, by which the rank's share of its machine's energy is divided among layers."""

    fqn: str
    phase: Phase
    cpu_s: float
    time_s: float
    calls: int | None  # None: not known
    carried_share: float = 0.0
    stage: str = ""


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """One comparison with the clock of rank 0: its clock = ours + `offset_ns`, with an error of at most `bound_ns`."""

    t_ns: int
    offset_ns: int
    bound_ns: int


@dataclass(frozen=True, slots=True)
class RankFacts:
    """Facts of a rank that merging needs beside its report. `host` identifies the boot of the machine.

    `devices` maps the domains that the rank metered to the hashed identity of the device, `numbers` to the driver's
    index of it. `own` lists the domains that only this rank uses, `shared` those that it metered for all ranks of its
    machine. `cpu_s` and `host_busy_s` are CPU seconds during the run: of the rank, and of its whole machine.
    """

    place: RankPlace
    host: str
    run_id: str
    start_ns: int = 0  # monotonic; the same instant in unix time is start_unix_ns
    start_unix_ns: int = 0
    devices: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    cpu: tuple[tuple[int, float], ...] = ()  # (t_ns, CPU seconds so far), thinned
    host_busy_s: float | None = None
    host_shares: tuple[HostShare, ...] = ()
    clock: tuple[ClockOffset, ...] = ()  # comparisons with rank 0's clock
    ended: bool = False  # False in the file that is written at the start and never again by a rank that was killed

    @property
    def cpu_s(self) -> float | None:
        """Return the CPU seconds of the rank; None if unknown."""
        return self.cpu[-1][1] - self.cpu[0][1] if self.cpu else None


@dataclass(frozen=True, slots=True)
class RankPart:
    """Energy of one rank of a merged job; the job's ledgers include its entries.

    Times are on the job's clock; `clock_bound_ns` bounds their error, None if unknown. A rank without files has status
    `missing` and no entries.
    """

    rank: int
    node: int | None
    local_rank: int | None
    host: str
    status: RankStatus
    reason: str = ""
    run_id: str = ""
    start_ns: int | None = None
    end_ns: int | None = None
    cpu_s: float | None = None
    host_busy_s: float | None = None  # of its machine, where this rank metered it
    step_count: int = 0
    clock_method: ClockMethod | None = None
    clock_bound_ns: int | None = None
    entries: tuple[Entry, ...] = ()

    @property
    def energy_j(self) -> float | None:
        """Return the rank's joules; None if none of its devices was metered."""
        return fsum(entry.energy_self_j for entry in self.entries) if self.entries else None

    @property
    def duration_s(self) -> float | None:
        """Return how long the rank ran."""
        return None if self.start_ns is None or self.end_ns is None else (self.end_ns - self.start_ns) / 1e9

    @property
    def communication_j(self) -> float | None:
        """Return the joules of collectives; None if the rank has no entry of that kind."""
        collectives_j = [e.energy_self_j for e in self.entries if e.fqn == COMMUNICATION or e.phase == "communication"]
        return fsum(collectives_j) if collectives_j else None
