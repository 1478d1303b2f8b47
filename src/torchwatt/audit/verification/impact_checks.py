"""Computes every impact again: by the schema's formula, from the subject's joules, factors and PUE."""

from __future__ import annotations

from math import isfinite

from torchwatt.audit.formula import evaluate
from torchwatt.audit.schema import Row
from torchwatt.audit.verification import factor_checks
from torchwatt.audit.verification.bundle_facts import BundleFacts, number, text
from torchwatt.audit.verification.finding import Code, Findings
from torchwatt.audit.verification.impact_inputs import ImpactInputs, impact_key
from torchwatt.audit.verification.impact_intervals import ImpactIntervalChecks
from torchwatt.audit.verification.impact_rows import AS_RUN, ImpactRowChecks
from torchwatt.audit.verification.run_checks import ids_of
from torchwatt.audit.verification.table_reader import is_same_number
from torchwatt.core.errors import BundleError
from torchwatt.core.terms import PROVENANCES


class ImpactChecks:
    """Checks `impact` once everything that it is made of is known."""

    def __init__(self, file: str, facts: BundleFacts, findings: Findings) -> None:
        self.file = file
        self.facts = facts
        self.findings = findings
        self.inputs = ImpactInputs(facts)
        self.intervals = ImpactIntervalChecks(file, self.inputs, findings)

    def finish(self) -> None:
        """Check every row, and which rows there are."""
        if self.facts.broken & {"run", "device", "factor", "impact"}:
            return
        for row, cells in self.facts.impacts:
            self._value(row, cells)
            self._formula(row, cells)
            self._words(row, cells)
            self.intervals.check(row, cells)
        ImpactRowChecks(self.file, self.inputs, self.findings).finish()

    def _report(  # a finding about a row
        self, code: Code, row: int | None, column: str, reason: str, expected: object = "", actual: object = ""
    ) -> None:
        self.findings.add(code, self.file, reason, row=row, column=column, expected=expected, found=actual)

    def _value(self, row: int, cells: Row) -> None:
        value, formula = number(cells, "value"), text(cells, "formula")
        if value is None:
            return
        try:
            expected = evaluate(formula, self.inputs.values_by_name(cells))
        except (BundleError, OverflowError) as error:
            self._report("FORMULA", row, "formula", f"cannot be computed: {error}", "", "")
            return
        if not isfinite(expected) or not is_same_number(expected, value):
            self._report("FORMULA", row, "value", f"{formula} with {text(cells, 'factor_ids')}", expected, value)
        per_unit, units = number(cells, "per_unit_value"), number(self.facts.run, "functional_unit_count")
        if per_unit is not None and (not units or not is_same_number(value / units, per_unit)):
            again = value / units if units else "nothing"
            self._report("DERIVED", row, "per_unit_value", "is not value/run.functional_unit_count", again, per_unit)

    def _formula(self, row: int, cells: Row) -> None:
        """Compare the formula with the one that the schema fixes for a row of these factors."""
        criterion, phase, formula = text(cells, "criterion"), text(cells, "phase"), text(cells, "formula")
        kinds = [text(self.facts.factors[name], "kind") for name in ids_of(cells) if name in self.facts.factors]
        expected: tuple[str, ...]
        if phase == "usage":
            distinct = tuple(dict.fromkeys(kinds))
            expected = factor_checks.usage_formulas(criterion, distinct)
            self._pue(row, cells, distinct)
        elif phase == "embodied":
            if not factor_checks.is_embodied(criterion, formula, kinds):
                written = f"duration_s/{factor_checks.S_PER_YEAR}*...*(embodied_{criterion}*share/lifetime+...)"
                self._report(
                    "FORMULA", row, "formula", "is not the schema's for this row and its factors", written, formula
                )
            return
        else:
            expected = self._sum(cells)
        if formula not in expected:
            written = " or ".join(expected) or "factors of this criterion"
            self._report(
                "FORMULA", row, "formula", "is not the schema's for this row and its factors", written, formula
            )

    def _sum(self, cells: Row) -> tuple[str, ...]:
        """Return the formula of a total or a score: usage plus embodied of the same subject."""
        criterion = "gwp" if cells["criterion"] == "sci" else text(cells, "criterion")
        usage = self.inputs.rows.get(impact_key({**cells, "criterion": criterion}, "usage"))
        embodied = self.inputs.rows.get(
            impact_key({**cells, "criterion": criterion, "accounting_method": "na"}, "embodied")
        )
        if usage is None or embodied is None:
            return ()
        total = f"{usage['formula']}+{embodied['formula']}"
        return (f"({total})/units",) if cells["criterion"] == "sci" else (total,)

    def _pue(self, row: int, cells: Row, kinds: tuple[str, ...]) -> None:
        """Check that rows of usage have the run's PUE; repriced ones may have another."""
        declared = text(self.facts.run, "pue_factor_id")
        if cells["criterion"] == "energy" or (cells["criterion"] == "wcf" and "grid_wue" not in kinds):
            return
        if declared and "pue" not in kinds and not self.facts.old:
            self._report("FORMULA", row, "factor_ids", "the PUE of the run is left out", declared, cells["factor_ids"])
        used = [name for name in ids_of(cells) if self.facts.factors.get(name, {}).get("kind") == "pue"]
        if cells["scenario"] == AS_RUN and used and used != [declared]:
            self._report("FORMULA", row, "factor_ids", "its PUE is not the run's", declared or "none", ";".join(used))

    def _words(self, row: int, cells: Row) -> None:
        """Check unit, method, zone and provenance."""
        unit = factor_checks.UNIT_OF_CRITERION.get(text(cells, "criterion"))
        if cells["criterion"] == "sci":
            unit = f"g{{CO2e}}/{{{self.facts.run['functional_unit']}}}"
        factors = [self.facts.factors[name] for name in ids_of(cells) if name in self.facts.factors]
        if cells["criterion"] == "cost":  # in the currency of its price
            unit = next((text(f, "unit").partition("/")[0] for f in factors if f["kind"] == "price"), None)
        if unit is not None and cells["unit"] != unit:
            self._report("LAW", row, "unit", "of this criterion", unit, cells["unit"])
        methods = {text(factor, "accounting_method") for factor in factors} - {""}
        if methods and cells["accounting_method"] not in methods:
            self._report(
                "KNOWN", row, "accounting_method", "is not that of its factors", ";".join(sorted(methods)),
                cells["accounting_method"],
            )  # fmt: skip
        zones = {text(factor, "zone") for factor in factors if text(factor, "kind") in factor_checks.GRIDS} - {""}
        if len(zones) > 1:
            self._report("LAW", row, "factor_ids", "are of several grids", "one zone", ";".join(sorted(zones)))
        if cells["u"] is not None and not self.facts.old:
            self._report(
                "LAW", row, "u", "is stated, and the interval says how well it is known", "nothing", cells["u"]
            )
        inputs = [text(factor, "provenance") for factor in factors]
        inputs += [self.inputs.energy_provenance(text(cells, "subject"))]
        weakest = max((PROVENANCES.index(provenance) for provenance in inputs if provenance in PROVENANCES), default=0)
        stated = list[str](PROVENANCES).index(text(cells, "weakest_input"))
        if stated < weakest:
            self._report(
                "KNOWN", row, "weakest_input", "better known than what it is made of", PROVENANCES[weakest],
                cells["weakest_input"],
            )  # fmt: skip
        if cells["provenance"] == "measured":
            self._report("KNOWN", row, "provenance", "nothing computed is measured", "derived", "measured")
