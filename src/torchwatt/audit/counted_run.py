"""Input and result of deduplication: devices and time of a run, and the share of its energy that sums include."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

State = Literal["yes", "shared", "copy", "part of a job", "unidentified", "overlapping"]
ADDED: frozenset[str] = frozenset({"yes", "shared"})
NOTHING: frozenset[str] = frozenset({"copy", "part of a job"})  # all of their energy is counted in another run

FAMILIES: Mapping[str, str] = {"core": "cpu", "uncore": "cpu", "dram": "memory", "ram": "memory"}


@dataclass(frozen=True, slots=True)
class Counter:
    """First and last reading of a counter in a run, in units of the counter; the last one is unwrapped.

    `modulus_raw` is the value at which the counter wraps; 0 if it never wraps.
    """

    start_raw: int
    end_raw: int
    unit_j: float
    modulus_raw: int


@dataclass(frozen=True, slots=True)
class CountedDevice:
    """Energy of one device in the total of a run; `key` identifies the device and `machine` its host, empty if unknown.

    With scope `process`, the key identifies the process, and the energy is its share of the device.
    """

    device_id: str
    kind: str
    energy_j: float
    key: str = ""
    machine: str = ""
    scope: str = "device"
    counter: Counter | None = None

    @property
    def family(self) -> str:
        """Return the kind, with one common name for kinds whose meters can include the same joules."""
        return FAMILIES.get(self.kind, self.kind)


@dataclass(frozen=True, slots=True)
class CountedRun:
    """Input of `count_once` for one run; times are ns since 1970 (UTC).

    Args:
        name: Unique among the runs that are counted together.
        contained: Pairs of device keys (inner, container).
        sources: The runs of the ranks that a job was merged from.
        overlaps: The run has an event about another session on its devices.
    """

    name: str
    run_id: str
    start_ns: int
    end_ns: int
    duration_s: float
    devices: tuple[CountedDevice, ...] = ()
    contained: tuple[tuple[str, str], ...] = ()
    sources: tuple[str, ...] = ()
    overlaps: bool = False


@dataclass(frozen=True, slots=True)
class RunShare:
    """Part of a run that sums include.

    `energy_j` is the energy that no other run counts, None if nothing was metered; `shares` is the counted fraction of
    the energy of each device. `seconds` is the time of the run outside runs that metered the same energy, so the sum
    over runs is the length of the union of their intervals. `neighbours` names those runs.
    """

    state: State
    told_j: float | None  # as the run reports it
    energy_j: float | None
    seconds: float
    shares: Mapping[str, float] = field(default_factory=dict)
    neighbours: tuple[str, ...] = ()
    identified: bool = True  # False: a device has no key, so it may also be metered by another run

    @property
    def share(self) -> float:
        """Return the fraction of the run's energy, and so of its impacts, in sums."""
        if self.state in NOTHING:
            return 0.0
        return self.energy_j / self.told_j if self.energy_j is not None and self.told_j else 1.0
