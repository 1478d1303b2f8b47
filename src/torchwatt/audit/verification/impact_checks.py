"""Every impact is computed again: by the schema's own formula, from the energy of its subject, factors and PUE."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from math import fsum, hypot, isfinite

from torchwatt.audit.formula import evaluate
from torchwatt.audit.schema import Row
from torchwatt.audit.verification import factor_checks
from torchwatt.audit.verification.bundle_facts import BundleFacts, number, text
from torchwatt.audit.verification.finding import Code, Findings
from torchwatt.audit.verification.run_checks import ids_of
from torchwatt.audit.verification.table_reader import is_same_number
from torchwatt.core.errors import BundleError
from torchwatt.core.terms import PROVENANCES

AS_RUN = "as_run"
_SCENARIO = re.compile(r"as_run|repriced:[A-Za-z0-9][A-Za-z0-9._-]*")
INTERVAL_REL = 1e-9
NOT_STATED = "not stated for"  # how dominant_uncertainty names the inputs without an interval
HOUR = timedelta(hours=1)
Key = tuple[str, ...]
Ends = tuple[float | None, float | None]


class ImpactChecks:
    """Checks `impact` once everything that it is made of is known."""

    def __init__(self, file: str, facts: BundleFacts, findings: Findings) -> None:
        self.file = file
        self.facts = facts
        self.findings = findings
        self.rows = {_key(row, text(row, "phase")): row for _, row in facts.impacts}
        self.by_key = {key: number(row, "value") for key, row in self.rows.items()}

    def finish(self) -> None:
        """Check every row."""
        if self.facts.broken & {"run", "device", "factor", "impact"}:
            return
        for row, cells in self.facts.impacts:
            self._value(row, cells)
            self._formula(row, cells)
            self._words(row, cells)
            self._interval(row, cells)
            if not self.facts.old:
                self._ends(row, cells)
        if not self.facts.old:
            self._complete()
        self._scenarios()
        self._scopes()

    def _tell(  # a finding about a row
        self, code: Code, row: int | None, column: str, reason: str, expected: object = "", found: object = ""
    ) -> None:
        self.findings.add(code, self.file, reason, row=row, column=column, expected=expected, found=found)

    def _value(self, row: int, cells: Row) -> None:
        value, formula = number(cells, "value"), text(cells, "formula")
        if value is None:
            return
        try:
            expected = evaluate(formula, self._names(cells))
        except (BundleError, OverflowError) as error:
            self._tell("FORMULA", row, "formula", f"cannot be computed: {error}", "", "")
            return
        if not isfinite(expected) or not is_same_number(expected, value):
            self._tell("FORMULA", row, "value", f"{formula} with {text(cells, 'factor_ids')}", expected, value)
        per_unit, units = number(cells, "per_unit_value"), number(self.facts.run, "functional_unit_count")
        if per_unit is not None and (not units or not is_same_number(value / units, per_unit)):
            again = value / units if units else "nothing"
            self._tell("DERIVED", row, "per_unit_value", "is not value/run.functional_unit_count", again, per_unit)

    def _names(self, cells: Row) -> dict[str, float]:
        """Return what the names of a formula stand for; see `impact.formula` in the schema."""
        run = self.facts.run
        made = {**cells, "accounting_method": "na"}
        found = {
            "energy_j": self._energy_j(text(cells, "subject")),
            "duration_s": self.facts.duration_s(),
            "units": number(run, "functional_unit_count"),
            "usage": self.by_key.get(_key(cells, "usage")),
            "embodied": self.by_key.get(_key(made, "embodied")),
        }
        device = self.facts.devices.get(text(cells, "subject").removeprefix("device:"))
        if device is not None:
            found |= {name: number(device, name) for name in ("share_ratio", "reserved_s")}
        return {name: value for name, value in found.items() if value is not None} | self._factors(cells)

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
        found: dict[str, float] = {}
        for kind, n in kinds.items():
            rows = [row for row in used if row["kind"] == kind]
            values = [number(row, "value") or 0.0 for row in rows]
            if n == 1 and rows[0]["temporal_resolution"] != "hour":
                found[kind] = values[0]
                continue
            found |= {f"{kind}_{index}": value for index, value in enumerate(values, 1)}
            mean = self._hourly_mean(text(cells, "subject"), rows, "value")
            if mean is not None:
                found[kind] = mean
        return found

    def _hourly_mean(self, subject: str, rows: list[Row], column: str) -> float | None:
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
        found: dict[datetime, list[float]] = {}
        for name in self.facts.counted:
            for hour, joules in self.facts.hourly_j.get(name, {}).items():
                found.setdefault(hour, []).append(joules)
        return {hour: fsum(joules) for hour, joules in sorted(found.items())}

    def _formula(self, row: int, cells: Row) -> None:
        """Compare the formula with the one that the schema fixes for a row of these factors."""
        criterion, phase, found = text(cells, "criterion"), text(cells, "phase"), text(cells, "formula")
        kinds = [text(self.facts.factors[name], "kind") for name in ids_of(cells) if name in self.facts.factors]
        expected: tuple[str, ...]
        if phase == "usage":
            distinct = tuple(dict.fromkeys(kinds))
            expected = factor_checks.usage_formulas(criterion, distinct)
            self._pue(row, cells, distinct)
        elif phase == "embodied":
            if not factor_checks.is_embodied(criterion, found, kinds):
                written = f"duration_s/{factor_checks.S_PER_YEAR}*...*(embodied_{criterion}*share/lifetime+...)"
                self._tell(
                    "FORMULA", row, "formula", "is not the schema's for this row and its factors", written, found
                )
            return
        else:
            expected = self._sum(cells)
        if found not in expected:
            written = " or ".join(expected) or "factors of this criterion"
            self._tell("FORMULA", row, "formula", "is not the schema's for this row and its factors", written, found)

    def _sum(self, cells: Row) -> tuple[str, ...]:
        """Return the formula of a total, or of a score: the usage's and the embodied's, of the same subject."""
        criterion = "gwp" if cells["criterion"] == "sci" else text(cells, "criterion")
        usage = self.rows.get(_key({**cells, "criterion": criterion}, "usage"))
        made = self.rows.get(_key({**cells, "criterion": criterion, "accounting_method": "na"}, "embodied"))
        if usage is None or made is None:
            return ()
        both = f"{usage['formula']}+{made['formula']}"
        return (f"({both})/units",) if cells["criterion"] == "sci" else (both,)

    def _pue(self, row: int, cells: Row, kinds: tuple[str, ...]) -> None:
        """The PUE that the run declares is in every row of usage; what was priced again may name another."""
        declared = text(self.facts.run, "pue_factor_id")
        if cells["criterion"] == "energy" or (cells["criterion"] == "wcf" and "grid_wue" not in kinds):
            return
        if declared and "pue" not in kinds and not self.facts.old:
            self._tell("FORMULA", row, "factor_ids", "the PUE of the run is left out", declared, cells["factor_ids"])
        used = [name for name in ids_of(cells) if self.facts.factors.get(name, {}).get("kind") == "pue"]
        if cells["scenario"] == AS_RUN and used and used != [declared]:
            self._tell("FORMULA", row, "factor_ids", "its PUE is not the run's", declared or "none", ";".join(used))

    # Which rows there must be

    def _complete(self) -> None:
        """What was priced is priced for the run and for every device that counts, and added up where it can be."""
        groups: dict[Key, dict[str, int]] = defaultdict(dict)
        for row, cells in self.facts.impacts:
            if text(cells, "subject").partition(":")[0] in {"run", "device"} and cells["criterion"] != "energy":
                group = tuple(text(cells, name) for name in ("scenario", "criterion", "accounting_method", "phase"))
                groups[group][text(cells, "subject")] = row
        metered = {f"device:{name}" for name, row in self.facts.counted.items() if row["energy_j"] is not None}
        everything = metered | ({"run"} if self.facts.run["energy_it_j"] is not None else set())
        for group, subjects in groups.items():
            scenario, criterion, method, phase = group
            if phase == "usage":
                self._missing(group, everything - subjects.keys(), subjects)
            elif phase == "embodied":
                self._missing(group, set() if "run" in subjects else {"run"}, subjects)
                self._devices(subjects)
            for subject, row in subjects.items():
                if phase == "usage":
                    self._totals(row, subject, (scenario, criterion, method))

    def _missing(self, group: Key, missing: set[str], subjects: Mapping[str, int]) -> None:
        scenario, criterion, method, phase = group
        for subject in sorted(missing):
            reason = f"{subject} has no row of {criterion}, {phase}, {method}, {scenario}"
            self._tell("REFERENCE", min(subjects.values()), "subject", reason, subject, ";".join(sorted(subjects)))

    def _devices(self, subjects: Mapping[str, int]) -> None:
        """The run's hardware is that of the devices that have rows."""
        row = subjects.get("run")
        if row is None:
            return
        cells = next(cells for number_, cells in self.facts.impacts if number_ == row)
        told, rows = factor_checks.count_devices(text(cells, "formula")), len(subjects) - 1
        if told != rows:
            self._tell("FORMULA", row, "formula", "is not about as many devices as have rows", rows, told)

    def _totals(self, row: int, subject: str, group: Key) -> None:
        scenario, criterion, method = group
        if (subject, criterion, "na", scenario, "embodied") not in self.rows:
            return
        wanted = [(subject, criterion, method, scenario, "total")]
        units = number(self.facts.run, "functional_unit_count") or 0.0
        if (subject, criterion, method) == ("run", "gwp", "location") and units > 0:
            wanted.append((subject, "sci", method, scenario, "total"))
        for key in wanted:
            if key not in self.rows:
                what = f"{key[1]}, total, {method}, {scenario}"
                self._tell(
                    "REFERENCE", row, "subject", f"{subject} has usage and embodied, and no row of {what}", what, "none"
                )

    def _scenarios(self) -> None:
        """A scenario is the run's own, or of a bundle that was priced again; none repeats another under a new name."""
        told: dict[str, set[tuple[object, ...]]] = defaultdict(set)
        first: dict[str, int] = {}
        for row, cells in self.facts.impacts:
            scenario = text(cells, "scenario")
            first.setdefault(scenario, row)
            told[scenario].add(tuple(cells[name] for name in _SAYS))
        for scenario, row in first.items():
            if not _SCENARIO.fullmatch(scenario):
                self._tell("LAW", row, "scenario", "is no scenario", "as_run, or repriced:NAME", scenario)
            elif scenario != AS_RUN and not self.facts.repriced:
                reason = "was priced again, and the first manifest is not in the bundle"
                self._tell("LAW", row, "scenario", reason, "original.MANIFEST.sha256", "no such file")
            same_as = [other for other, rows in told.items() if first[other] < row and rows == told[scenario]]
            if same_as:
                self._tell("KEY", row, "scenario", f"repeats every row of {same_as[0]}", "other factors", scenario)

    def _scopes(self) -> None:
        """Rows of one phase and method are of one scope."""
        scopes: dict[Key, object] = {}
        for row, cells in self.facts.impacts:
            group = tuple(text(cells, name) for name in ("criterion", "phase", "accounting_method", "scenario"))
            if scopes.setdefault(group, cells["ghg_scope"]) != cells["ghg_scope"]:
                self._tell(
                    "LAW", row, "ghg_scope", "is another than that of its neighbours", scopes[group], cells["ghg_scope"]
                )

    # Intervals

    def _ends(self, row: int, cells: Row) -> None:
        """Move each input to its ends alone, and add the deviations in quadrature (JCGM 100:2008, 5.1)."""
        formula = text(cells, "formula")
        try:
            names, ends = self._names(cells), self._inputs(cells)
            if cells["phase"] == "total":
                units = names["units"] if cells["criterion"] == "sci" else 1.0
                names, ends = self._parts(cells)
                formula = f"(usage+embodied)/{units!r}"
            value = evaluate(formula, names)
            expected = _combined(lambda at: evaluate(formula, at), names, value, ends)
            moved = _moved(lambda at: evaluate(formula, at), names, value, ends)
        except (BundleError, KeyError, OverflowError, ZeroDivisionError):
            return  # told by `_value`
        self._dominant(row, cells, moved, ends)
        for column, wanted in zip(("lo", "hi"), expected, strict=True):
            found = number(cells, column)
            agree = (
                wanted is found
                if wanted is None or found is None
                else is_same_number(wanted, found, rel=INTERVAL_REL, scale=value)
            )
            if not agree:
                reason = "is not what the intervals of its inputs give"
                self._tell("DERIVED", row, column, reason, "nothing" if wanted is None else wanted, found)

    def _dominant(self, row: int, cells: Row, moved: Mapping[str, float], ends: Mapping[str, Ends]) -> None:
        """Compare the input that the interval mostly comes from; of inputs that move it alike, any will do."""
        found = text(cells, "dominant_uncertainty")
        if not found:
            return  # who states nothing contradicts nothing
        if cells["phase"] == "total":
            parts = [self._part(cells, name) for name in ("usage", "embodied")]
            told = {name: text(part, "dominant_uncertainty") for name, part in zip(ends, parts, strict=True)}
            unstated = [told[name] for name, (lo, _) in ends.items() if lo is None]
            expected = {"; ".join(unstated)} if unstated else {told[name] for name in _largest(moved)}
        elif unstated := [name for name, (lo, hi) in ends.items() if lo is None or hi is None]:
            names = ", ".join(sorted(unstated))
            expected = {f"{NOT_STATED} {names}"}
            found = f"{NOT_STATED} {', '.join(sorted(found.removeprefix(NOT_STATED).strip().split(', ')))}"
        else:
            expected = set(_largest(moved)) | (set() if any(moved.values()) else {"duration_s"})
        if found not in expected:
            reason = "is not the input that the interval mostly comes from"
            said = cells["dominant_uncertainty"]
            self._tell("DERIVED", row, "dominant_uncertainty", reason, " or ".join(sorted(expected)), said)

    def _part(self, cells: Row, phase: str) -> Row:
        """Return the row of usage or of embodied that a total or a score adds up."""
        criterion = "gwp" if cells["criterion"] == "sci" else text(cells, "criterion")
        method = text(cells, "accounting_method") if phase == "usage" else "na"
        return self.rows[_key({**cells, "criterion": criterion, "accounting_method": method}, phase)]

    def _parts(self, cells: Row) -> tuple[dict[str, float], dict[str, Ends]]:
        rows = {phase: self._part(cells, phase) for phase in ("usage", "embodied")}
        values = {name: number(row, "value") or 0.0 for name, row in rows.items()}
        return values, {name: (number(row, "lo"), number(row, "hi")) for name, row in rows.items()}

    def _inputs(self, cells: Row) -> dict[str, Ends]:
        """Return the interval of each name of a formula that has one; the run's time is exact."""
        subject = text(cells, "subject")
        row = self.facts.run if subject == "run" else self.facts.devices.get(subject.removeprefix("device:"), {})
        start = "energy_it" if subject == "run" else "energy"
        found: dict[str, Ends] = {}
        if cells["phase"] == "usage":
            found["energy_j"] = number(row, f"{start}_systematic_lo_j"), number(row, f"{start}_systematic_hi_j")
        used = [factor for name in ids_of(cells) if (factor := self.facts.factors.get(name)) is not None]
        kinds = [text(factor, "kind") for factor in used]
        for name, factor, kind in zip(factor_checks.formula_names(kinds), used, kinds, strict=True):
            same_kind = [each for each in used if each["kind"] == kind]
            if cells["phase"] == "usage" and len(same_kind) > 1:
                lo, hi = (self._hourly_mean(subject, same_kind, end) for end in ("lo", "hi"))
                found[kind] = (lo, hi)
            else:
                found[name] = number(factor, "lo"), number(factor, "hi")
        return found

    def _words(self, row: int, cells: Row) -> None:
        """Check what is said about the number: its unit, its method, how it is known."""
        unit = factor_checks.UNIT_OF_CRITERION.get(text(cells, "criterion"))
        if cells["criterion"] == "sci":
            unit = f"g{{CO2e}}/{{{self.facts.run['functional_unit']}}}"
        if unit is not None and cells["unit"] != unit:
            self._tell("LAW", row, "unit", "of this criterion", unit, cells["unit"])
        factors = [self.facts.factors[name] for name in ids_of(cells) if name in self.facts.factors]
        methods = {text(factor, "accounting_method") for factor in factors} - {""}
        if methods and cells["accounting_method"] not in methods:
            self._tell(
                "KNOWN", row, "accounting_method", "is not that of its factors", ";".join(sorted(methods)),
                cells["accounting_method"],
            )  # fmt: skip
        zones = {text(factor, "zone") for factor in factors if text(factor, "kind") in factor_checks.GRIDS} - {""}
        if len(zones) > 1:
            self._tell("LAW", row, "factor_ids", "are of several grids", "one zone", ";".join(sorted(zones)))
        if cells["u"] is not None and not self.facts.old:
            self._tell("LAW", row, "u", "is stated, and the interval says how well it is known", "nothing", cells["u"])
        inputs = [text(factor, "provenance") for factor in factors]
        inputs += [self._known(text(cells, "subject"))]
        weakest = max((PROVENANCES.index(known) for known in inputs if known in PROVENANCES), default=0)
        told = list[str](PROVENANCES).index(text(cells, "weakest_input"))
        if told < weakest:
            self._tell(
                "KNOWN", row, "weakest_input", "better known than what it is made of", PROVENANCES[weakest],
                cells["weakest_input"],
            )  # fmt: skip
        if cells["provenance"] == "measured":
            self._tell("KNOWN", row, "provenance", "nothing computed is measured", "derived", "measured")

    def _known(self, subject: str) -> str:
        if subject.startswith("device:"):
            return text(self.facts.devices.get(subject.removeprefix("device:"), {}), "provenance")
        return text(self.facts.run, "energy_it_provenance") if subject == "run" else ""

    def _interval(self, row: int, cells: Row) -> None:
        lo, value, hi = (number(cells, name) for name in ("lo", "value", "hi"))
        if value is not None and ((lo is not None and lo > value) or (hi is not None and hi < value)):
            self._tell("LAW", row, "value", "lies outside its own interval", f"{lo!r} to {hi!r}", value)


def _key(cells: Row, phase: str) -> Key:
    return (*(text(cells, name) for name in ("subject", "criterion", "accounting_method", "scenario")), phase)


_SAYS = ("subject", "criterion", "phase", "accounting_method", "value", "formula", "factor_ids")


def _combined(
    compute: Callable[[Mapping[str, float]], float], names: Mapping[str, float], value: float, ends: Mapping[str, Ends]
) -> Ends:
    """Return the ends of a result; None where an input states none."""
    low = high = 0.0
    for name, (lo, hi) in ends.items():
        if lo is None or hi is None:
            return None, None
        down, up = (compute({**names, name: end}) - value for end in (lo, hi))
        low, high = hypot(low, min(down, up, 0.0)), hypot(high, max(down, up, 0.0))
    return max(value - low, 0.0), value + high


def _moved(
    compute: Callable[[Mapping[str, float]], float], names: Mapping[str, float], value: float, ends: Mapping[str, Ends]
) -> dict[str, float]:
    """Return how far each input moves a result to either side, as far as all of them state an interval."""
    stated = {name: [end for end in pair if end is not None] for name, pair in ends.items()}
    if any(len(pair) < 2 for pair in stated.values()):
        return {}
    return {name: max(abs(compute({**names, name: end}) - value) for end in pair) for name, pair in stated.items()}


def _largest(moved: Mapping[str, float]) -> list[str]:
    """Return the inputs that move a result furthest; several where they do so alike."""
    most = max(moved.values(), default=0.0)
    return [name for name, found in moved.items() if found >= most * (1 - INTERVAL_REL)]


def _holds(factor: Row, hour: datetime) -> bool:
    begin, end = factor["valid_from"], factor["valid_to"]
    if not isinstance(begin, datetime):
        return False
    last = end if isinstance(end, datetime) else begin + timedelta(hours=1)
    return begin.astimezone(UTC) <= hour < last.astimezone(UTC)
