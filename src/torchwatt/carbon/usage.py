"""What is priced: joules of subjects, by hour where that is known, and how long they took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from torchwatt.core.hours import hour_start
from torchwatt.core.terms import Provenance


@dataclass(frozen=True, slots=True)
class Subject:
    """One thing with joules: `run`, or `device:gpu:0`.

    `lo_j` and `hi_j` are the 90 % interval of `energy_j`, None where the meter states none. `hourly_j` maps hours
    since 1970 (UTC) to joules that add up to `energy_j`; empty where only the total is known.
    """

    name: str
    energy_j: float
    provenance: Provenance
    lo_j: float | None = None
    hi_j: float | None = None
    hourly_j: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """The subjects of one run; `hours` are all hours of UTC that it touched, `start` and `end` when it was."""

    subjects: tuple[Subject, ...]
    duration_s: float
    hours: tuple[int, ...]
    unit: str = "run"
    units: float = 1.0
    unit_provenance: Provenance = "assumed"
    start: datetime | None = None  # None: known by its hours only
    end: datetime | None = None

    @property
    def time(self) -> tuple[datetime, datetime]:
        """Return when the run was."""
        return self.start or hour_start(min(self.hours)), self.end or hour_start(max(self.hours) + 1)

    def subject(self, name: str) -> Subject | None:
        """Return a subject by name."""
        return next((s for s in self.subjects if s.name == name), None)


@dataclass(frozen=True, slots=True)
class Note:
    """Something that the reader of the grams must know; `code` is stable."""

    severity: str  # info, warning or error
    code: str
    message: str
