"""The ranks of a merged job as text, and as HTML."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import fsum
from textwrap import wrap

from torchwatt.core.job import RankPart
from torchwatt.core.ledger import Entry, total_self_j
from torchwatt.core.plain_text import escape_unprintable
from torchwatt.core.report import Report
from torchwatt.core.terms import COMMUNICATION, NO_RANK
from torchwatt.views.layer_groups import GroupIntervals
from torchwatt.views.layer_sums import TIE_LEGEND, is_tied
from torchwatt.views.number_format import DASH, escape_text, format_energy, format_time, html_tag, muted_text

HOST_KINDS = frozenset({"cpu", "dram", "ram", "psys"})


@dataclass(frozen=True, slots=True)
class RankComparison:
    """The joules of one row across the metered ranks; a rank without this row counts as 0 J."""

    name: str
    phase: str
    sum_j: float
    min_j: float
    max_j: float
    max_rank: int
    ranks: int  # number of metered ranks
    tied: bool = False  # the interval of the difference from the row above includes 0

    @property
    def imbalance(self) -> float | None:
        """Return maximum over mean: 1 if all are equal, the number of ranks if only one has joules; None for 0 J."""
        return self.max_j * self.ranks / self.sum_j if self.sum_j > 0 else None


def metered_ranks(report: Report) -> tuple[RankPart, ...]:
    """Return the ranks with entries."""
    return tuple(part for part in report.ranks if part.entries)


def compare_ranks(report: Report) -> tuple[RankComparison, ...]:
    """Return layers and reserved rows across ranks, most joules first."""
    parts = metered_ranks(report)
    by_slot: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for part in parts:
        for entry in part.entries:
            by_slot[entry.fqn, entry.phase][part.rank].append(entry.energy_self_j)
    rows = [
        _compare_row(*slot, {rank: fsum(joules) for rank, joules in joules_of_rank.items()}, parts)
        for slot, joules_of_rank in by_slot.items()
    ]
    ordered = sorted(rows, key=lambda row: (-row.sum_j, row.name, row.phase))
    half_j = _half_intervals_j(report)
    ends = [(row.sum_j, half_j.get((row.name, row.phase))) for row in ordered]
    return tuple(
        replace(row, tied=i > 0 and is_tied(ends[i - 1], ends[i])) for i, row in enumerate(ordered)
    )  # fmt: skip


def _half_intervals_j(report: Report) -> dict[tuple[str, str], float | None]:
    """Return half the 90 % interval of each row of the job; None if an entry has no interval."""
    entries_of_slot: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for ledger in report.counted:
        for entry in ledger.entries:
            entries_of_slot[entry.fqn, entry.phase].append(entry)
    intervals = GroupIntervals(report.counted)
    bounds = {slot: intervals.bound(entries) for slot, entries in entries_of_slot.items()}
    return {
        slot: None if ends is None else ends[1] - total_self_j(entries_of_slot[slot]) for slot, ends in bounds.items()
    }


def _compare_row(name: str, phase: str, energy_of_rank: dict[int, float], parts: Sequence[RankPart]) -> RankComparison:
    joules = {part.rank: energy_of_rank.get(part.rank, 0.0) for part in parts}
    max_rank = max(joules, key=lambda rank: (joules[rank], -rank))
    return RankComparison(
        name, phase, fsum(joules.values()), min(joules.values()), joules[max_rank], max_rank, len(parts)
    )


def compare_totals(report: Report) -> RankComparison | None:
    """Return the ranks' totals across ranks."""
    parts = metered_ranks(report)
    totals = {part.rank: part.energy_j or 0.0 for part in parts}
    return _compare_row("all", "", totals, parts) if parts else None


def no_rank_j(report: Report) -> float:
    """Return the joules of the job's machines that are not allocated to any rank."""
    return fsum(e.energy_self_j for ledger in report.counted for e in ledger.entries if e.fqn == NO_RANK)


def rank_energy_j(part: RankPart, *, host: bool) -> float | None:
    """Return a rank's joules on the host's domains, or on its own devices; None where it has none."""
    parts_j = [e.energy_self_j for e in part.entries if (e.domain.kind in HOST_KINDS) == host]
    return fsum(parts_j) if parts_j else None


def rank_skew_s(report: Report) -> tuple[float, float, float] | None:
    """Return the ranges of start, end and duration of the ranks in seconds; None with fewer than two known."""
    spans = [(p.start_ns, p.end_ns) for p in report.ranks if p.start_ns is not None and p.end_ns is not None]
    if len(spans) < 2:
        return None
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    lengths = [end - start for start, end in spans]
    return _time_range_s(starts), _time_range_s(ends), _time_range_s(lengths)


def _time_range_s(times_ns: Sequence[int]) -> float:
    return (max(times_ns) - min(times_ns)) / 1e9


def rank_cells(part: RankPart) -> tuple[str, ...]:
    """Return the cells of one rank: rank, node, devices, total, device, host, communication, CPU time, time, status."""
    devices = sorted({str(entry.domain) for entry in part.entries if entry.domain.kind not in HOST_KINDS})
    status = part.status if not part.reason else f"{part.status}: {part.reason}"
    return (
        str(part.rank),
        DASH if part.node is None else str(part.node),
        ", ".join(devices) or DASH,
        format_energy(part.energy_j),
        format_energy(rank_energy_j(part, host=False)),
        format_energy(rank_energy_j(part, host=True)),
        format_energy(part.communication_j),
        DASH if part.cpu_s is None else format_time(part.cpu_s),
        DASH if part.duration_s is None else format_time(part.duration_s),
        status,
    )


RANK_HEADINGS = ("rank", "node", "device", "energy", "on device", "on host", "communic.", "CPU time", "time", "status")


def describe_ranks(report: Report) -> str:
    """Describe the job: number of ranks, imbalance, differences in time, unallocated joules, clock error."""
    missing = [part.rank for part in report.ranks if not part.entries]
    words = [f"{len(report.ranks) - len(missing)} of {len(report.ranks)} ranks"]
    total = compare_totals(report)
    if total is not None and total.imbalance is not None:
        words.append(f"imbalance {total.imbalance:.2f} (most / mean; most: rank {total.max_rank})")
    skew = rank_skew_s(report)
    if skew is not None:
        began, ended, length = (format_time(seconds) for seconds in skew)
        words.append(f"began {began} apart, ended {ended} apart, durations differ by {length}")
    rest_j = no_rank_j(report)
    if rest_j > 0:
        words.append(f"{format_energy(rest_j)} of the machines not allocated to any rank")
    bounds = [part.clock_bound_ns for part in report.ranks if part.clock_method == "store"]
    if bounds:
        words.append(f"clock error at most {format_time(max(b for b in bounds if b is not None) / 1e9)}")
    return " · ".join(words)


MAX_SHOWN_RANKS = 32  # beyond, the ranks with the most and the fewest joules are shown; all are in rank.csv
MAX_SHOWN_LAYERS = 12
_TIE_MARK = " ~"
_LAYER_HEADINGS = ("layer", "phase", "sum", "min", "max", "max/mean", "of rank")


def rank_lines(report: Report, width: int) -> list[str]:
    """Return both tables as lines; empty for a report without ranks."""
    if not report.ranks:
        return []
    shown, left_out = _shown_ranks(report)
    rows = [RANK_HEADINGS, *(rank_cells(part) for part in shown)]
    lines = [*wrap(f"ranks: {describe_ranks(report)}", width), *_align_rows(rows, width, left_columns=(2, 9))]
    if left_out:
        lines.append(f"... {left_out} more ranks, in rank.csv")
    across_rows = _layer_cells(report)
    if across_rows:
        lines += ["", "layers across ranks", *_align_rows([_LAYER_HEADINGS, *across_rows], width, left_columns=(0, 1))]
        lines += [TIE_LEGEND] if any(name.endswith(_TIE_MARK) for name, *_ in across_rows) else []
    return [line.replace("µ", "u") for line in lines]


def rank_block(report: Report) -> str:
    """Return both tables as HTML; empty for a report without ranks."""
    if not report.ranks:
        return ""
    shown, left_out = _shown_ranks(report)
    blocks = html_tag("div", "Ranks", "font-size:15px;font-weight:600;margin:14px 0 6px 0")
    blocks += html_tag("div", muted_text(escape_text(describe_ranks(report))), "margin:0 0 6px 0")
    blocks += _html_table(RANK_HEADINGS, [rank_cells(part) for part in shown], left_columns=(2, 9))
    if left_out:
        blocks += html_tag("div", muted_text(f"and {left_out} more ranks, in rank.csv"))
    rows = _layer_cells(report)
    if rows:
        blocks += html_tag("div", "Layers across ranks", "font-size:15px;font-weight:600;margin:14px 0 6px 0")
        blocks += _html_table(_LAYER_HEADINGS, rows, left_columns=(0, 1)) + _tie_legend(rows)
    return blocks


def _tie_legend(rows: Sequence[tuple[str, ...]]) -> str:
    return (
        html_tag("div", muted_text(escape_text(TIE_LEGEND)))
        if any(name.endswith(_TIE_MARK) for name, *_ in rows)
        else ""
    )


def _shown_ranks(report: Report) -> tuple[list[RankPart], int]:
    """Return the ranks to show: all, or those that are not complete and those with the most and the fewest joules."""
    parts = list(report.ranks)
    if len(parts) <= MAX_SHOWN_RANKS:
        return parts, 0
    odd = [part for part in parts if part.status != "complete"]
    even = sorted((part for part in parts if part.status == "complete"), key=lambda p: -(p.energy_j or 0.0))
    half = max((MAX_SHOWN_RANKS - len(odd)) // 2, 1)
    shown = [*odd[:MAX_SHOWN_RANKS], *even[:half], *even[len(even) - half :]]
    chosen = sorted({part.rank: part for part in shown}.values(), key=lambda part: part.rank)
    return chosen, len(parts) - len(chosen)


def _layer_cells(report: Report) -> list[tuple[str, ...]]:
    """Return the rows with the most joules across ranks, and always those of communication."""
    rows = compare_ranks(report)
    shown = rows[:MAX_SHOWN_LAYERS]
    shown += tuple(row for row in rows[MAX_SHOWN_LAYERS:] if row.name == COMMUNICATION or row.phase == "communication")
    return [
        (
            escape_unprintable(row.name) + _TIE_MARK * row.tied,
            row.phase,
            format_energy(row.sum_j),
            format_energy(row.min_j),
            format_energy(row.max_j),
            DASH if row.imbalance is None else f"{row.imbalance:.2f}",
            str(row.max_rank),
        )
        for row in shown
    ]


def _align_rows(rows: Sequence[Sequence[str]], width: int, left_columns: tuple[int, ...]) -> list[str]:
    """Align columns to their cells; the widest column is truncated if the line is too long."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    spare = width - 2 * (len(widths) - 1) - sum(widths)
    wide = widths.index(max(widths))
    widths[wide] = max(widths[wide] + min(spare, 0), 8)
    lines = []
    for row in rows:
        cells = []
        for i, (cell, room) in enumerate(zip(row, widths, strict=True)):
            cut = cell if len(cell) <= room else cell[: room - 3] + "..."
            cells.append(cut.ljust(room) if i in left_columns else cut.rjust(room))
        lines.append("  ".join(cells).rstrip())
    return lines


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]], left_columns: tuple[int, ...]) -> str:
    def line(kind: str, row: Sequence[str]) -> str:
        align = ["text-align:left" if i in left_columns else "text-align:right" for i in range(len(row))]
        return html_tag(
            "tr", "".join(html_tag(kind, escape_text(cell), style) for cell, style in zip(row, align, strict=True))
        )

    body = line("th", head) + "".join(line("td", row) for row in rows)
    return html_tag("table", body, "border-collapse:collapse;font-size:12px;margin:0", cellpadding="4")
