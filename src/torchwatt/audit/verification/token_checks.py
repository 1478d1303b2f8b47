"""Checks of `token`: what is of a request, what is of a batch, and the sum of the joules."""

from __future__ import annotations

from torchwatt.audit.schema import Row, Value
from torchwatt.audit.verification.bundle_facts import BundleFacts, ExactSum, number, rows_of, text
from torchwatt.audit.verification.energy_checks import BOOKS_REL, EDGE_NS, check_interval, is_better
from torchwatt.audit.verification.finding import Findings
from torchwatt.audit.verification.table_reader import TableChunk
from torchwatt.core.terms import REQUEST_STAGES
from torchwatt.core.units import NS_PER_S

_OF_REQUEST = ("batch", "input_tokens", "cached_tokens", "output_tokens", "drafted_tokens", "accepted_tokens")
_OF_BATCH = ("time_s", "energy_j", "t_start_ns", "t_end_ns")  # the same for each request that was processed together


class TokenChecks:
    """Checks `token` chunk by chunk: what is of a request, what is of a batch, and the sum of the joules."""

    def __init__(self, file: str, facts: BundleFacts, findings: Findings) -> None:
        self.file = file
        self.facts = facts
        self.findings = findings
        self.requests: dict[int, tuple[int, Row, set[str]]] = {}
        self.batches: dict[tuple[int, str], Row] = {}
        self.energy_j = ExactSum()

    def check(self, chunk: TableChunk) -> None:
        """Check the rows of one chunk."""
        rows = list(rows_of(chunk))
        self.energy_j.add([number(cells, "energy_j") or 0.0 for _, cells in rows])
        for row, cells in rows:
            interval = (number(cells, "energy_lo_j"), number(cells, "energy_j"), number(cells, "energy_hi_j"))
            check_interval(self.findings, self.file, row, "energy_j", interval)
            self._request(row, cells)
            self._times(row, cells)
            if is_better(text(cells, "provenance"), "apportioned"):
                self._find(row, "better known than what is divided among requests can be", "provenance", cells)

    def _request(self, row: int, cells: Row) -> None:
        request, stage = int(number(cells, "request") or 0), text(cells, "stage")
        _, of_request, stages = self.requests.setdefault(request, (row, cells, set()))
        stages.add(stage)
        of_batch = self.batches.setdefault((int(number(cells, "batch") or 0), stage), cells)
        for column, reference, group in (
            *((name, of_request, "request") for name in _OF_REQUEST),
            *((name, of_batch, "batch") for name in _OF_BATCH),
        ):
            if cells[column] != reference[column]:
                self._find(row, f"differs from another row of the {group}", column, cells, expected=reference[column])
        for part, total in (("accepted_tokens", "drafted_tokens"), ("cached_tokens", "input_tokens")):
            part_count, total_count = number(cells, part), number(cells, total)
            if part_count is not None and total_count is not None and part_count > total_count:
                self._find(row, f"are more than {total}", part, cells, expected=total_count)

    def _times(self, row: int, cells: Row) -> None:
        start, end, time_s = number(cells, "t_start_ns"), number(cells, "t_end_ns"), number(cells, "time_s")
        if start is None or end is None or time_s is None:
            return
        run_ns = self.facts.duration_s() * NS_PER_S
        if not 0 <= start <= end <= run_ns + EDGE_NS:
            self._find(row, "is not inside the run", "t_end_ns", cells, expected=f"{start:.0f} to {run_ns:.0f}")
        elif time_s * NS_PER_S > end - start + EDGE_NS:
            self._find(
                row, "is longer than from its start to its end", "time_s", cells, expected=(end - start) / NS_PER_S
            )

    def _find(self, row: int, reason: str, column: str, cells: Row, *, expected: Value = None) -> None:
        self.findings.add("LAW", self.file, reason, row=row, column=column, expected=expected, found=cells[column])

    def finish(self) -> None:
        """Check that each request has both stages, and that requests have no more joules than the run."""
        if "token" in self.facts.broken:
            return
        for row, cells, stages in self.requests.values():
            if not stages >= set(REQUEST_STAGES):
                self._find(row, "a request has the rows prefill and decode", "stage", cells)
        total_j = number(self.facts.run, "energy_it_j")
        if total_j is not None and self.energy_j.value > total_j * (1 + BOOKS_REL):
            self.findings.add(
                "SUM", self.file, "requests have more joules than the run", column="energy_j", expected=total_j,
                found=self.energy_j.value,
            )  # fmt: skip
