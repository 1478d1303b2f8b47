"""Checks a merged job: ranks add up to the layers, and the layers of a rank to the rank."""

from __future__ import annotations

from collections import defaultdict

from torchwatt.audit.schema import Row
from torchwatt.audit.verification.bundle_facts import BundleFacts, ExactSum, number, rows_of, text
from torchwatt.audit.verification.finding import Findings
from torchwatt.audit.verification.table_reader import DerivedChecks, TableChunk, is_same_number
from torchwatt.core.terms import NO_RANK, PROVENANCES, domain_kind

BOOKS_REL = 1e-9
HOST_KINDS = frozenset({"cpu", "dram", "ram"})  # whose rows are by one thread at a time
FILE, LAYERS = "rank.csv", "rank_layer.csv"
TIME_REL, TIME_S = 1 + 1e-6, 2e-3  # of the edges of a run
_Slot = tuple[str, str, str, str]  # device, fqn, phase, stage


class RankChecks:
    """Checks `rank`; `layers` checks `rank_layer`, and `books` sums `layer` for it."""

    def __init__(self, facts: BundleFacts, findings: Findings, *, has_ranks: bool) -> None:
        self.has_ranks = has_ranks
        self.facts = facts
        self.findings = findings
        self.rows: dict[int, tuple[int, dict[str, object]]] = {}
        self.books = _RankSums(has_ranks=has_ranks)
        self.layers = _RankLayers(facts, findings)

    def check(self, chunk: TableChunk) -> None:
        """Keep the ranks of a chunk, and check each alone."""
        DerivedChecks(self.facts.schema.table("rank"), FILE, self.findings).check(chunk)
        end_ns = self.facts.duration_s() * 1e9 + 1e6
        for row, cells in rows_of(chunk):
            self.rows[int(number(cells, "rank") or 0)] = row, dict(cells)
            start, end = number(cells, "t_start_ns"), number(cells, "t_end_ns")
            if start is not None and end is not None and not -1e6 <= start <= end <= end_ns:
                self.findings.add(
                    "LAW", FILE, "does not lie in the run", row=row, column="t_start_ns",
                    expected=f"0 to {end_ns:.0f}", found=f"{start:.0f} to {end:.0f}",
                )  # fmt: skip
            if text(cells, "status") == "missing" and cells["energy_j"] is not None:
                self.findings.add(
                    "LAW", FILE, "a missing rank has no joules", row=row, column="energy_j", found=cells["energy_j"]
                )

    def finish(self) -> None:
        """Compare the sums."""
        if not self.has_ranks or self.facts.broken & {"rank", "rank_layer", "layer", "run"}:
            return
        self._all_there()
        self._unique()
        self._alive()
        self._ranks_add_up()
        self._layers_add_up()
        self._times()

    def _all_there(self) -> None:
        size = number(self.facts.run, "world_size")
        expected = set(range(int(size))) if size is not None and size <= 1_000_000 else set(self.rows)
        for rank in sorted(expected ^ set(self.rows))[:8]:
            reason = "has no row" if rank in expected else "is no rank of the job"
            self.findings.add("KEY", FILE, f"rank {rank} {reason}", column="rank", expected=f"0 to {size or 0:.0f} - 1")
        complete = all(cells["status"] == "complete" for _, cells in self.rows.values())
        if not complete and text(self.facts.run, "status") == "complete":
            self.findings.add(
                "LAW", "run.csv", "is complete, and a rank is not", row=1, column="status", expected="partial",
                found="complete",
            )  # fmt: skip

    def _unique(self) -> None:
        """Check that run ids and places of ranks are unique, and that a machine has one number and one hash."""
        run_id, rank_of = self.facts.run.get("run_id"), dict[tuple[object, ...], int]()
        names = {"source_run_id": ("source_run_id",), "local_rank": ("node", "local_rank")}
        hosts: dict[object, object] = {}
        for rank, (row, cells) in sorted(self.rows.items()):
            for column, parts in names.items():
                key = (column, *(cells[part] for part in parts))
                if None not in key and rank_of.setdefault(key, rank) != rank:
                    self._report(
                        row, column, f"is that of rank {rank_of[key]}, too: its joules count twice", cells[column]
                    )
            if cells["source_run_id"] is not None and cells["source_run_id"] == run_id:
                self._report(row, "source_run_id", "is the merged run itself", run_id)
            node, host = cells["node"], cells["host_hash"]
            for identity, counterpart in (((0, node), (1, host)), ((1, host), (0, node))):
                if node is not None and host is not None and hosts.setdefault(identity, counterpart) != counterpart:
                    self._report(row, "host_hash", "one machine has one number and one hash", host)
                    break
        nodes = {cells["node"] for _, cells in self.rows.values()} - {None}
        node_count = number(self.facts.run, "node_count")
        if node_count is not None and node_count != len(nodes):
            self.findings.add(
                "DERIVED", "run.csv", "is not the number of machines in rank.csv", row=1, column="node_count",
                expected=len(nodes), found=node_count,
            )  # fmt: skip

    def _alive(self) -> None:
        """Check that exactly the missing ranks have an event RANK_MISSING and a reason, and the others times."""
        subjects = {about for code, about in self.facts.events if code == "RANK_MISSING"}
        for rank, (row, cells) in sorted(self.rows.items()):
            missing = cells["status"] == "missing"
            if missing != (f"rank:{rank}" in subjects) and "event" not in self.facts.broken:
                self._report(row, "status", "and the event RANK_MISSING do not agree", cells["status"])
            if not missing and (cells["t_start_ns"] is None or cells["t_end_ns"] is None):
                self._report(row, "t_start_ns", "is empty, and the rank is not missing", "")
            if missing and cells["reason"] is None:
                self._report(row, "reason", "is empty, and the rank is missing", "")

    def _report(self, row: int, column: str, reason: str, actual: object) -> None:
        self.findings.add("LAW", FILE, reason, row=row, column=column, found=actual)

    def _ranks_add_up(self) -> None:
        for rank in sorted(self.layers.by_rank.keys() - self.rows.keys()):
            self.findings.add("REFERENCE", LAYERS, f"rank {rank} is not there", column="rank", found=rank)
        for rank, (row, cells) in self.rows.items():
            energy_j = cells["energy_j"]
            found_j = self.layers.by_rank[rank].value if rank in self.layers.by_rank else None
            if not _agree(energy_j, found_j):
                self.findings.add(
                    "SUM", FILE, f"rows of rank {rank} in {LAYERS} do not add up to it", row=row, column="energy_j",
                    expected=energy_j, found=found_j,
                )  # fmt: skip

    def _times(self) -> None:
        """Check that no rank spent more time in its layers than it ran, on each device of the host."""
        for (rank, device), spent_s in sorted(self.layers.host_s.items()):
            self._time(rank, spent_s, f"rows of {device} of rank {rank} took longer than the rank ran", None)
        for rank, (row, spent_s) in sorted(self.layers.longest.items()):
            self._time(rank, spent_s, f"took longer than rank {rank} ran", row)

    def _time(self, rank: int, spent_s: float, reason: str, row: int | None) -> None:
        cells = self.rows[rank][1] if rank in self.rows else {}
        seconds = cells.get("duration_s")
        if isinstance(seconds, float) and spent_s > seconds * TIME_REL + TIME_S:
            self.findings.add(
                "LAW", LAYERS, reason, row=row, column="time_self_s", expected=f"at most {seconds!r}", found=spent_s
            )  # fmt: skip

    def _layers_add_up(self) -> None:
        for slot in sorted(self.books.by_slot.keys() | self.layers.by_slot.keys()):
            booked, by_ranks = self.books.by_slot.get(slot), self.layers.by_slot.get(slot)
            if slot[1] == NO_RANK:
                if by_ranks is not None:
                    self.findings.add("LAW", LAYERS, f"{NO_RANK} is nobody's", column="fqn", found=", ".join(slot))
            elif not _agree(booked.value if booked else None, by_ranks.value if by_ranks else None):
                self.findings.add(
                    "SUM", LAYERS, f"the ranks' {', '.join(slot)} do not add up to layer.csv", column="energy_self_j",
                    expected=booked.value if booked else "nothing", found=by_ranks.value if by_ranks else None,
                )  # fmt: skip


class _RankSums:
    """Sums of `layer` by device, layer and phase."""

    def __init__(self, *, has_ranks: bool) -> None:
        self.has_ranks = has_ranks
        self.by_slot: dict[_Slot, ExactSum] = defaultdict(ExactSum)

    def check(self, chunk: TableChunk) -> None:
        for _, cells in rows_of(chunk) if self.has_ranks else ():
            slot = _slot(cells)
            self.by_slot[slot].add([number(cells, "energy_self_j") or 0.0])


class _RankLayers:
    """Sums of `rank_layer` by rank, and over ranks."""

    def __init__(self, facts: BundleFacts, findings: Findings) -> None:
        self.facts = facts
        self.findings = findings
        self.by_rank: dict[int, ExactSum] = defaultdict(ExactSum)
        self.by_slot: dict[_Slot, ExactSum] = defaultdict(ExactSum)
        self.host_s: dict[tuple[int, str], float] = defaultdict(float)
        self.longest: dict[int, tuple[int, float]] = {}  # row and seconds, by rank

    def check(self, chunk: TableChunk) -> None:
        for row, cells in rows_of(chunk):
            joules = number(cells, "energy_self_j") or 0.0
            device, provenance = text(cells, "device_id"), text(cells, "provenance")
            rank, seconds = int(number(cells, "rank") or 0), number(cells, "time_self_s") or 0.0
            self.by_rank[rank].add([joules])
            if domain_kind(device) in HOST_KINDS:
                self.host_s[rank, device] += seconds
            if seconds > self.longest.get(rank, (0, 0.0))[1]:
                self.longest[rank] = row, seconds
            self.by_slot[_slot(cells)].add([joules])
            limit = text(self.facts.devices.get(device, {}), "provenance")
            if limit in PROVENANCES and PROVENANCES.index(provenance) < PROVENANCES.index(limit):
                self.findings.add(
                    "KNOWN", LAYERS, f"better known than {device}", row=row, column="provenance",
                    expected=f"{limit} or weaker", found=provenance,
                )  # fmt: skip


def _slot(cells: Row) -> _Slot:
    return text(cells, "device_id"), text(cells, "fqn"), text(cells, "phase"), text(cells, "stage")


def _agree(expected: object, actual: object) -> bool:
    if isinstance(expected, float) and isinstance(actual, float):
        return is_same_number(expected, actual, rel=BOOKS_REL) or abs(expected - actual) < BOOKS_REL
    return expected is None and actual is None
