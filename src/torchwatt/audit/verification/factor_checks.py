"""Checks factors: id (hash of the row), unit and value of their kind, dates, and that a row uses each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from torchwatt.audit.schema import Row
from torchwatt.audit.verification.bundle_facts import BundleFacts, number, text
from torchwatt.audit.verification.finding import Findings
from torchwatt.audit.verification.run_checks import ids_of
from torchwatt.core.factor import content_id

FILE = "factor.csv"
UNITS: Mapping[str, str] = {
    "grid_gwp": "g{CO2e}/kW.h", "contract_gwp": "g{CO2e}/kW.h", "residual_mix": "g{CO2e}/kW.h",
    "grid_adpe": "kg{Sbeq}/kW.h", "grid_pe": "MJ/kW.h", "grid_wue": "L/kW.h", "pue": "1", "wue": "L/kW.h",
    "embodied_gwp": "kg{CO2e}", "embodied_adpe": "kg{Sbeq}", "embodied_pe": "MJ", "lifetime": "a", "share": "1",
}  # fmt: skip
BOUNDS: Mapping[str, tuple[float, float]] = {"pue": (1.0, 100.0), "share": (0.0, 1.0)}
MARKET_KINDS = frozenset({"contract_gwp", "residual_mix"})
OUTSIDE_OF_DATES = "applied outside of its dates"
BY_USER = "declared by the user"
HOUR = timedelta(hours=1)


class FactorChecks:
    """Checks `factor` once the impacts are known."""

    def __init__(self, facts: BundleFacts, findings: Findings) -> None:
        self.facts = facts
        self.findings = findings

    def finish(self) -> None:
        """Check every factor."""
        if self.facts.broken & {"factor", "impact"}:
            return
        used = {name for _, cells in self.facts.impacts for name in ids_of(cells)}
        used |= {text(self.facts.run, "pue_factor_id")}
        for device, row in self.facts.devices.items():
            embodied = text(row, "embodied_factor_id")
            used.add(embodied)
            if embodied and not text(self.facts.factors.get(embodied, {}), "kind").startswith("embodied_"):
                self.findings.add(
                    "LAW", "device.csv", "is no factor of a device's making", row=self.facts.device_rows[device],
                    column="embodied_factor_id", expected="embodied_...", found=embodied,
                )  # fmt: skip
        for name, row in self.facts.factors.items():
            self._id(name, row)
            self._value(name, row)
            self._words(name, row)
            self._times(name, row)
            self._run(name, row)
            if name not in used:
                self._report(
                    name, "REFERENCE", "factor_id", "no row of impact.csv uses it: rows are missing", "a row", "none"
                )

    def _report(
        self, name: str, code: str, column: str, reason: str, expected: object = "", actual: object = ""
    ) -> None:
        row = self.facts.factor_rows[name]
        self.findings.add(code, FILE, reason, row=row, column=column, expected=expected, found=actual)  # type: ignore[arg-type]

    def _id(self, name: str, row: Row) -> None:
        expected = content_id(text(row, "kind"), row)
        if name != expected and not self.facts.old:
            self._report(name, "DERIVED", "factor_id", "is not the hash of what the row says", expected, name)

    def _value(self, name: str, row: Row) -> None:
        kind, value, lo, hi = text(row, "kind"), number(row, "value"), number(row, "lo"), number(row, "hi")
        if value is None:
            return
        unit = UNITS.get(kind)
        if unit is not None and row["unit"] != unit:
            self._report(name, "LAW", "unit", f"of {kind}", unit, row["unit"])
        least, greatest = BOUNDS.get(kind, (0.0, float("inf")))
        if not least <= value <= greatest or (kind == "lifetime" and value == 0):
            self._report(name, "LAW", "value", f"is no {kind}", f"{least:g} to {greatest:g}", value)
        if (lo is not None and lo > value) or (hi is not None and hi < value):
            self._report(name, "LAW", "value", "lies outside its own interval", f"{lo!r} to {hi!r}", value)

    def _words(self, name: str, row: Row) -> None:
        """Check the method of contracts (market) and the provenance of factors without a source (declared)."""
        market = text(row, "kind") in MARKET_KINDS or row["perspective"] in {"contract", "residual"}
        if market and row["accounting_method"] != "market":
            self._report(
                name,
                "LAW",
                "accounting_method",
                "a contract and a residual mix are market-based",
                "market",
                row["accounting_method"],
            )
        sourced = row["provenance"] in {"sourced", "measured"}
        if sourced and (row["source_name"] == BY_USER or not (row["source_url"] or row["source_sha256"])):
            self._report(
                name, "KNOWN", "provenance", "names no source that could be looked up", "declared", row["provenance"]
            )

    def _run(self, name: str, row: Row) -> None:
        """Check that a factor holds at the time of the run, or that `coverage_note` says that it does not."""
        begun, ended = self.facts.run.get("started_at"), self.facts.run.get("ended_at")
        if self.facts.old or not isinstance(begun, datetime) or not isinstance(ended, datetime):
            return
        for column, late in (("valid_from", False), ("valid_to", True)):
            edge, noted = row[column], OUTSIDE_OF_DATES in text(row, "coverage_note")
            if row["temporal_resolution"] == "hour":  # the hour of the run's begin or end lies over its edge
                continue
            if isinstance(edge, datetime) and not noted and (ended > edge if late else begun < edge):
                reason = "does not hold at the time of the run, and coverage_note does not say so"
                self._report(name, "LAW", column, reason, f"{begun} to {ended}", edge)

    def _times(self, name: str, row: Row) -> None:
        begin, end, year = row["valid_from"], row["valid_to"], number(row, "data_year")
        if not isinstance(begin, datetime):
            return
        if isinstance(end, datetime) and end <= begin:
            self._report(name, "LAW", "valid_to", "is not after valid_from", f"after {begin}", end)
        if row["temporal_resolution"] != "hour":
            return
        if isinstance(end, datetime) and end - begin > HOUR:
            self._report(name, "LAW", "valid_to", "holds for more than its hour", begin + HOUR, end)
        if year is not None and abs(year - begin.year) > 1:
            self._report(name, "LAW", "data_year", "is not the year of its hour", begin.year, int(year))


S_PER_YEAR = 31_557_600  # UCUM's "a"
USAGE: Mapping[str, frozenset[str]] = {  # criterion -> kinds of grid factors
    "gwp": frozenset({"grid_gwp", "contract_gwp", "residual_mix"}),
    "adpe": frozenset({"grid_adpe"}),
    "pe": frozenset({"grid_pe"}),
    "cost": frozenset({"price"}),
}
GRIDS = frozenset[str]().union(*USAGE.values()) - {"price"}
UNIT_OF_CRITERION = {"gwp": "g{CO2e}", "adpe": "kg{Sbeq}", "pe": "MJ", "wcf": "L", "energy": "J"}
_EMBODIED_KINDS: Mapping[str, tuple[str, str]] = {  # criterion -> kind, and from its unit to the row's
    "gwp": ("embodied_gwp", "1000"),
    "adpe": ("embodied_adpe", "1"),
    "pe": ("embodied_pe", "1"),
}
_TERM = re.compile(r"(?:([0-9]{1,6})\*)?(embodied_[a-z]+(?:_[0-9]+)?)\*(share(?:_[0-9]+)?)/(lifetime(?:_[0-9]+)?)")


def usage_formulas(criterion: str, kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the formulas that a row of usage may have, with factors of these kinds in the order of `factor_ids`."""
    pue = "pue*" if "pue" in kinds else ""
    if criterion == "energy":
        return ("energy_j", "energy_j*pue") if "pue" in kinds else ("energy_j",)
    if criterion == "wcf":
        grid = f"{pue}grid_wue" if "grid_wue" in kinds else ""
        terms = [term for term in ("wue" if "wue" in kinds else "", grid) if term]
        return (f"energy_j/3.6e6*({'+'.join(terms)})",) if terms else ()
    grids = [kind for kind in dict.fromkeys(kinds) if kind in USAGE.get(criterion, ())]
    other_kinds = set(kinds) - set(grids) - {"pue"}
    return (f"energy_j/3.6e6*{pue}{grids[0]}",) if len(grids) == 1 and not other_kinds else ()


def is_embodied(criterion: str, formula: str, kinds: Sequence[str]) -> bool:
    """Return whether a formula amortises embodied impacts over lifetimes and uses each factor of the row."""
    kind, scale = _EMBODIED_KINDS.get(criterion, ("", ""))
    head = f"duration_s/{S_PER_YEAR}*{scale}*("
    if not kind or not formula.startswith(head) or not formula.endswith(")"):
        return False
    terms = [_TERM.fullmatch(term) for term in formula[len(head) : -1].split("+")]
    if not all(terms):
        return False
    used = {name for term in terms if term for name in term.groups()[1:]}
    return used == set(formula_names(kinds)) and {_kind(name) for name in used} == {kind, "share", "lifetime"}


def count_devices(formula: str) -> int:
    """Return how many devices the terms of an embodied formula stand for."""
    return sum(int(term[1] or 1) for term in _TERM.finditer(formula))


def formula_names(kinds: Iterable[str]) -> list[str]:
    """Return the names of factors in a formula: their kind, numbered if several are of one kind."""
    listed = list(kinds)
    counts, numbers, formula_terms = Counter(listed), Counter[str](), []
    for kind in listed:
        numbers[kind] += 1
        formula_terms.append(kind if counts[kind] == 1 else f"{kind}_{numbers[kind]}")
    return formula_terms


def _kind(name: str) -> str:
    return re.sub(r"_[0-9]+$", "", name)
