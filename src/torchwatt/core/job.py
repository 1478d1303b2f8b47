"""A job of several processes: who a rank is, what it must tell so that ranks can be put together, and what it used."""

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
class Place:
    """Where one process stands in its job: `rank` of `world_size`, `local_rank` of `local_world_size` on its node."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    job: str
    launcher: Launcher

    @property
    def leads(self) -> bool:
        """Return whether this rank meters what its whole node shares."""
        return self.local_rank == 0


@dataclass(frozen=True, slots=True)
class HostShare:
    """CPU seconds of one slot of a rank: how the rank's part of its machine's joules is cut into layers."""

    fqn: str
    phase: Phase
    cpu_s: float
    time_s: float
    calls: int | None  # None: not known
    carried_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Look:
    """One look at another machine's clock: add `offset_ns` to ours to get theirs, wrong by `bound_ns` at most."""

    t_ns: int
    offset_ns: int
    bound_ns: int


@dataclass(frozen=True, slots=True)
class RankFacts:
    """What a rank tells beside its report. `host` names the machine (its boot), not the node's number.

    `devices` maps the domains that the rank metered to the identity of the device behind each, hashed, `numbers` to
    the driver's own number of it; `own` are the domains that are this rank's alone, `shared` those that it metered for
    every rank of its machine. `cpu_s` and `host_busy_s` are CPU seconds during the run: of the rank, and of everything
    on its machine.
    """

    place: Place
    host: str
    run_id: str
    start_ns: int = 0  # monotonic, and where that is in the world
    start_unix_ns: int = 0
    devices: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    cpu: tuple[tuple[int, float], ...] = ()  # (t_ns, CPU seconds so far), thinned
    host_busy_s: float | None = None
    host_shares: tuple[HostShare, ...] = ()
    clock: tuple[Look, ...] = ()  # of rank 0's clock
    ended: bool = False  # False in the file that is written at the start and never again by a rank that was killed

    @property
    def cpu_s(self) -> float | None:
        """Return the CPU seconds of the rank; None where they are not known."""
        return self.cpu[-1][1] - self.cpu[0][1] if self.cpu else None


@dataclass(frozen=True, slots=True)
class RankPart:
    """What one rank of a merged job used: its entries are inside the job's ledgers, never beside them.

    Times are on the job's clock; `clock_bound_ns` says how wrong they may be, None where nobody knows. A rank that
    left nothing is here too, with status `missing` and no entries.
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
        """Return the rank's joules; None where nothing of it was metered."""
        return fsum(entry.energy_self_j for entry in self.entries) if self.entries else None

    @property
    def duration_s(self) -> float | None:
        """Return how long the rank ran."""
        return None if self.start_ns is None or self.end_ns is None else (self.end_ns - self.start_ns) / 1e9

    @property
    def communication_j(self) -> float | None:
        """Return what went into collectives; None where the rank has no such row."""
        collectives_j = [e.energy_self_j for e in self.entries if e.fqn == COMMUNICATION or e.phase == "communication"]
        return fsum(collectives_j) if collectives_j else None
