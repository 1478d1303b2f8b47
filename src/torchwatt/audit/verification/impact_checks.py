"""Computes every impact again, and its interval from those of its inputs (JCGM 100:2008, 5.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import hypot, isfinite

from torchwatt.audit.formula import evaluate
from torchwatt.audit.schema import Row
from torchwatt.audit.verification import factor_checks
from torchwatt.audit.verification.bundle_facts import BundleFacts, number, text
from torchwatt.audit.verification.finding import Code, Findings
from torchwatt.audit.verification.impact_rows import AS_RUN, ImpactInputs, ImpactRowChecks, Interval, impact_key
from torchwatt.audit.verification.run_checks import ids_of
from torchwatt.audit.verification.table_reader import is_same_number
from torchwatt.core.errors import BundleError
from torchwatt.core.terms import PROVENANCES

INTERVAL_REL = 1e-9
Ends = tuple[float, float]
NOT_STATED = "not stated for"  # how dominant_uncertainty names the inputs without an interval


class ImpactIntervalChecks:
    """Computes the interval of each row again."""

    def __init__(self, file: str, inputs: ImpactInputs, findings: Findings) -> None:
        self.file = file
        self.inputs = inputs
        self.findings = findings

    def check(self, row: int, cells: Row) -> None:
        """Check that the value lies in its interval, and that the interval is that of the inputs."""
        self._value_inside(row, cells)
        if not self.inputs.facts.old:
            self._ends(row, cells)

    def _value_inside(self, row: int, cells: Row) -> None:
        lo, value, hi = (number(cells, name) for name in ("lo", "value", "hi"))
        if value is not None and ((lo is not None and lo > value) or (hi is not None and hi < value)):
            self._report("LAW", row, "value", "lies outside its own interval", f"{lo!r} to {hi!r}", value)

    def _ends(self, row: int, cells: Row) -> None:
        """Move each input to its ends alone, and add the deviations in quadrature (JCGM 100:2008, 5.1)."""
        formula = text(cells, "formula")
        try:
            names, ends = self.inputs.values_by_name(cells), self.inputs.intervals(cells)
            if cells["phase"] == "total":
                units = names["units"] if cells["criterion"] == "sci" else 1.0
                names, ends = self.inputs.values_of_parts(cells)
                formula = f"(usage+embodied)/{units!r}"
            value = evaluate(formula, names)
            moved = _move_inputs(lambda at: evaluate(formula, at), names, value, ends)
        except (BundleError, KeyError, OverflowError, ZeroDivisionError):
            return  # `ImpactChecks` reports it
        self._dominant(row, cells, moved or {}, ends)
        for column, expected_end in zip(("lo", "hi"), _combine_inputs(value, moved), strict=True):
            actual_end = number(cells, column)
            agree = (
                expected_end is actual_end
                if expected_end is None or actual_end is None
                else is_same_number(expected_end, actual_end, rel=INTERVAL_REL, scale=value)
            )
            if not agree:
                reason = "is not what the intervals of its inputs give"
                self._report(
                    "DERIVED", row, column, reason, "nothing" if expected_end is None else expected_end, actual_end
                )

    def _dominant(self, row: int, cells: Row, moved: Mapping[str, Ends], ends: Mapping[str, Interval]) -> None:
        """Compare the input that the interval mostly comes from; of inputs that move it alike, any will do."""
        stated = text(cells, "dominant_uncertainty")
        if not stated:
            return  # an empty cell contradicts nothing
        if cells["phase"] == "total":
            parts = [self.inputs.row_of_part(cells, name) for name in ("usage", "embodied")]
            stated_by_part = {name: text(part, "dominant_uncertainty") for name, part in zip(ends, parts, strict=True)}
            unstated = [stated_by_part[name] for name, (lo, _) in ends.items() if lo is None]
            expected = {"; ".join(unstated)} if unstated else {stated_by_part[name] for name in _largest(moved)}
        elif unstated := [name for name, (lo, hi) in ends.items() if lo is None or hi is None]:
            names = ", ".join(sorted(unstated))
            expected = {f"{NOT_STATED} {names}"}
            stated = f"{NOT_STATED} {', '.join(sorted(stated.removeprefix(NOT_STATED).strip().split(', ')))}"
        else:
            expected = set(_largest(moved)) | (set() if any(map(any, moved.values())) else {"duration_s"})
        if stated not in expected:
            reason = "is not the input that the interval mostly comes from"
            actual = cells["dominant_uncertainty"]
            self._report("DERIVED", row, "dominant_uncertainty", reason, " or ".join(sorted(expected)), actual)

    def _report(self, code: Code, row: int, column: str, reason: str, expected: object, actual: object) -> None:
        self.findings.add(code, self.file, reason, row=row, column=column, expected=expected, found=actual)


def _move_inputs(
    compute: Callable[[Mapping[str, float]], float],
    names: Mapping[str, float],
    value: float,
    ends: Mapping[str, Interval],
) -> dict[str, Ends] | None:
    """Return how far the two ends of each input move a result; None where an input states none."""
    moved: dict[str, Ends] = {}
    for name, (lo, hi) in ends.items():
        if lo is None or hi is None:
            return None
        moved[name] = compute({**names, name: lo}) - value, compute({**names, name: hi}) - value
    return moved


def _combine_inputs(value: float, moved: Mapping[str, Ends] | None) -> Interval:
    """Return the ends of a result, of deviations added in quadrature; None where an input states none."""
    if moved is None:
        return None, None
    low = hypot(*(min(*pair, 0.0) for pair in moved.values()))
    high = hypot(*(max(*pair, 0.0) for pair in moved.values()))
    return max(value - low, 0.0), value + high


def _largest(moved: Mapping[str, Ends]) -> list[str]:
    """Return the inputs that move a result furthest; several where they do so alike."""
    furthest = {name: max(map(abs, pair)) for name, pair in moved.items()}
    greatest = max(furthest.values(), default=0.0)
    return [name for name, moved_by in furthest.items() if moved_by >= greatest * (1 - INTERVAL_REL)]


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
