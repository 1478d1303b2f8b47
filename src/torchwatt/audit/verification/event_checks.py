"""Checks events: numbers, times of both clocks, severity, and those that other rows imply."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta

from torchwatt.audit.schema import Row
from torchwatt.audit.verification.bundle_facts import BundleFacts, EventFact, number, rows_of, text
from torchwatt.audit.verification.factor_checks import GRIDS
from torchwatt.audit.verification.finding import Findings
from torchwatt.audit.verification.run_checks import ids_of, later
from torchwatt.audit.verification.table_reader import TableChunk

FILE = "event.csv"
LATEST_S = 600.0  # after the end of a run: it is put together then
_DOMAIN = re.compile(r"(node[0-9]+/)?(gpu|cpu|dram|ram|psys|module)(:[0-9]+)?")
YEAR_CODES = frozenset({"FACTOR_YEAR"})
# How a SAMPLE_GAP ends whose joules are missing. The sampler has the code, too, where it was late: before the run, or
# with a counter that goes on counting, no joules are missing.
UNCOUNTED = "not counted"


class EventChecks:
    """Checks `event` chunk by chunk."""

    def __init__(self, facts: BundleFacts, findings: Findings) -> None:
        self.facts = facts
        self.findings = findings
        self.last = (0, -1)  # row, event_index
        self.last_ns = -math.inf
        self.uncounted: dict[str, int] = {}  # device to the first event about joules that are missing

    def check(self, chunk: TableChunk) -> None:
        """Check numbers and times of a chunk, and keep the codes."""
        for row, cells in rows_of(chunk):
            index, expected_index = int(number(cells, "event_index") or 0), self.last[1] + row - self.last[0]
            if index != expected_index:
                self.findings.add(
                    "KEY", FILE, "a row is missing", row=row, column="event_index", expected=expected_index,
                    found=index,
                )  # fmt: skip
            self.last = (row, index)
            self._time(row, cells)
            self._order(row, cells)
            self._subject(row, cells)
            self._remember(row, cells)

    def _time(self, row: int, cells: Row) -> None:
        begun, t_ns, t = self.facts.run.get("started_at"), number(cells, "t_ns"), cells["t"]
        if not isinstance(begun, datetime) or not isinstance(t, datetime) or t_ns is None:
            return
        if t_ns / 1e9 > self.facts.duration_s() + LATEST_S:
            most_ns = f"at most {(self.facts.duration_s() + LATEST_S) * 1e9:.0f}"
            self.findings.add(
                "LAW", FILE, "comes long after the run", row=row, column="t_ns", expected=most_ns, found=t_ns
            )
        expected = later(begun, t_ns / 1e9)
        if expected is None or abs(t - expected) > timedelta(microseconds=2):
            self.findings.add(
                "DERIVED", FILE, "is not run.started_at and t_ns", row=row, column="t", expected=expected, found=t,
            )  # fmt: skip

    def _order(self, row: int, cells: Row) -> None:
        """Check that events are in order of time, as the writer sorts them."""
        t_ns = number(cells, "t_ns")
        if t_ns is None or self.facts.old:
            return
        if t_ns < self.last_ns:
            self.findings.add(
                "KEY", FILE, "comes before the event in the row above it", row=row, column="t_ns",
                expected=f"at least {self.last_ns:.0f}", found=t_ns,
            )  # fmt: skip
        self.last_ns = max(t_ns, self.last_ns)

    def _subject(self, row: int, cells: Row) -> None:
        """Check that an event about a domain names a device of `device`, metered or not; `gpu` is all GPUs."""
        subject = text(cells, "subject")
        if self.facts.old or "device" in self.facts.broken or subject in {"gpu", *self.facts.devices}:
            return
        if _DOMAIN.fullmatch(subject):
            self.findings.add(
                "REFERENCE", FILE, "is no device of the run", row=row, column="subject",
                expected=", ".join(sorted(self.facts.devices)), found=subject,
            )  # fmt: skip

    def _remember(self, row: int, cells: Row) -> None:
        code, subject, severity = (text(cells, name) for name in ("code", "subject", "severity"))
        if code == "COUNTER_WRAP":
            self.facts.wraps_ns[subject].append(int(number(cells, "t_ns") or 0))
        before = self.facts.events.get((code, subject))
        self.facts.events[code, subject] = EventFact(
            before.row if before else row, severity, before.count + 1 if before else 1
        )
        if code == "SAMPLE_GAP" and text(cells, "message").endswith(UNCOUNTED):
            self.uncounted.setdefault(subject, row)
        worst = {"RANK_MISSING": "error"}.get(code)
        if worst is not None and severity != worst:
            self.findings.add(
                "LAW", FILE, f"{code} is worse", row=row, column="severity", expected=worst, found=severity
            )  # fmt: skip

    def finish(self) -> None:
        """Compare events with the rows that imply them."""
        if self.facts.broken & {"event", "run", "device", "factor", "impact"}:
            return
        self._fallback()
        self._years()
        for subject, row in self.uncounted.items():
            device = self.facts.devices.get(subject, {})
            if number(device, "coverage_ratio") == 1.0 and not self.facts.merged:
                reason = f"SAMPLE_GAP in {subject}, which was known all the time"
                self._report(row, "code", reason, "less than 1.0", 1.0)

    def _report(self, row: int | None, column: str, reason: str, expected: object = "", actual: object = "") -> None:
        self.findings.add("LAW", FILE, reason, row=row, column=column, expected=expected, found=actual)

    def _years(self) -> None:
        """Check that a grid factor of a later year than the run has an event FACTOR_YEAR."""
        begun = self.facts.run.get("started_at")
        if not isinstance(begun, datetime) or not self.facts.has_losses or self.facts.has_event(YEAR_CODES):
            return
        for name in sorted(
            {n for _, cells in self.facts.impacts if cells["scenario"] == "as_run" for n in ids_of(cells)}
        ):
            row = self.facts.factors.get(name, {})
            year = number(row, "data_year")
            if row.get("kind") in GRIDS and row["temporal_resolution"] != "hour" and year and year > begun.year:
                self.findings.add(
                    "LAW", "factor.csv", "is a later year than the run's, and no event FACTOR_YEAR says so",
                    row=self.facts.factor_rows.get(name), column="data_year", expected=f"at most {begun.year}",
                    found=int(year),
                )  # fmt: skip

    def _fallback(self) -> None:
        """Check that a fallback factor of the run has an event FACTOR_FALLBACK; repricing adds no events."""
        as_run = {
            name for _, cells in self.facts.impacts if cells["scenario"] == "as_run"
            for name in text(cells, "factor_ids").split(";")
        }  # fmt: skip
        stands_in = [name for name in as_run if text(self.facts.factors.get(name, {}), "fallback_from")]
        event = next((event for (code, _), event in self.facts.events.items() if code == "FACTOR_FALLBACK"), None)
        if stands_in and event is None:
            name = min(stands_in)
            row = self.facts.factor_rows.get(name)
            self.findings.add(
                "LAW", "factor.csv", f"{name} stands for another factor, and no event FACTOR_FALLBACK says so", row=row,
                column="fallback_from", found=self.facts.factors[name]["fallback_from"],
            )  # fmt: skip
        if event is not None and as_run and not stands_in:
            self._report(event.row, "code", "FACTOR_FALLBACK, and no factor of the run says what it stands for")
