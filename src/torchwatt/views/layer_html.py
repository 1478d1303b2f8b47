"""The layers as HTML: three views as tables with bars, and an expandable tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum

from torchwatt.core.ledger import Entry
from torchwatt.core.report import Report
from torchwatt.core.terms import ROOT, Phase
from torchwatt.views.layer_groups import LayerGroup, View, cut_groups, default_view
from torchwatt.views.layer_sums import PROVENANCE_GLYPHS, TIE_LEGEND
from torchwatt.views.module_tree import LayerTree, ModuleNode, fold_tree
from torchwatt.views.number_format import (
    BACKWARD,
    BORDER,
    DASH,
    FORWARD,
    OTHER,
    bar_style,
    escape_text,
    format_energy,
    format_interval,
    format_share,
    format_time,
    html_tag,
    muted_text,
    shorten_middle,
    text_chip,
)

MAX_MODULES = 500  # of the tree
MAX_ROWS = 20  # of modules, of the other views
_MAX_NAME, _MAX_TITLE = 64, 300
# Explicit, since some pages remove the padding of tables; tables with many cells use cellspacing instead.
_PADDING = "padding:3px 6px"
_NUMBER = "display:inline-block;width:76px"
_NUMBERS = "float:right;text-align:right;white-space:nowrap"
_EACH = "each module"
_HEAD = ("layer", "energy", "90 % of repeats", "share", _EACH, "forward", "backward", "other", "by phase", "provenance")
_LEFT = frozenset({"layer", "provenance"})
_VIEW_TITLES: dict[View, str] = {
    "hottest": "Hottest: each module by itself, without the modules inside it",
    "blocks": "Blocks: alike modules of repeated blocks together",
    "type": "Types: modules of a kind together",
}
_STAGE = "stage"
_DETAIL = (
    "domain",
    "phase",
    _STAGE,
    "self",
    "90 % of repeats",
    "static",
    "time",
    "calls",
    "J/call",
    "method",
    "provenance",
    "extrapolated",
)


def build_tree_block(booked: LayerTree, run_j: float | None, max_modules: int = MAX_MODULES) -> str:
    """Return the tree of modules; empty where nothing was metered."""
    return "" if run_j is None else _tree_block(booked, run_j, max_modules)


def _layers_title() -> str:
    swatches = " &nbsp; ".join(
        html_tag("span", "&nbsp;", f"display:inline-block;width:18px;height:10px;background:{color}")
        + f" {muted_text(name)}"
        for name, color in (("forward", FORWARD), ("backward", BACKWARD), ("other", OTHER))
    )
    title = html_tag("span", "Layers", "font-size:15px;font-weight:600")
    return html_tag("div", f"{title} &nbsp; {swatches}", "margin:16px 0 6px 0")


def build_group_tables(report: Report, views: Mapping[View, Sequence[LayerGroup]], max_rows: int = MAX_ROWS) -> str:
    """Return the default view of the layers as a table, and the others behind folds; empty without a meter.

    Args:
        report: The report.
        views: The rows of each view (see `flat_views`).
        max_rows: The rows of modules in each table; the others become one row.
    """
    if report.energy_j is None:
        return ""
    opened = default_view(report)
    tables = _group_table(report, views[opened], max_rows)
    for view, title in _VIEW_TITLES.items():
        if view != opened:
            summary = html_tag("summary", title, "cursor:pointer;margin-top:6px")
            tables += f"<details>{summary}{_group_table(report, views[view], max_rows)}</details>"
    return _layers_title() + html_tag("div", muted_text(_VIEW_TITLES[opened])) + tables


def _group_table(report: Report, everything: Sequence[LayerGroup], max_rows: int) -> str:
    groups, run_j = cut_groups(report, everything, max_rows), report.energy_j or 0.0
    scale_j = max((group.energy_j for group in groups), default=0.0)
    several = any(group.each_lo_j is not None for group in groups)
    heads = [name for name in _HEAD if several or name != _EACH]
    head = html_tag(
        "tr",
        "".join(
            html_tag("th", name, f"{_PADDING};text-align:{'left' if name in _LEFT else 'right'}") for name in heads
        ),
    )
    rows = [_group_row(group, scale_j, several=several) for group in groups]
    rows.append(_sum_row(report, run_j, len(heads)))
    style = "width:100%;border-collapse:collapse;font-size:12px;margin:0"
    legend = html_tag("div", muted_text(TIE_LEGEND)) * any(group.unclear for group in groups)
    return html_tag("table", head + "".join(rows), style, cellpadding="4") + legend


def _group_row(group: LayerGroup, scale_j: float, *, several: bool) -> str:
    forward, backward, remainder = _split_phases(group.phases)
    name = escape_text(shorten_middle(group.name, _MAX_NAME)) + (f" x{group.count}" if group.count > 1 else "")
    name += f"&nbsp;{muted_text('~')}" * group.unclear
    style = f"{_PADDING};text-align:left;word-break:break-all" + (";opacity:0.8" if not group.count else "")
    parts = [(FORWARD, forward or 0.0), (BACKWARD, backward or 0.0), (OTHER, remainder or 0.0)]
    each = "" if group.each_lo_j is None else format_interval(group.each_lo_j, group.each_hi_j)
    interval = DASH if group.lo_j is None else format_interval(group.lo_j, group.hi_j)
    texts = [format_energy(group.energy_j), interval, format_share(group.share), *([each] if several else [])]
    texts += [format_energy(forward), format_energy(backward), format_energy(remainder)]
    full_name = {"title": escape_text(group.name[:_MAX_TITLE])} if len(group.name) > _MAX_NAME else {}
    cells = [html_tag("td", name, style, **full_name), *map(_right_cell, texts)]
    cells.append(html_tag("td", html_tag("div", "", bar_style(parts, scale_j)), "width:20%;min-width:90px"))
    chip = provenance_chip(group.provenance) if group.provenance else DASH
    cells.append(html_tag("td", chip, f"{_PADDING};text-align:left"))
    return html_tag("tr", "".join(cells))


def provenance_chip(provenance: str) -> str:
    """Return a provenance with its glyph in a rounded border."""
    return text_chip(f"{PROVENANCE_GLYPHS[provenance]} {provenance}")


def _sum_row(report: Report, run_j: float, columns: int) -> str:
    booked_j = fsum(entry.energy_self_j for ledger in report.counted for entry in ledger.entries)
    interval = format_interval(*report.interval_j) if report.interval_j is not None else DASH
    style = f"{_PADDING};border-top:{BORDER};font-weight:600"
    cells = html_tag("td", "all of the above", f"{style};text-align:left")
    for text in (format_energy(booked_j), interval, format_share(_energy_share(booked_j, run_j))):
        cells += html_tag("td", text, f"{style};text-align:right;white-space:nowrap")
    return html_tag("tr", cells + html_tag("td", "", style, colspan=str(columns - 4)))


def _right_cell(content: str) -> str:
    return html_tag("td", content, f"{_PADDING};text-align:right;white-space:nowrap")


def _split_phases(by_phase: Mapping[Phase, float]) -> tuple[float | None, float | None, float | None]:
    """Return forward, backward and the sum of the others; None for a phase without entries."""
    remaining_j = [energy_j for phase, energy_j in by_phase.items() if phase not in {"forward", "backward"}]
    return by_phase.get("forward"), by_phase.get("backward"), fsum(remaining_j) if remaining_j else None


def _energy_share(energy_j: float, run_j: float) -> float | None:
    return energy_j / run_j if run_j > 0 else None


def _tree_block(booked: LayerTree, run_j: float, max_modules: int) -> str:
    if not booked.tops:
        return ""
    nodes = fold_tree(booked.tops, max_modules)
    scale_j = max((node.total_j for node in nodes), default=0.0)
    rows = "".join(_node_block(node, scale_j, run_j, open_=len(nodes) == 1) for node in nodes)
    named = ("forward", "backward", "total", "share")
    head = " ".join(html_tag("span", name, _NUMBER) for name in named) + html_tag(
        "span", "", "display:inline-block;width:150px"
    )
    title = (
        html_tag("b", "Module tree") + f" {muted_text('total, children included; open a module for what is its own')}"
    )
    style = f"margin:18px 0 2px 0;border-bottom:{BORDER};padding-bottom:3px"
    return html_tag("div", html_tag("span", muted_text(head), _NUMBERS) + title, style) + rows


def _node_block(node: ModuleNode, scale_j: float, run_j: float, *, open_: bool = False) -> str:
    if node.smaller:
        return html_tag("div", _node_line(node, scale_j, run_j), "padding:2px 0 2px 16px")
    children = "".join(_node_block(child, scale_j, run_j, open_=len(node.children) == 1) for child in node.children)
    line = html_tag("summary", _node_line(node, scale_j, run_j), "cursor:pointer;padding:2px 0")
    content = html_tag("div", _details(node) + children, "margin-left:16px")
    return f"<details{' open' if open_ or node.fqn == ROOT else ''}>{line}{content}</details>"


def _node_line(node: ModuleNode, scale_j: float, run_j: float) -> str:
    forward, backward, remainder = _split_phases(node.total_by_phase)
    numbers = [format_energy(v) for v in (forward, backward, node.total_j)] + [
        format_share(_energy_share(node.total_j, run_j))
    ]
    parts = [(FORWARD, forward or 0.0), (BACKWARD, backward or 0.0), (OTHER, remainder or 0.0)]
    spans = " ".join(html_tag("span", number, _NUMBER) for number in numbers)
    block = f"display:inline-block;width:140px;margin-left:10px;vertical-align:middle;{bar_style(parts, scale_j)}"
    name = muted_text(node.name) if node.smaller else escape_text(shorten_middle(node.name, _MAX_NAME))
    kind = (
        f" {muted_text(escape_text(node.layer.class_name[:40]), '11px')}"
        if node.layer and node.layer.class_name
        else ""
    )
    return f"{html_tag('span', spans + html_tag('span', '&nbsp;', block), _NUMBERS)}{name}{kind}"


def _details(node: ModuleNode) -> str:
    """Return the module's own entries: one line per domain, phase and stage."""
    if node.layer is None:
        return ""
    entries = node.layer.entries
    has_stages = any(entry.stage for entry in entries)
    names = [name for name in _DETAIL if has_stages or name != _STAGE]
    head = html_tag("tr", "".join(html_tag("th", name) for name in names), align="right")
    rows = "".join(html_tag("tr", _detail_row(entry, has_stages=has_stages), align="right") for entry in entries)
    return html_tag(
        "table", head + rows, "font-size:11px;margin:2px 0 6px 0;opacity:0.9;border-collapse:separate", cellspacing="6"
    )


def _detail_row(entry: Entry, *, has_stages: bool) -> str:
    per_call_j = entry.energy_self_j / entry.calls if entry.calls else None
    cells = (
        str(entry.domain),
        entry.phase,
        *([entry.stage or DASH] if has_stages else []),
        format_energy(entry.energy_self_j),
        format_interval(entry.energy_self_lo_j, entry.energy_self_hi_j),
        format_energy(entry.energy_static_j),
        format_time(entry.time_self_s),
        str(entry.calls) if entry.calls else DASH,
        format_energy(per_call_j),
        entry.method,
        entry.provenance,
        format_share(entry.carried_share),
    )
    return "".join(html_tag("td", escape_text(cell)) for cell in cells)
