"""What the formulas of `impact` refer to: joules of subjects, factors, hourly means, parts of totals, intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from math import fsum

from torchwatt.audit.schema import Row
from torchwatt.audit.verification import factor_checks
from torchwatt.audit.verification.bundle_facts import BundleFacts, number, text
from torchwatt.audit.verification.run_checks import ids_of

ImpactKey = tuple[str, ...]  # subject, criterion, accounting_method, scenario, phase
Interval = tuple[float | None, float | None]


class ImpactInputs:
    """Resolves the names in the formulas of a bundle's impacts."""

    def __init__(self, facts: BundleFacts) -> None:
        self.facts = facts
        self.rows = {impact_key(row, text(row, "phase")): row for _, row in facts.impacts}
        self.values = {key: number(row, "value") for key, row in self.rows.items()}

    def values_by_name(self, cells: Row) -> dict[str, float]:
        """Return what the names of a formula stand for; see `impact.formula` in the schema."""
        run = self.facts.run
        embodied_cells = {**cells, "accounting_method": "na"}
        values = {
            "energy_j": self._energy_j(text(cells, "subject")),
            "duration_s": self.facts.duration_s(),
            "units": number(run, "functional_unit_count"),
            "usage": self.values.get(impact_key(cells, "usage")),
            "embodied": self.values.get(impact_key(embodied_cells, "embodied")),
        }
        device = self.facts.devices.get(text(cells, "subject").removeprefix("device:"))
        if device is not None:
            values |= {name: number(device, name) for name in ("share_ratio", "reserved_s")}
        return {name: value for name, value in values.items() if value is not None} | self._factors(cells)

    def _energy_j(self, subject: str) -> float | None:
        kind, _, name = subject.partition(":")
        if subject == "run":
            return number(self.facts.run, "energy_it_j")
        if kind == "device":
            return number(self.facts.devices.get(name, {}), "energy_j")
        if kind == "window" and name.isdecimal() and int(name) in self.facts.windows:
            return self.facts.windows[int(name)].energy_j
        if kind == "layer" and name in self.facts.fqn_j and self.facts.fqn_j[name].parts:
            return self.facts.fqn_j[name].value
        return None

    def _factors(self, cells: Row) -> dict[str, float]:
        used = [row for name in ids_of(cells) if (row := self.facts.factors.get(name)) is not None]
        kinds = Counter(text(row, "kind") for row in used)
        by_name: dict[str, float] = {}
        for kind, n in kinds.items():
            rows = [row for row in used if row["kind"] == kind]
            values = [number(row, "value") or 0.0 for row in rows]
            if n == 1 and rows[0]["temporal_resolution"] != "hour":
                by_name[kind] = values[0]
                continue
            by_name |= {f"{kind}_{index}": value for index, value in enumerate(values, 1)}
            mean = self.hourly_mean(text(cells, "subject"), rows, "value")
            if mean is not None:
                by_name[kind] = mean
        return by_name

    def hourly_mean(self, subject: str, rows: list[Row], column: str) -> float | None:
        """Return the mean of the factors, weighted with the subject's joules in the hours for which they hold.

        None where an hour has no factor, or two.
        """
        hours = self._hours(subject)
        parts, weights = [], []
        for hour, joules in hours.items():
            values = [number(row, column) for row in rows if _holds(row, hour)]
            value = values[0] if len(values) == 1 else None
            if value is None:
                return None
            parts.append(joules * value)
            weights.append(joules)
        return fsum(parts) / fsum(weights) if fsum(weights) > 0 else None

    def _hours(self, subject: str) -> Mapping[datetime, float]:
        if subject.startswith("device:"):
            return self.facts.hourly_j.get(subject.removeprefix("device:"), {})
        if subject != "run":
            return {}
        joules_by_hour: dict[datetime, list[float]] = {}
        for name in self.facts.counted:
            for hour, joules in self.facts.hourly_j.get(name, {}).items():
                joules_by_hour.setdefault(hour, []).append(joules)
        return {hour: fsum(joules) for hour, joules in sorted(joules_by_hour.items())}

    def intervals(self, cells: Row) -> dict[str, Interval]:
        """Return the interval of each name of a formula that has one; the run's time is exact."""
        subject = text(cells, "subject")
        row = self.facts.run if subject == "run" else self.facts.devices.get(subject.removeprefix("device:"), {})
        start = "energy_it" if subject == "run" else "energy"
        intervals: dict[str, Interval] = {}
        if cells["phase"] == "usage":
            intervals["energy_j"] = number(row, f"{start}_systematic_lo_j"), number(row, f"{start}_systematic_hi_j")
        used = [factor for name in ids_of(cells) if (factor := self.facts.factors.get(name)) is not None]
        kinds = [text(factor, "kind") for factor in used]
        for name, factor, kind in zip(factor_checks.formula_names(kinds), used, kinds, strict=True):
            same_kind = [each for each in used if each["kind"] == kind]
            if cells["phase"] == "usage" and len(same_kind) > 1:
                lo, hi = (self.hourly_mean(subject, same_kind, end) for end in ("lo", "hi"))
                intervals[kind] = (lo, hi)
            else:
                intervals[name] = number(factor, "lo"), number(factor, "hi")
        return intervals

    def row_of_part(self, cells: Row, phase: str) -> Row:
        """Return the row of usage or of embodied that a total or a score adds up."""
        criterion = "gwp" if cells["criterion"] == "sci" else text(cells, "criterion")
        method = text(cells, "accounting_method") if phase == "usage" else "na"
        return self.rows[impact_key({**cells, "criterion": criterion, "accounting_method": method}, phase)]

    def values_of_parts(self, cells: Row) -> tuple[dict[str, float], dict[str, Interval]]:
        """Return the values and the intervals of the rows that a total adds up, by phase."""
        rows = {phase: self.row_of_part(cells, phase) for phase in ("usage", "embodied")}
        values = {name: number(row, "value") or 0.0 for name, row in rows.items()}
        return values, {name: (number(row, "lo"), number(row, "hi")) for name, row in rows.items()}

    def energy_provenance(self, subject: str) -> str:
        """Return the provenance of a subject's joules; "" for windows and layers."""
        if subject.startswith("device:"):
            return text(self.facts.devices.get(subject.removeprefix("device:"), {}), "provenance")
        return text(self.facts.run, "energy_it_provenance") if subject == "run" else ""


def impact_key(cells: Row, phase: str) -> ImpactKey:
    """Return the key of a subject's row of one criterion, method and scenario, in a phase."""
    return (*(text(cells, name) for name in ("subject", "criterion", "accounting_method", "scenario")), phase)


def _holds(factor: Row, hour: datetime) -> bool:
    begin, end = factor["valid_from"], factor["valid_to"]
    if not isinstance(begin, datetime):
        return False
    until = end if isinstance(end, datetime) else begin + timedelta(hours=1)
    return begin.astimezone(UTC) <= hour < until.astimezone(UTC)
