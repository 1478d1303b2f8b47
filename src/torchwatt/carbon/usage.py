"""Input of `price`: the energy of a run and of its devices, by hour if known, and its time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from torchwatt.core.hours import hour_start
from torchwatt.core.terms import Provenance


@dataclass(frozen=True, slots=True)
class Subject:
    """The run (`run`) or one device (`device:gpu:0`), with its energy.

    `lo_j` and `hi_j` are the 90 % interval of `energy_j`, None if the meter states none. `hourly_j` maps hours since
    1970 (UTC) to energies with the sum `energy_j`; empty if only the sum is known.
    """

    name: str
    energy_j: float
    provenance: Provenance
    lo_j: float | None = None
    hi_j: float | None = None
    hourly_j: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """The subjects of one run, and its time: `hours` are all hours since 1970 (UTC) in which it ran."""

    subjects: tuple[Subject, ...]
    duration_s: float
    hours: tuple[int, ...]
    unit: str = "run"
    units: float = 1.0
    unit_provenance: Provenance = "assumed"
    start: datetime | None = None  # None: only `hours` are known
    end: datetime | None = None

    @property
    def time(self) -> tuple[datetime, datetime]:
        """Return start and end; if unknown, those of the first and the last hour."""
        return self.start or hour_start(min(self.hours)), self.end or hour_start(max(self.hours) + 1)

    def subject(self, name: str) -> Subject | None:
        """Return a subject by name."""
        return next((s for s in self.subjects if s.name == name), None)


@dataclass(frozen=True, slots=True)
class Note:
    """A note for the reader of the impacts; `code` is a stable identifier."""

    severity: str  # info, warning or error
    code: str
    message: str
