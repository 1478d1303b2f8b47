"""The ranks of a merged job as text, and as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from torchwatt.core.job import RankPart
from torchwatt.core.plain_text import printable
from torchwatt.core.report import Report
from torchwatt.core.terms import COMMUNICATION
from torchwatt.views import ranks
from torchwatt.views.layers import TIED
from torchwatt.views.markup import muted, tag, text
from torchwatt.views.numbers import DASH, format_energy

MOST_RANKS = 32  # beyond, the ranks with the most and the fewest joules are shown; all are in rank.csv
MOST_LAYERS = 12
_MARK = " ~"
_ACROSS = ("layer", "phase", "sum", "min", "max", "max/mean", "of rank")


def rank_lines(report: Report, width: int) -> list[str]:
    """Return both tables as lines; empty for a report without ranks."""
    if not report.ranks:
        return []
    shown, left_out = _shown(report)
    rows = [ranks.HEAD, *(ranks.cells(part) for part in shown)]
    lines = [*wrap(f"ranks: {ranks.sentence(report)}", width), *_aligned(rows, width, left_columns=(2, 9))]
    if left_out:
        lines.append(f"... {left_out} more ranks, in rank.csv")
    across_rows = _across_rows(report)
    if across_rows:
        lines += ["", "layers across ranks", *_aligned([_ACROSS, *across_rows], width, left_columns=(0, 1))]
        lines += [TIED] if any(name.endswith(_MARK) for name, *_ in across_rows) else []
    return [line.replace("µ", "u") for line in lines]


def rank_block(report: Report) -> str:
    """Return both tables as HTML; empty for a report without ranks."""
    if not report.ranks:
        return ""
    shown, left_out = _shown(report)
    blocks = tag("div", "Ranks", "font-size:15px;font-weight:600;margin:14px 0 6px 0")
    blocks += tag("div", muted(text(ranks.sentence(report))), "margin:0 0 6px 0")
    blocks += _html(ranks.HEAD, [ranks.cells(part) for part in shown], left_columns=(2, 9))
    if left_out:
        blocks += tag("div", muted(f"and {left_out} more ranks, in rank.csv"))
    rows = _across_rows(report)
    if rows:
        blocks += tag("div", "Layers across ranks", "font-size:15px;font-weight:600;margin:14px 0 6px 0")
        blocks += _html(_ACROSS, rows, left_columns=(0, 1)) + _legend(rows)
    return blocks


def _legend(rows: Sequence[tuple[str, ...]]) -> str:
    return tag("div", muted(text(TIED))) if any(name.endswith(_MARK) for name, *_ in rows) else ""


def _shown(report: Report) -> tuple[list[RankPart], int]:
    """Return the ranks to show: all, or those that are not complete and those with the most and the fewest joules."""
    parts = list(report.ranks)
    if len(parts) <= MOST_RANKS:
        return parts, 0
    odd = [part for part in parts if part.status != "complete"]
    even = sorted((part for part in parts if part.status == "complete"), key=lambda p: -(p.energy_j or 0.0))
    half = max((MOST_RANKS - len(odd)) // 2, 1)
    shown = [*odd[:MOST_RANKS], *even[:half], *even[len(even) - half :]]
    chosen = sorted({part.rank: part for part in shown}.values(), key=lambda part: part.rank)
    return chosen, len(parts) - len(chosen)


def _across_rows(report: Report) -> list[tuple[str, ...]]:
    """Return the rows with the most joules across ranks, and always those of communication."""
    rows = ranks.across(report)
    shown = rows[:MOST_LAYERS]
    shown += tuple(row for row in rows[MOST_LAYERS:] if row.name == COMMUNICATION or row.phase == "communication")
    return [
        (
            printable(row.name) + _MARK * row.tied, row.phase, format_energy(row.sum_j), format_energy(row.min_j),
            format_energy(row.max_j), DASH if row.imbalance is None else f"{row.imbalance:.2f}", str(row.max_rank),
        )
        for row in shown
    ]  # fmt: skip


def _aligned(rows: Sequence[Sequence[str]], width: int, left_columns: tuple[int, ...]) -> list[str]:
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


def _html(head: Sequence[str], rows: Sequence[Sequence[str]], left_columns: tuple[int, ...]) -> str:
    def line(kind: str, row: Sequence[str]) -> str:
        align = ["text-align:left" if i in left_columns else "text-align:right" for i in range(len(row))]
        return tag("tr", "".join(tag(kind, text(cell), style) for cell, style in zip(row, align, strict=True)))

    body = line("th", head) + "".join(line("td", row) for row in rows)
    return tag("table", body, "border-collapse:collapse;font-size:12px;margin:0", cellpadding="4")
