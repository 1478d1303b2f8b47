"""The layers as HTML: the largest as a table with bars, all of them as an expandable tree."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

from torchwatt.core.ledger import Entry
from torchwatt.core.terms import ROOT, Phase
from torchwatt.views.layer_sums import TIE_LEGEND, FoldedLayers, LayerSum, find_ties, fold_layers
from torchwatt.views.markup import (
    BACKWARD,
    BORDER,
    FORWARD,
    OTHER,
    bar_style,
    escape_text,
    html_tag,
    muted_text,
    text_chip,
)
from torchwatt.views.module_tree import LayerTree, ModuleNode, fold_tree, smaller_label
from torchwatt.views.number_format import DASH, format_energy, format_interval, format_share, format_time

MAX_MODULES = 500  # of the tree
_TOP_LAYERS = 12
_MAX_NAME = 64
# Explicit, since some pages remove the padding of tables; tables with many cells use cellspacing instead.
_PADDING = "padding:3px 6px"
_NUMBER = "display:inline-block;width:76px"
_NUMBERS = "float:right;text-align:right;white-space:nowrap"
_HEAD = ("layer", "forward", "backward", "other", "self", "", "share", "provenance")
_DETAIL = (
    "domain",
    "phase",
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


def build_layers_block(booked: LayerTree, run_j: float | None, max_modules: int = MAX_MODULES) -> str:
    """Return the table and the tree; empty where nothing was metered."""
    if run_j is None:
        return ""
    return (
        _layers_title() + _top_table(booked.modules, booked.reserved, run_j) + _tree_block(booked, run_j, max_modules)
    )


def _layers_title() -> str:
    swatches = " &nbsp; ".join(
        html_tag("span", "&nbsp;", f"display:inline-block;width:18px;height:10px;background:{color}")
        + f" {muted_text(name)}"
        for name, color in (("forward", FORWARD), ("backward", BACKWARD), ("other", OTHER))
    )
    title = html_tag("span", "Layers", "font-size:15px;font-weight:600")
    return html_tag("div", f"{title} &nbsp; {swatches}", "margin:16px 0 6px 0")


def _top_table(layers: Sequence[LayerSum], reserved: Sequence[LayerSum], run_j: float) -> str:
    shown, folded = fold_layers(layers, _TOP_LAYERS)
    scale_j = max((layer.energy_j for layer in (*shown, *reserved)), default=0.0)
    head = html_tag(
        "tr",
        "".join(
            html_tag("th", name, f"{_PADDING};text-align:{'left' if i in {0, 7} else 'right'}")
            for i, name in enumerate(_HEAD)
        ),
    )
    unordered = find_ties(layers)
    rows = [_layer_row(layer, scale_j, run_j, tied=layer.fqn in unordered) for layer in shown]
    if folded is not None:
        rows.append(_folded_row(folded, run_j))
    rows += [_layer_row(layer, scale_j, run_j) for layer in reserved]
    total_j = fsum(e.energy_self_j for layer in (*layers, *reserved) for e in layer.entries)
    rows.append(_sum_row(total_j, run_j))
    style = "width:100%;border-collapse:collapse;font-size:12px;margin:0"
    legend = html_tag("div", muted_text(TIE_LEGEND)) * any(layer.fqn in unordered for layer in shown)
    return html_tag("table", head + "".join(rows), style, cellpadding="4") + legend


def _layer_row(layer: LayerSum, scale_j: float, run_j: float, *, tied: bool = False) -> str:
    forward, backward, remainder = _split_phases(
        {phase: phase_sum.energy_j for phase, phase_sum in layer.phases.items()}
    )
    name = escape_text(_shorten_name(layer.fqn)) + (
        f" {muted_text(escape_text(layer.class_name[:40]), '11px')}" if layer.class_name else ""
    )
    name += f" {muted_text('~')}" * tied
    parts = [(FORWARD, forward or 0.0), (BACKWARD, backward or 0.0), (OTHER, remainder or 0.0)]
    cells = [
        html_tag(
            "td", name, f"{_PADDING};text-align:left;word-break:break-all" + (";opacity:0.8" if layer.reserved else "")
        )
    ]
    cells += [_right_cell(format_energy(value)) for value in (forward, backward, remainder, layer.energy_j)]
    cells.append(html_tag("td", html_tag("div", "", bar_style(parts, scale_j)), "width:24%;min-width:90px"))
    cells += [
        _right_cell(format_share(_energy_share(layer.energy_j, run_j))),
        html_tag("td", text_chip(layer.provenance), f"{_PADDING};text-align:left"),
    ]
    return html_tag("tr", "".join(cells))


def _folded_row(folded: FoldedLayers, run_j: float) -> str:
    name = html_tag(
        "td",
        muted_text(f"{smaller_label(folded.layers)}, see the tree below"),
        f"{_PADDING};text-align:left",
        colspan="4",
    )
    share = _right_cell(format_share(_energy_share(folded.energy_j, run_j)))
    return html_tag(
        "tr", name + _right_cell(format_energy(folded.energy_j)) + html_tag("td", "") + share + html_tag("td", "")
    )


def _sum_row(total_j: float, run_j: float) -> str:
    style = f"{_PADDING};border-top:{BORDER};font-weight:600"
    cells = html_tag("td", "all of the above", f"{style};text-align:left", colspan="4")
    cells += html_tag("td", format_energy(total_j), f"{style};text-align:right;white-space:nowrap") + html_tag(
        "td", "", style
    )
    cells += html_tag("td", format_share(_energy_share(total_j, run_j)), f"{style};text-align:right;white-space:nowrap")
    return html_tag("tr", cells + html_tag("td", "", style))


def _right_cell(content: str) -> str:
    return html_tag("td", content, f"{_PADDING};text-align:right;white-space:nowrap")


def _split_phases(by_phase: dict[Phase, float]) -> tuple[float | None, float | None, float | None]:
    """Return forward, backward and the sum of the others; None for a phase without entries."""
    remaining_j = [energy_j for phase, energy_j in by_phase.items() if phase not in {"forward", "backward"}]
    return by_phase.get("forward"), by_phase.get("backward"), fsum(remaining_j) if remaining_j else None


def _energy_share(energy_j: float, run_j: float) -> float | None:
    return energy_j / run_j if run_j > 0 else None


def _shorten_name(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[:20]}...{name[-_MAX_NAME + 23 :]}"


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
    forward, backward, remainder = _split_phases(dict(node.total_by_phase))
    numbers = [format_energy(v) for v in (forward, backward, node.total_j)] + [
        format_share(_energy_share(node.total_j, run_j))
    ]
    parts = [(FORWARD, forward or 0.0), (BACKWARD, backward or 0.0), (OTHER, remainder or 0.0)]
    spans = " ".join(html_tag("span", number, _NUMBER) for number in numbers)
    block = f"display:inline-block;width:140px;margin-left:10px;vertical-align:middle;{bar_style(parts, scale_j)}"
    name = muted_text(node.name) if node.smaller else escape_text(_shorten_name(node.name))
    kind = (
        f" {muted_text(escape_text(node.layer.class_name[:40]), '11px')}"
        if node.layer and node.layer.class_name
        else ""
    )
    return f"{html_tag('span', spans + html_tag('span', '&nbsp;', block), _NUMBERS)}{name}{kind}"


def _details(node: ModuleNode) -> str:
    """Return the module's own entries, one line per domain and phase."""
    if node.layer is None:
        return ""
    head = html_tag("tr", "".join(html_tag("th", name) for name in _DETAIL), align="right")
    rows = "".join(html_tag("tr", _detail_row(entry), align="right") for entry in node.layer.entries)
    return html_tag(
        "table", head + rows, "font-size:11px;margin:2px 0 6px 0;opacity:0.9;border-collapse:separate", cellspacing="6"
    )


def _detail_row(entry: Entry) -> str:
    per_call_j = entry.energy_self_j / entry.calls if entry.calls else None
    cells = (
        str(entry.domain),
        entry.phase,
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
