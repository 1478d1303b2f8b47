"""Which rows `impact` must have, and what their formulas refer to: joules, factors, hourly means, intervals."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from math import fsum

from torchwatt.audit.schema import Row
from torchwatt.audit.verification import factor_checks
from torchwatt.audit.verification.bundle_facts import BundleFacts, number, text
from torchwatt.audit.verification.finding import Code, Findings
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


AS_RUN = "as_run"
_SCENARIO = re.compile(r"as_run|repriced:[A-Za-z0-9][A-Za-z0-9._-]*")
_CONTENT = ("subject", "criterion", "phase", "accounting_method", "value", "formula", "factor_ids")


class ImpactRowChecks:
    """Checks which rows there are, scenario by scenario."""

    def __init__(self, file: str, inputs: ImpactInputs, findings: Findings) -> None:
        self.file = file
        self.facts = inputs.facts
        self.inputs = inputs
        self.findings = findings

    def finish(self) -> None:
        """Check all rows together."""
        if not self.facts.old:
            self._complete()
        self._scenarios()
        self._scopes()

    def _report(  # a finding about a row
        self, code: Code, row: int | None, column: str, reason: str, expected: object = "", actual: object = ""
    ) -> None:
        self.findings.add(code, self.file, reason, row=row, column=column, expected=expected, found=actual)

    def _complete(self) -> None:
        """Check that the run and every counted device has its row of usage, and totals where both parts exist."""
        groups: dict[ImpactKey, dict[str, int]] = defaultdict(dict)
        for row, cells in self.facts.impacts:
            if text(cells, "subject").partition(":")[0] in {"run", "device"} and cells["criterion"] != "energy":
                group = tuple(text(cells, name) for name in ("scenario", "criterion", "accounting_method", "phase"))
                groups[group][text(cells, "subject")] = row
        metered = {f"device:{name}" for name, row in self.facts.counted.items() if row["energy_j"] is not None}
        everything = metered | ({"run"} if self.facts.run["energy_it_j"] is not None else set())
        for group, subjects in groups.items():
            scenario, criterion, method, phase = group
            if phase == "usage":
                self._report_missing(group, everything - subjects.keys(), subjects)
            elif phase == "embodied":
                self._report_missing(group, set() if "run" in subjects else {"run"}, subjects)
                self._devices(subjects)
            for subject, row in subjects.items():
                if phase == "usage":
                    self._totals(row, subject, (scenario, criterion, method))

    def _report_missing(self, group: ImpactKey, missing: set[str], subjects: Mapping[str, int]) -> None:
        scenario, criterion, method, phase = group
        for subject in sorted(missing):
            reason = f"{subject} has no row of {criterion}, {phase}, {method}, {scenario}"
            self._report("REFERENCE", min(subjects.values()), "subject", reason, subject, ";".join(sorted(subjects)))

    def _devices(self, subjects: Mapping[str, int]) -> None:
        """Check that the run's embodied formula has as many devices as have rows."""
        row = subjects.get("run")
        if row is None:
            return
        cells = next(cells for number_, cells in self.facts.impacts if number_ == row)
        in_formula, rows = factor_checks.count_devices(text(cells, "formula")), len(subjects) - 1
        if in_formula != rows:
            self._report("FORMULA", row, "formula", "is not about as many devices as have rows", rows, in_formula)

    def _totals(self, row: int, subject: str, group: ImpactKey) -> None:
        scenario, criterion, method = group
        if (subject, criterion, "na", scenario, "embodied") not in self.inputs.rows:
            return
        needed_keys = [(subject, criterion, method, scenario, "total")]
        units = number(self.facts.run, "functional_unit_count") or 0.0
        if (subject, criterion, method) == ("run", "gwp", "location") and units > 0:
            needed_keys.append((subject, "sci", method, scenario, "total"))
        for key in needed_keys:
            if key not in self.inputs.rows:
                described = f"{key[1]}, total, {method}, {scenario}"
                self._report(
                    "REFERENCE",
                    row,
                    "subject",
                    f"{subject} has usage and embodied, and no row of {described}",
                    described,
                    "none",
                )

    def _scenarios(self) -> None:
        """Check names of scenarios, and that none repeats another."""
        contents: dict[str, set[tuple[object, ...]]] = defaultdict(set)
        first_rows: dict[str, int] = {}
        for row, cells in self.facts.impacts:
            scenario = text(cells, "scenario")
            first_rows.setdefault(scenario, row)
            contents[scenario].add(tuple(cells[name] for name in _CONTENT))
        for scenario, row in first_rows.items():
            if not _SCENARIO.fullmatch(scenario):
                self._report("LAW", row, "scenario", "is no scenario", "as_run, or repriced:NAME", scenario)
            elif scenario != AS_RUN and not self.facts.repriced:
                reason = "was priced again, and the first manifest is not in the bundle"
                self._report("LAW", row, "scenario", reason, "original.MANIFEST.sha256", "no such file")
            same_as = [
                earlier
                for earlier, rows in contents.items()
                if first_rows[earlier] < row and rows == contents[scenario]
            ]
            if same_as:
                self._report("KEY", row, "scenario", f"repeats every row of {same_as[0]}", "other factors", scenario)

    def _scopes(self) -> None:
        """Check that rows of one phase and method have one scope."""
        scopes: dict[ImpactKey, object] = {}
        for row, cells in self.facts.impacts:
            group = tuple(text(cells, name) for name in ("criterion", "phase", "accounting_method", "scenario"))
            if scopes.setdefault(group, cells["ghg_scope"]) != cells["ghg_scope"]:
                self._report(
                    "LAW", row, "ghg_scope", "is another than that of its neighbours", scopes[group], cells["ghg_scope"]
                )
