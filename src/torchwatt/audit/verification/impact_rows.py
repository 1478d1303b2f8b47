"""Which rows `impact` must have: for the run and each device that counts, totals, no scenario twice, one scope."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from torchwatt.audit.verification import factor_checks
from torchwatt.audit.verification.bundle_facts import number, text
from torchwatt.audit.verification.finding import Code, Findings
from torchwatt.audit.verification.impact_inputs import ImpactInputs, ImpactKey

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
