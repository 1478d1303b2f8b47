"""A report as text for a terminal."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from textwrap import wrap

from torchwatt.core.plain_text import printable
from torchwatt.core.report import Report
from torchwatt.core.terms import ROOT, Phase
from torchwatt.views import summary
from torchwatt.views.layers import TIED, Folded, LayerSum, PhaseSum, class_names, fold, layer_sums, ties
from torchwatt.views.numbers import (
    DASH,
    format_energy,
    format_interval,
    format_power,
    format_share,
    format_time,
    format_wh,
)
from torchwatt.views.rank_table import rank_lines
from torchwatt.views.tree import containers, smaller, totals

_LABEL = 11
_MAX_EVENTS = 12
_MAX_WINDOWS = 12
_MAX_TEXT = 300
_COLUMNS = (("phase", 9), ("self", 9), ("90 % of repeats", 16), ("total", 9), ("share", 7), ("provenance", 11))
_FIXED = sum(width + 2 for _, width in _COLUMNS)


def to_text(report: Report, *, max_layers: int = 20, width: int = 100) -> str:
    """Return a report as a table; ASCII but for `±`, `—`, `·` and the user's own names.

    Args:
        report: The report to show.
        max_layers: How many layers to list; the others are summed in one line.
        width: Characters a line, 88 or more.
    """
    width = max(width, 88)
    blocks = [_head(report, width), _domains(report, width), _layers(report, max_layers, width)]
    blocks += [rank_lines(report, width), _tail(report, width)]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _head(report: Report, width: int) -> list[str]:
    title = ["torchwatt", printable(report.name), report.status, format_time(report.duration_s)]
    if report.exit_reason:
        title.append(printable(report.exit_reason))
    carbon = summary.carbon(report)
    energy = f"{summary.energy_text(report)} · {format_wh(report.energy_j)} · {report.provenance}"
    systematic = summary.systematic_text(report)
    if report.energy_j is None:
        energy = f"{DASH} · nothing was metered"
    lines = [_cut_end(" · ".join(word for word in title if word), width)]
    lines += _labelled("energy", energy, width)
    lines += _labelled("", systematic, width)
    for note in summary.head_notes(report):
        lines += _labelled("", note, width)
    lines += _labelled("power", f"{format_power(report.mean_power_w)} mean", width)
    grams = "" if carbon.grams == DASH else f"{carbon.grams} · "
    lines += _labelled("carbon", grams + carbon.basis, width)
    for note in carbon.notes:
        lines += _labelled("", note, width)
    for rate in summary.rates(report):
        lines += _labelled(rate.label, f"{rate.value} · {rate.detail}", width)
    return lines


def _domains(report: Report, width: int) -> list[str]:
    lines = []
    shown, remainder = summary.shown_domains(report)
    for item in shown:
        numbers = f"{item.energy_and_bounds} · {item.share} · {item.provenance}"
        lines += _labelled(item.domain, numbers + (f" · {item.meter}" if item.meter else ""), width)
        lines += _labelled("", item.sentence, width)
    lines += _labelled("", remainder, width)
    for gone in report.unavailable:
        # The fix is in the events file, the page and `torchwatt doctor`; the terminal only refers to it.
        substitute = "no meter, modelled instead" if summary.modelled_instead(report, gone) else DASH
        reason = _ascii(printable(f"{substitute} · {gone.reason}"))
        lines.append(_cut_end(f"{gone.domain:{_LABEL - 1}} {reason}", width))
    if report.unavailable and any(gone.fix for gone in report.unavailable):
        lines += _labelled("", "`torchwatt doctor` lists what would help", width)
    return lines


@dataclass(frozen=True, slots=True)
class _Sheet:
    """Totals and layout that all lines of the layer table share."""

    total_j: Mapping[str, Mapping[Phase, float]]
    run_j: float
    name_width: int
    backward: bool  # the run has a backward pass, so each module gets a line for it
    ties: frozenset[str]  # layers whose order is uncertain


def _layers(report: Report, max_layers: int, width: int) -> list[str]:
    if report.energy_j is None:
        return []
    everything = layer_sums(report)
    layers = [layer for layer in everything if not layer.reserved]
    entries = [entry for ledger in report.counted for entry in ledger.entries]
    backward = any(entry.phase == "backward" for entry in entries)
    modules = class_names(report)
    container_of = containers((entry.fqn for entry in entries), modules)
    total_j = totals(((entry.fqn, entry.phase, entry.energy_self_j) for entry in entries), container_of)
    sheet = _Sheet(total_j, report.energy_j, width - _FIXED, backward, ties(layers))
    shown, folded = _listed(layers, max(max_layers, 0), LayerSum(ROOT, modules.get(ROOT, ""), {}, ()), container_of)
    over = " + ".join(str(ledger.domain) for ledger in report.counted)
    lines = [f"layers, {over}", _line("layer", [name for name, _ in _COLUMNS], sheet), "-" * width]
    for layer in shown:
        lines += _layer(layer, sheet, is_module=not modules or layer.fqn in modules)
    if folded is not None:
        lines.append(_folded(folded, sheet))
    for layer in everything:
        if layer.reserved:
            lines += _reserved(layer, sheet)
    booked_j = fsum(entry.energy_self_j for entry in entries)
    share = format_share(booked_j / sheet.run_j if sheet.run_j > 0 else None)
    provenance = str(report.provenance or DASH)
    interval = format_interval(*report.interval_j) if report.interval_j is not None else ""
    cells = ["", format_energy(booked_j), interval, "", share, provenance]
    lines += ["-" * width, _line("all of the above", cells, sheet)]
    if any(layer.fqn in sheet.ties for layer in shown):
        lines.append(TIED)
    return [_ascii(line) for line in lines]


def _listed(
    layers: Sequence[LayerSum], max_layers: int, root: LayerSum, container_of: Container[str]
) -> tuple[tuple[LayerSum, ...], Folded | None]:
    """Keep the layers with the most joules of their own, and the root module, whose total contains all modules."""
    shown, folded = fold(layers, max_layers)
    if max_layers == 0 or ROOT not in container_of or any(layer.fqn == ROOT for layer in shown):
        return shown, folded
    root = next((layer for layer in layers if layer.fqn == ROOT), root)
    shown, folded = fold([layer for layer in layers if layer.fqn != ROOT], max_layers - 1)
    return (root, *shown), folded


def _layer(layer: LayerSum, sheet: _Sheet, *, is_module: bool) -> Iterator[str]:
    """Yield a module's forward and backward lines even if one is unknown: a missing line would read as zero."""
    phases: list[Phase] = (["forward", "backward"] if sheet.backward else ["forward"]) if is_module else []
    phases += [phase for phase in layer.phases if phase not in phases]
    name = printable(layer.fqn) + (" ~" if layer.fqn in sheet.ties else "")
    for phase in phases:
        yield _line(name, _cells(layer, phase, sheet), sheet)
        name = ""


def _reserved(layer: LayerSum, sheet: _Sheet) -> Iterator[str]:
    for phase in layer.phases:
        yield _line(layer.fqn, _cells(layer, phase, sheet), sheet)


def _cells(layer: LayerSum, phase: Phase, sheet: _Sheet) -> list[str]:
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


def _folded(folded: Folded, sheet: _Sheet) -> str:
    share = format_share(folded.energy_j / sheet.run_j if sheet.run_j > 0 else None)
    return _line(smaller(folded.layers), ["", format_energy(folded.energy_j), "", "", share, ""], sheet)


def _line(name: str, cells: Sequence[str], sheet: _Sheet) -> str:
    text = _cut(name, sheet.name_width).ljust(sheet.name_width)
    for cell, (column, width) in zip(cells, _COLUMNS, strict=True):
        text += "  " + (cell.ljust(width) if column in {"phase", "provenance"} else cell.rjust(width))
    return text.rstrip()


def _tail(report: Report, width: int) -> list[str]:
    lines = []
    for window in report.windows[:_MAX_WINDOWS]:
        text = f"{format_energy(window.energy_j)} in {format_time((window.end_ns - window.start_ns) / 1e9)}"
        lines += _labelled("window", f"{window.name} · {text}, inside the total", width)
    if len(report.windows) > _MAX_WINDOWS:
        lines += _labelled("", f"... and {len(report.windows) - _MAX_WINDOWS} more windows", width)
    events = summary.worrying(report)
    for event in events[:_MAX_EVENTS]:
        text = _cut_end(f"{event.code} · {event.subject} · {event.message}", _MAX_TEXT)
        lines += _labelled(event.severity, f"{text} (at {summary.when(report, event)})", width)
    if len(events) > _MAX_EVENTS:
        lines += _labelled("", f"... and {len(events) - _MAX_EVENTS} more warnings", width)
    quiet = sum(event.severity == "info" for event in report.events)
    notes = f" · {quiet} note{'s' if quiet > 1 else ''} in the events" if quiet else ""
    return [*lines, *_labelled("measuring", summary.cost(report) + notes, width)]


def _labelled(label: str, text: str, width: int) -> list[str]:
    """Return a label and its text, wrapped with a hanging indent."""
    if not text:
        return []
    label = printable(label)
    lines = wrap(_ascii(printable(text)), width - _LABEL, break_on_hyphens=False)
    head = label.ljust(_LABEL) if len(label) < _LABEL else f"{label} "
    return [(head if i == 0 else " " * _LABEL) + line for i, line in enumerate(lines)]


def _ascii(text: str) -> str:
    return text.replace("µ", "u")


def _cut(text: str, width: int) -> str:
    """Truncate the front of a dotted name, since its end distinguishes layers."""
    return text if len(text) <= width else "..." + text[-(width - 3) :]


def _cut_end(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
