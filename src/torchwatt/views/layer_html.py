"""The layers as HTML: the largest as a table with bars, all of them as an expandable tree."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

from torchwatt.core.ledger import Entry
from torchwatt.core.terms import ROOT, Phase
from torchwatt.views.layers import TIED, Folded, LayerSum, fold, ties
from torchwatt.views.markup import BACKWARD, FORWARD, OTHER, RULE, bar, chip, muted, tag, text
from torchwatt.views.numbers import DASH, format_energy, format_interval, format_share, format_time
from torchwatt.views.tree import Books, Node, fold_tree, smaller

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


def layers_block(booked: Books, run_j: float | None, max_modules: int = MAX_MODULES) -> str:
    """Return the table and the tree; empty where nothing was metered."""
    if run_j is None:
        return ""
    return _title() + _top_table(booked.modules, booked.reserved, run_j) + _whole_tree(booked, run_j, max_modules)


def _title() -> str:
    swatches = " &nbsp; ".join(
        f"{tag('span', '&nbsp;', f'display:inline-block;width:18px;height:10px;background:{color}')} {muted(name)}"
        for name, color in (("forward", FORWARD), ("backward", BACKWARD), ("other", OTHER))
    )
    title = tag("span", "Layers", "font-size:15px;font-weight:600")
    return tag("div", f"{title} &nbsp; {swatches}", "margin:16px 0 6px 0")


def _top_table(layers: Sequence[LayerSum], reserved: Sequence[LayerSum], run_j: float) -> str:
    shown, folded = fold(layers, _TOP_LAYERS)
    scale_j = max((layer.energy_j for layer in (*shown, *reserved)), default=0.0)
    head = tag("tr", "".join(tag("th", name, f"{_PADDING};text-align:{'left' if i in {0, 7} else 'right'}")
                             for i, name in enumerate(_HEAD)))  # fmt: skip
    unordered = ties(layers)
    rows = [_row(layer, scale_j, run_j, tied=layer.fqn in unordered) for layer in shown]
    if folded is not None:
        rows.append(_folded_row(folded, run_j))
    rows += [_row(layer, scale_j, run_j) for layer in reserved]
    total_j = fsum(e.energy_self_j for layer in (*layers, *reserved) for e in layer.entries)
    rows.append(_sum_row(total_j, run_j))
    style = "width:100%;border-collapse:collapse;font-size:12px;margin:0"
    legend = tag("div", muted(TIED)) * any(layer.fqn in unordered for layer in shown)
    return tag("table", head + "".join(rows), style, cellpadding="4") + legend


def _row(layer: LayerSum, scale_j: float, run_j: float, *, tied: bool = False) -> str:
    forward, backward, remainder = _split({phase: phase_sum.energy_j for phase, phase_sum in layer.phases.items()})
    name = text(_short(layer.fqn)) + (f" {muted(text(layer.class_name[:40]), '11px')}" if layer.class_name else "")
    name += f" {muted('~')}" * tied
    parts = [(FORWARD, forward or 0.0), (BACKWARD, backward or 0.0), (OTHER, remainder or 0.0)]
    cells = [
        tag("td", name, f"{_PADDING};text-align:left;word-break:break-all" + (";opacity:0.8" if layer.reserved else ""))
    ]
    cells += [_right(format_energy(value)) for value in (forward, backward, remainder, layer.energy_j)]
    cells.append(tag("td", tag("div", "", bar(parts, scale_j)), "width:24%;min-width:90px"))
    cells += [
        _right(format_share(_share(layer.energy_j, run_j))),
        tag("td", chip(layer.provenance), f"{_PADDING};text-align:left"),
    ]
    return tag("tr", "".join(cells))


def _folded_row(folded: Folded, run_j: float) -> str:
    name = tag("td", muted(f"{smaller(folded.layers)}, see the tree below"), f"{_PADDING};text-align:left", colspan="4")
    share = _right(format_share(_share(folded.energy_j, run_j)))
    return tag("tr", name + _right(format_energy(folded.energy_j)) + tag("td", "") + share + tag("td", ""))


def _sum_row(total_j: float, run_j: float) -> str:
    style = f"{_PADDING};border-top:{RULE};font-weight:600"
    cells = tag("td", "all of the above", f"{style};text-align:left", colspan="4")
    cells += tag("td", format_energy(total_j), f"{style};text-align:right;white-space:nowrap") + tag("td", "", style)
    cells += tag("td", format_share(_share(total_j, run_j)), f"{style};text-align:right;white-space:nowrap")
    return tag("tr", cells + tag("td", "", style))


def _right(content: str) -> str:
    return tag("td", content, f"{_PADDING};text-align:right;white-space:nowrap")


def _split(by_phase: dict[Phase, float]) -> tuple[float | None, float | None, float | None]:
    """Return forward, backward and the sum of the others; None for a phase without entries."""
    remaining_j = [energy_j for phase, energy_j in by_phase.items() if phase not in {"forward", "backward"}]
    return by_phase.get("forward"), by_phase.get("backward"), fsum(remaining_j) if remaining_j else None


def _share(energy_j: float, run_j: float) -> float | None:
    return energy_j / run_j if run_j > 0 else None


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[:20]}...{name[-_MAX_NAME + 23 :]}"


def _whole_tree(booked: Books, run_j: float, max_modules: int) -> str:
    if not booked.tops:
        return ""
    nodes = fold_tree(booked.tops, max_modules)
    scale_j = max((node.total_j for node in nodes), default=0.0)
    rows = "".join(_node(node, scale_j, run_j, open_=len(nodes) == 1) for node in nodes)
    named = ("forward", "backward", "total", "share")
    head = " ".join(tag("span", name, _NUMBER) for name in named) + tag("span", "", "display:inline-block;width:150px")
    title = tag("b", "Module tree") + f" {muted('total, children included; open a module for what is its own')}"
    style = f"margin:18px 0 2px 0;border-bottom:{RULE};padding-bottom:3px"
    return tag("div", tag("span", muted(head), _NUMBERS) + title, style) + rows


def _node(node: Node, scale_j: float, run_j: float, *, open_: bool = False) -> str:
    if node.smaller:
        return tag("div", _node_line(node, scale_j, run_j), "padding:2px 0 2px 16px")
    children = "".join(_node(child, scale_j, run_j, open_=len(node.children) == 1) for child in node.children)
    line = tag("summary", _node_line(node, scale_j, run_j), "cursor:pointer;padding:2px 0")
    content = tag("div", _details(node) + children, "margin-left:16px")
    return f"<details{' open' if open_ or node.fqn == ROOT else ''}>{line}{content}</details>"


def _node_line(node: Node, scale_j: float, run_j: float) -> str:
    forward, backward, remainder = _split(dict(node.total_by_phase))
    numbers = [format_energy(v) for v in (forward, backward, node.total_j)] + [
        format_share(_share(node.total_j, run_j))
    ]
    parts = [(FORWARD, forward or 0.0), (BACKWARD, backward or 0.0), (OTHER, remainder or 0.0)]
    spans = " ".join(tag("span", number, _NUMBER) for number in numbers)
    block = f"display:inline-block;width:140px;margin-left:10px;vertical-align:middle;{bar(parts, scale_j)}"
    name = muted(node.name) if node.smaller else text(_short(node.name))
    kind = f" {muted(text(node.layer.class_name[:40]), '11px')}" if node.layer and node.layer.class_name else ""
    return f"{tag('span', spans + tag('span', '&nbsp;', block), _NUMBERS)}{name}{kind}"


def _details(node: Node) -> str:
    """Return the module's own entries, one line per domain and phase."""
    if node.layer is None:
        return ""
    head = tag("tr", "".join(tag("th", name) for name in _DETAIL), align="right")
    rows = "".join(tag("tr", _detail(entry), align="right") for entry in node.layer.entries)
    return tag(
        "table", head + rows, "font-size:11px;margin:2px 0 6px 0;opacity:0.9;border-collapse:separate", cellspacing="6"
    )


def _detail(entry: Entry) -> str:
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
    return "".join(tag("td", text(cell)) for cell in cells)
