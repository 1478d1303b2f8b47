"""Every impact is computed again from its formula, the energy of its subject and its factors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from math import fsum, isfinite

from torchwatt.audit.formula import evaluate
from torchwatt.audit.schema import Row
from torchwatt.audit.verification.derived import same
from torchwatt.audit.verification.facts import Facts, number, text
from torchwatt.audit.verification.finding import Findings
from torchwatt.core.errors import BundleError
from torchwatt.core.terms import PROVENANCES

UNIT_OF = {"gwp": "g{CO2e}", "energy": "J"}
Key = tuple[str, ...]


class ImpactLaws:
    """Checks `impact` once everything that it is made of is known."""

    def __init__(self, file: str, facts: Facts, findings: Findings) -> None:
        self.file = file
        self.facts = facts
        self.findings = findings
        self.by_key = {_key(row, text(row, "phase")): number(row, "value") for _, row in facts.impacts}

    def finish(self) -> None:
        """Check every row."""
        if self.facts.broken & {"run", "device", "factor", "impact"}:
            return
        for row, cells in self.facts.impacts:
            self._value(row, cells)
            self._words(row, cells)
            self._interval(row, cells)

    def _tell(self, code: str, row: int, column: str, reason: str, expected: object, found: object) -> None:
        self.findings.add(code, self.file, reason, row=row, column=column, expected=expected, found=found)  # type: ignore[arg-type]

    def _value(self, row: int, cells: Row) -> None:
        value, formula = number(cells, "value"), text(cells, "formula")
        if value is None:
            return
        try:
            expected = evaluate(formula, self._names(cells))
        except (BundleError, OverflowError) as error:
            self._tell("FORMULA", row, "formula", f"cannot be computed: {error}", "", "")
            return
        if not isfinite(expected) or not same(expected, value):
            self._tell("FORMULA", row, "value", f"{formula} with {text(cells, 'factor_ids')}", expected, value)
        per_unit, units = number(cells, "per_unit_value"), number(self.facts.run, "functional_unit_count")
        if per_unit is not None and (not units or not same(value / units, per_unit)):
            again = value / units if units else "nothing"
            self._tell("DERIVED", row, "per_unit_value", "is not value/run.functional_unit_count", again, per_unit)

    def _names(self, cells: Row) -> dict[str, float]:
        """Return what the names of a formula stand for; see `impact.formula` in the schema."""
        run = self.facts.run
        found = {
            "energy_j": self._energy_j(text(cells, "subject")),
            "duration_s": self.facts.duration_s(),
            "units": number(run, "functional_unit_count"),
            **{phase: self.by_key.get(_key(cells, phase)) for phase in ("usage", "embodied")},
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
        used = [row for name in _ids(cells) if (row := self.facts.factors.get(name)) is not None]
        kinds = Counter(text(row, "kind") for row in used)
        found: dict[str, float] = {}
        for kind, n in kinds.items():
            rows = [row for row in used if row["kind"] == kind]
            values = [number(row, "value") or 0.0 for row in rows]
            if n == 1:
                found[kind] = values[0]
                continue
            found |= {f"{kind}_{index}": value for index, value in enumerate(values, 1)}
            mean = self._hourly_mean(text(cells, "subject"), rows)
            if mean is not None:
                found[kind] = mean
        return found

    def _hourly_mean(self, subject: str, rows: list[Row]) -> float | None:
        """Return the mean of the factors, weighted with the subject's joules in the hours for which they hold."""
        hours = self._hours(subject)
        parts, weights = [], []
        for hour, joules in hours.items():
            value = next((number(row, "value") for row in rows if _holds(row, hour)), None)
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

    def _words(self, row: int, cells: Row) -> None:
        """Check what is said about the number: its unit, its method, how it is known."""
        unit = UNIT_OF.get(text(cells, "criterion"))
        if unit is not None and cells["unit"] != unit:
            self._tell("LAW", row, "unit", "of this criterion", unit, cells["unit"])
        factors = [self.facts.factors[name] for name in _ids(cells) if name in self.facts.factors]
        methods = {text(factor, "accounting_method") for factor in factors} - {""}
        if methods and cells["accounting_method"] not in methods:
            self._tell(
                "KNOWN", row, "accounting_method", "is not that of its factors", ";".join(sorted(methods)),
                cells["accounting_method"],
            )  # fmt: skip
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


def _ids(cells: Row) -> list[str]:
    return [name for name in text(cells, "factor_ids").split(";") if name]


def _holds(factor: Row, hour: datetime) -> bool:
    begin, end = factor["valid_from"], factor["valid_to"]
    if not isinstance(begin, datetime):
        return False
    last = end if isinstance(end, datetime) else begin + timedelta(hours=1)
    return begin.astimezone(UTC) <= hour < last.astimezone(UTC)
