"""A report as text for a terminal."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from textwrap import wrap

from torchwatt.core.plain_text import escape_unprintable
from torchwatt.core.report import Report
from torchwatt.core.terms import ROOT, Phase
from torchwatt.views import report_summary
from torchwatt.views.layer_sums import (
    TIE_LEGEND,
    FoldedLayers,
    LayerSum,
    PhaseSum,
    class_names,
    find_ties,
    fold_layers,
    sum_layers,
)
from torchwatt.views.module_tree import find_containers, smaller_label, sum_totals
from torchwatt.views.number_format import (
    DASH,
    format_energy,
    format_interval,
    format_power,
    format_share,
    format_time,
    format_wh,
)
from torchwatt.views.rank_table import rank_lines

_LABEL_WIDTH = 11
_MAX_EVENTS = 12
_MAX_WINDOWS = 12
_MAX_TEXT = 300
_COLUMNS = (("phase", 9), ("self", 9), ("90 % of repeats", 16), ("total", 9), ("share", 7), ("provenance", 11))
_FIXED_WIDTH = sum(width + 2 for _, width in _COLUMNS)


def to_text(report: Report, *, max_layers: int = 20, width: int = 100) -> str:
    """Return a report as a table; ASCII but for `±`, `—`, `·` and the user's own names.

    Args:
        report: The report to show.
        max_layers: How many layers to list; the others are summed in one line.
        width: Characters a line, 88 or more.
    """
    width = max(width, 88)
    blocks = [_head_lines(report, width), _domain_lines(report, width), _layer_table_lines(report, max_layers, width)]
    blocks += [rank_lines(report, width), _tail_lines(report, width)]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _head_lines(report: Report, width: int) -> list[str]:
    title = ["torchwatt", escape_unprintable(report.name), report.status, format_time(report.duration_s)]
    if report.exit_reason:
        title.append(escape_unprintable(report.exit_reason))
    carbon = report_summary.describe_carbon(report)
    energy = f"{report_summary.energy_text(report)} · {format_wh(report.energy_j)} · {report.provenance}"
    systematic = report_summary.systematic_text(report)
    if report.energy_j is None:
        energy = f"{DASH} · nothing was metered"
    lines = [_shorten_end(" · ".join(word for word in title if word), width)]
    lines += _label_lines("energy", energy, width)
    lines += _label_lines("", systematic, width)
    for note in report_summary.head_notes(report):
        lines += _label_lines("", note, width)
    lines += _label_lines("power", f"{format_power(report.mean_power_w)} mean", width)
    grams = "" if carbon.grams == DASH else f"{carbon.grams} · "
    lines += _label_lines("carbon", grams + carbon.basis, width)
    for note in carbon.notes:
        lines += _label_lines("", note, width)
    for rate in report_summary.energy_rates(report):
        lines += _label_lines(rate.label, f"{rate.value} · {rate.detail}", width)
    return lines


def _domain_lines(report: Report, width: int) -> list[str]:
    lines = []
    shown, remainder = report_summary.select_domain_texts(report)
    for item in shown:
        numbers = f"{item.energy_and_bounds} · {item.share} · {item.provenance}"
        lines += _label_lines(item.domain, numbers + (f" · {item.meter}" if item.meter else ""), width)
        lines += _label_lines("", item.sentence, width)
    lines += _label_lines("", remainder, width)
    for gone in report.unavailable:
        # The fix is in the events file, the page and `torchwatt doctor`; the terminal only refers to it.
        substitute = "no meter, modelled instead" if report_summary.is_modelled_instead(report, gone) else DASH
        reason = _to_ascii(escape_unprintable(f"{substitute} · {gone.reason}"))
        lines.append(_shorten_end(f"{gone.domain:{_LABEL_WIDTH - 1}} {reason}", width))
    if report.unavailable and any(gone.fix for gone in report.unavailable):
        lines += _label_lines("", "`torchwatt doctor` lists what would help", width)
    return lines


@dataclass(frozen=True, slots=True)
class _TableLayout:
    """Totals and layout that all lines of the layer table share."""

    total_j: Mapping[str, Mapping[Phase, float]]
    run_j: float
    name_width: int
    backward: bool  # the run has a backward pass, so each module gets a line for it
    ties: frozenset[str]  # layers whose order is uncertain


def _layer_table_lines(report: Report, max_layers: int, width: int) -> list[str]:
    if report.energy_j is None:
        return []
    everything = sum_layers(report)
    layers = [layer for layer in everything if not layer.reserved]
    entries = [entry for ledger in report.counted for entry in ledger.entries]
    backward = any(entry.phase == "backward" for entry in entries)
    modules = class_names(report)
    container_of = find_containers((entry.fqn for entry in entries), modules)
    total_j = sum_totals(((entry.fqn, entry.phase, entry.energy_self_j) for entry in entries), container_of)
    sheet = _TableLayout(total_j, report.energy_j, width - _FIXED_WIDTH, backward, find_ties(layers))
    shown, folded = _select_layers(
        layers, max(max_layers, 0), LayerSum(ROOT, modules.get(ROOT, ""), {}, ()), container_of
    )
    over = " + ".join(str(ledger.domain) for ledger in report.counted)
    lines = [f"layers, {over}", _table_line("layer", [name for name, _ in _COLUMNS], sheet), "-" * width]
    for layer in shown:
        lines += _module_lines(layer, sheet, is_module=not modules or layer.fqn in modules)
    if folded is not None:
        lines.append(_folded_line(folded, sheet))
    for layer in everything:
        if layer.reserved:
            lines += _reserved_lines(layer, sheet)
    booked_j = fsum(entry.energy_self_j for entry in entries)
    share = format_share(booked_j / sheet.run_j if sheet.run_j > 0 else None)
    provenance = str(report.provenance or DASH)
    interval = format_interval(*report.interval_j) if report.interval_j is not None else ""
    cells = ["", format_energy(booked_j), interval, "", share, provenance]
    lines += ["-" * width, _table_line("all of the above", cells, sheet)]
    if any(layer.fqn in sheet.ties for layer in shown):
        lines.append(TIE_LEGEND)
    return [_to_ascii(line) for line in lines]


def _select_layers(
    layers: Sequence[LayerSum], max_layers: int, root: LayerSum, container_of: Container[str]
) -> tuple[tuple[LayerSum, ...], FoldedLayers | None]:
    """Keep the layers with the most joules of their own, and the root module, whose total contains all modules."""
    shown, folded = fold_layers(layers, max_layers)
    if max_layers == 0 or ROOT not in container_of or any(layer.fqn == ROOT for layer in shown):
        return shown, folded
    root = next((layer for layer in layers if layer.fqn == ROOT), root)
    shown, folded = fold_layers([layer for layer in layers if layer.fqn != ROOT], max_layers - 1)
    return (root, *shown), folded


def _module_lines(layer: LayerSum, sheet: _TableLayout, *, is_module: bool) -> Iterator[str]:
    """Yield a module's forward and backward lines even if one is unknown: a missing line would read as zero."""
    phases: list[Phase] = (["forward", "backward"] if sheet.backward else ["forward"]) if is_module else []
    phases += [phase for phase in layer.phases if phase not in phases]
    name = escape_unprintable(layer.fqn) + (" ~" if layer.fqn in sheet.ties else "")
    for phase in phases:
        yield _table_line(name, _phase_cells(layer, phase, sheet), sheet)
        name = ""


def _reserved_lines(layer: LayerSum, sheet: _TableLayout) -> Iterator[str]:
    for phase in layer.phases:
        yield _table_line(layer.fqn, _phase_cells(layer, phase, sheet), sheet)


def _phase_cells(layer: LayerSum, phase: Phase, sheet: _TableLayout) -> list[str]:
    phase_sum: PhaseSum | None = layer.phases.get(phase)
    if phase_sum is None:
        total = sheet.total_j.get(layer.fqn, {}).get(phase)
        return [phase, DASH, DASH, format_energy(total), DASH, DASH]
    return [
        "" if layer.fqn == f"({phase})" else phase,
        format_energy(phase_sum.energy_j),
        format_interval(phase_sum.lo_j, phase_sum.hi_j),
        DASH if layer.reserved else format_energy(sheet.total_j[layer.fqn][phase]),
        format_share(phase_sum.energy_j / sheet.run_j if sheet.run_j > 0 else None),
        phase_sum.provenance,
    ]


def _folded_line(folded: FoldedLayers, sheet: _TableLayout) -> str:
    share = format_share(folded.energy_j / sheet.run_j if sheet.run_j > 0 else None)
    return _table_line(smaller_label(folded.layers), ["", format_energy(folded.energy_j), "", "", share, ""], sheet)


def _table_line(name: str, cells: Sequence[str], sheet: _TableLayout) -> str:
    text = _shorten_name(name, sheet.name_width).ljust(sheet.name_width)
    for cell, (column, width) in zip(cells, _COLUMNS, strict=True):
        text += "  " + (cell.ljust(width) if column in {"phase", "provenance"} else cell.rjust(width))
    return text.rstrip()


def _tail_lines(report: Report, width: int) -> list[str]:
    lines = []
    for window in report.windows[:_MAX_WINDOWS]:
        text = f"{format_energy(window.energy_j)} in {format_time((window.end_ns - window.start_ns) / 1e9)}"
        lines += _label_lines("window", f"{window.name} · {text}, inside the total", width)
    if len(report.windows) > _MAX_WINDOWS:
        lines += _label_lines("", f"... and {len(report.windows) - _MAX_WINDOWS} more windows", width)
    events = report_summary.select_warnings(report)
    for event in events[:_MAX_EVENTS]:
        text = _shorten_end(f"{event.code} · {event.subject} · {event.message}", _MAX_TEXT)
        lines += _label_lines(event.severity, f"{text} (at {report_summary.event_time(report, event)})", width)
    if len(events) > _MAX_EVENTS:
        lines += _label_lines("", f"... and {len(events) - _MAX_EVENTS} more warnings", width)
    quiet = sum(event.severity == "info" for event in report.events)
    notes = f" · {quiet} note{'s' if quiet > 1 else ''} in the events" if quiet else ""
    return [*lines, *_label_lines("measuring", report_summary.describe_cost(report) + notes, width)]


def _label_lines(label: str, text: str, width: int) -> list[str]:
    """Return a label and its text, wrapped with a hanging indent."""
    if not text:
        return []
    label = escape_unprintable(label)
    lines = wrap(_to_ascii(escape_unprintable(text)), width - _LABEL_WIDTH, break_on_hyphens=False)
    head = label.ljust(_LABEL_WIDTH) if len(label) < _LABEL_WIDTH else f"{label} "
    return [(head if i == 0 else " " * _LABEL_WIDTH) + line for i, line in enumerate(lines)]


def _to_ascii(text: str) -> str:
    return text.replace("µ", "u")


def _shorten_name(text: str, width: int) -> str:
    """Truncate the front of a dotted name, since its end distinguishes layers."""
    return text if len(text) <= width else "..." + text[-(width - 3) :]


def _shorten_end(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
