"""Intervals of impacts: they follow from those of the inputs (JCGM 100:2008, 5.1), and so does the dominant input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import hypot

from torchwatt.audit.formula import evaluate
from torchwatt.audit.schema import Row
from torchwatt.audit.verification.bundle_facts import number, text
from torchwatt.audit.verification.finding import Code, Findings
from torchwatt.audit.verification.impact_inputs import ImpactInputs, Interval
from torchwatt.audit.verification.table_reader import is_same_number
from torchwatt.core.errors import BundleError

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
