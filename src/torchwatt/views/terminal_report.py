"""A report as text for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import fsum
from textwrap import wrap

from torchwatt.core.ledger import Entry
from torchwatt.core.plain_text import escape_unprintable
from torchwatt.core.report import Report
from torchwatt.core.terms import Phase
from torchwatt.views import report_summary
from torchwatt.views.answer import answer
from torchwatt.views.energy_rates import energy_rates
from torchwatt.views.layer_groups import LayerGroup, View, cut_groups, default_view, layer_groups, tree_groups
from torchwatt.views.layer_sums import PROVENANCE_GLYPHS, TIE_LEGEND
from torchwatt.views.number_format import (
    DASH,
    format_energy,
    format_interval,
    format_power,
    format_share,
    format_time,
    format_wh,
    shorten_middle,
)
from torchwatt.views.rank_table import rank_lines

_LABEL_WIDTH = 11
_MAX_EVENTS = 12
_MAX_WINDOWS = 12
_MAX_TEXT = 300
MIN_WIDTH = 60
MAX_LAYERS = 20  # rows of modules by default
_BAR_WIDTH, _BAR_RANK = 10, 3
_SUM_NAME = "all of the above"
_WIDEST_NAME = 44  # optional columns leave so much room for names
_NARROW_NAME = 20  # the least room for names beside all columns of the tree
_SHORT_NAME = 14  # a name is not indented so far that less of it fits: `(1234 smaller)`


def to_text(report: Report, *, max_layers: int | None = MAX_LAYERS, width: int = 100, by: View | None = None) -> str:
    """Return a report as text: the answer, the layers, and how it was measured.

    The text is ASCII but for `±`, `—`, `·`, the glyphs of provenance and the user's own names.

    Args:
        report: The report to show.
        max_layers: How many rows of modules to list; the others are summed in one row. None lists all.
        width: Characters a line, 60 or more.
        by: The view of the layers; default: `blocks` if the model repeats blocks, else `hottest`.
    """
    width = max(width, MIN_WIDTH)
    blocks = [_answer_lines(report, width), _layer_table_lines(report, max_layers, width, by or default_view(report))]
    blocks += [rank_lines(report, width), _measurement_lines(report, width)]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _answer_lines(report: Report, width: int) -> list[str]:
    title = ["torchwatt", escape_unprintable(report.name), report.status, format_time(report.duration_s)]
    if report.exit_reason:
        title.append(escape_unprintable(report.exit_reason))
    lines = [_shorten_end(" · ".join(word for word in title if word), width)]
    result = answer(report)
    for sentence in (*result.sentences, f"Hint: {result.hint}" if result.hint else ""):
        lines += _wrap_sentence(sentence, width)
    return lines


def _wrap_sentence(sentence: str, width: int) -> list[str]:
    """Wrap a sentence; a number and its unit stay on one line."""
    text = re.sub(r"(?<=[\d.]) (?=[%a-zA-Zµ])", "\N{NO-BREAK SPACE}", _to_ascii(escape_unprintable(sentence)))
    lines = wrap(text, width, break_on_hyphens=False)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _measurement_lines(report: Report, width: int) -> list[str]:
    """Return how the numbers were obtained: sentences first, then the figures of total, domains and overhead."""
    lines = ["How this was measured"]
    for sentence in report_summary.measurement_notes(report):
        lines += _wrap_sentence(sentence, width)
    return [*lines, "", *_head_lines(report, width), *_domain_lines(report, width), *_tail_lines(report, width)]


def _head_lines(report: Report, width: int) -> list[str]:
    carbon = report_summary.describe_carbon(report)
    energy = f"{report_summary.energy_text(report)} · {format_wh(report.energy_j)} · {report.provenance}"
    systematic = report_summary.systematic_text(report)
    if report.energy_j is None:
        energy = f"{DASH} · nothing was metered"
    lines = _label_lines("energy", energy, width)
    lines += _label_lines("", systematic, width)
    lines += _label_lines("power", f"{format_power(report.mean_power_w)} mean", width)
    grams = "" if carbon.grams == DASH else f"{carbon.grams} · "
    lines += _label_lines("carbon", grams + carbon.basis, width)
    for note in carbon.notes:
        lines += _label_lines("", note, width)
    for rate in energy_rates(report):
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
    # The fixes are in the events file, the page and `torchwatt doctor`; the terminal only refers to them.
    reasons = [
        f"{gone.domain}: {gone.reason.removeprefix(f'{gone.domain}: ')}"
        for gone in report_summary.missing_meters(report)
    ]
    if any(gone.fix for gone in report.unavailable):
        reasons.append("`torchwatt doctor` lists what would help")
    lines += _label_lines("no meter", " · ".join(reasons), width)
    return lines


@dataclass(frozen=True, slots=True)
class _Column:
    """One column of the layer table; the last cell is that of the total.

    `rank` is 0 for a column that is always shown; the others are left out from the highest rank on where they do not
    fit beside names of up to `names` characters.
    """

    title: str
    cells: tuple[str, ...]
    rank: int = 0
    names: int = _WIDEST_NAME

    @property
    def width(self) -> int:
        return max(len(self.title), *map(len, self.cells))


def _layer_table_lines(report: Report, max_layers: int | None, width: int, by: View) -> list[str]:
    """Return the table of the layers; columns that do not fit beside the names are left out."""
    if report.energy_j is None:
        return []
    groups = _select_groups(report, by, max_layers)
    names = [_row_name(group, by) for group in groups]
    columns = _table_columns(report, groups, by)
    shown = _fitting_columns(columns, width, max(map(len, (*names, _SUM_NAME))))
    name_width = width - sum(column.width + 2 for column in shown)
    domains = sorted(report.counted, key=lambda ledger: (-ledger.energy_j, str(ledger.domain)))
    over = " + ".join(str(ledger.domain) for ledger in domains)
    lines = [
        f"layers, {by}, {over}",
        _table_line(
            "layer" if by in {"hottest", "tree"} else by, [column.title for column in shown], shown, name_width
        ),
        "-" * width,
    ]
    for n, name in enumerate(names):
        lines.append(_table_line(name, [column.cells[n] for column in shown], shown, name_width))
    total = [column.cells[len(names)] for column in shown]
    lines += ["-" * width, _table_line(_SUM_NAME, total, shown, name_width)]
    if any(group.unclear for group in groups):
        lines += wrap(TIE_LEGEND, width)
    used = {str(group.provenance) for group in groups if group.provenance} | {str(report.provenance)}
    lines.append("   ".join(f"{glyph} {word}" for word, glyph in PROVENANCE_GLYPHS.items() if word in used))
    return [_to_ascii(line) for line in lines]


def _fitting_columns(columns: Sequence[_Column], width: int, longest_name: int) -> list[_Column]:
    """Return the columns that fit, in order: those without a rank first, then by rank; equal ranks go together."""
    shown = [column for column in columns if not column.rank]
    for rank in sorted({column.rank for column in columns if column.rank}):
        more = [column for column in columns if column.rank == rank and any(column.cells)]
        room = width - min([longest_name, *(column.names for column in more)])
        if sum(column.width + 2 for column in (*shown, *more)) <= room:
            shown += more
    return [column for column in columns if column in shown]


def _select_groups(report: Report, by: View, max_layers: int | None) -> tuple[LayerGroup, ...]:
    if by == "tree":
        return tree_groups(report, max_layers)
    groups = layer_groups(report, by)
    return groups if max_layers is None else cut_groups(report, groups, max(max_layers, 0))


def _row_name(group: LayerGroup, by: View) -> str:
    name = escape_unprintable(group.name)
    if by == "tree":
        return "  " * group.depth + (name.rpartition(".")[2] if group.depth else name)
    counted = group.count > 1 and by != "stage" and name != f"{group.count} more"
    return name + (f" x{group.count}" if counted else "") + (" ~" if group.unclear else "")


def _table_columns(report: Report, groups: Sequence[LayerGroup], by: View) -> tuple[_Column, ...]:
    run_j = report.energy_j or 0.0
    entries = [entry for ledger in report.counted for entry in ledger.entries]
    booked_j = fsum(entry.energy_self_j for entry in entries)
    most_j = max((group.energy_j for group in groups), default=0.0)
    interval = format_interval(*report.interval_j) if report.interval_j is not None else ""
    glyphs = PROVENANCE_GLYPHS
    share = format_share(booked_j / run_j if run_j > 0 else None)
    is_tree = by == "tree"
    columns = [
        _Column("self" if is_tree else "energy", (*map(_energy_text, groups), format_energy(booked_j))),
        _Column("90 % of repeats", (*(format_interval(g.lo_j, g.hi_j) for g in groups), interval)),
        _Column(
            "share",
            (*(format_share(g.share if g.entries else None) for g in groups), share),
            rank=int(is_tree),
            names=_NARROW_NAME,
        ),
        _Column("each module", (*map(_each_text, groups), ""), rank=1),
        *_phase_columns(groups, entries),
        _Column("J/TFLOP", (*(_work_text(group) for group in groups), ""), rank=_BAR_RANK + 1),
        _Column("", (*(_bar_text(group.energy_j, most_j) for group in groups), ""), rank=_BAR_RANK),
        _Column("", (*(glyphs.get(str(g.provenance), "") for g in groups), glyphs[str(report.provenance)])),
    ]
    if is_tree:
        columns.insert(0, _Column("total", (*(format_energy(group.total_j) for group in groups), "")))
    return tuple(columns)


def _phase_columns(groups: Sequence[LayerGroup], entries: Sequence[Entry]) -> Iterator[_Column]:
    """Yield forward, and backward if there was a backward pass."""
    phases: tuple[Phase, ...] = ("forward", "backward")
    for phase in phases:
        total_j = [entry.energy_self_j for entry in entries if entry.phase == phase]
        if total_j:
            cells = (*(format_energy(group.phases.get(phase)) for group in groups), format_energy(fsum(total_j)))
            yield _Column(phase, cells, rank=2)


def _bar_text(energy_j: float, most_j: float) -> str:
    return "#" * round(_BAR_WIDTH * max(energy_j, 0.0) / most_j) if most_j > 0 else ""


def _energy_text(group: LayerGroup) -> str:
    return format_energy(group.energy_j) if group.entries else DASH


def _work_text(group: LayerGroup) -> str:
    each_j = group.energy_per_tflop_j
    return "" if each_j is None else format_energy(each_j)


def _each_text(group: LayerGroup) -> str:
    return "" if group.each_lo_j is None else format_interval(group.each_lo_j, group.each_hi_j)


def _table_line(name: str, cells: Sequence[str], columns: Sequence[_Column], name_width: int) -> str:
    text = _fit_name(name, name_width).ljust(name_width)
    for cell, column in zip(cells, columns, strict=True):
        is_bar = set(cell) == {"#"}
        text += "  " + (cell.ljust(column.width) if is_bar else cell.rjust(column.width))
    return text.rstrip()


def _fit_name(name: str, width: int) -> str:
    """Shorten a name in its middle, and its indentation where little of the name would be left."""
    text = name.lstrip(" ")
    indent = min(len(name) - len(text), max(width - min(len(text), _SHORT_NAME), 0))
    return " " * indent + shorten_middle(text, width - indent)


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
    lines += _label_lines("measuring", report_summary.describe_cost(report) + notes, width)
    return [*lines, *_label_lines("run", report_summary.describe_run(report), width)]


def to_markdown(report: Report, *, max_layers: int | None = MAX_LAYERS, by: View | None = None) -> str:
    """Return a report as Markdown: the answer, a table of the layers, and how it was measured; see `to_text`."""
    view = by or default_view(report)
    parts = [f"# {_markdown_text(report.name or 'torchwatt run')}"]
    result = answer(report)
    parts.append(_markdown_text(" ".join(result.sentences)))
    if result.hint:
        parts.append(f"**Hint:** {_markdown_text(result.hint)}")
    if report.energy_j is not None:
        parts.append("\n".join(_markdown_table(report, _select_groups(report, view, max_layers), view)))
    lines = _measurement_lines(report, 10**6)[1:]
    notes = [f"- {_markdown_text(' '.join(line.split()))}" for line in lines if line.strip()]
    return "\n\n".join([*parts, "## How this was measured", "\n".join(notes)]) + "\n"


def _markdown_table(report: Report, groups: Sequence[LayerGroup], by: View) -> Iterator[str]:
    columns = [column for column in _table_columns(report, groups, by) if any(column.cells)]
    columns = [column for column in columns if column.rank != _BAR_RANK]
    titles = [column.title or "provenance" for column in columns]
    yield f"| layer | {' | '.join(titles)} |"
    yield f"| :-- | {' | '.join(['--:'] * len(columns))} |"
    names = [f"`{_row_name(group, by).replace('`', chr(39))}`" for group in groups]
    meaning = {glyph: word for word, glyph in PROVENANCE_GLYPHS.items()}
    for n, name in enumerate([*names, _SUM_NAME]):
        cells = [meaning.get(column.cells[n], column.cells[n]) for column in columns]
        yield f"| {' | '.join([name.replace('|', chr(92) + '|'), *cells])} |"


def _markdown_text(text: str) -> str:
    """Escape what Markdown or HTML would interpret."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", escape_unprintable(text))


def _label_lines(label: str, text: str, width: int) -> list[str]:
    """Return a label and its text, wrapped with a hanging indent."""
    if not text:
        return []
    label = escape_unprintable(label)
    head = label.ljust(_LABEL_WIDTH) if len(label) < _LABEL_WIDTH else f"{label} "
    return wrap(
        _to_ascii(escape_unprintable(text)),
        width,
        initial_indent=head,
        subsequent_indent=" " * _LABEL_WIDTH,
        break_on_hyphens=False,
    )


def _to_ascii(text: str) -> str:
    return text.replace("µ", "u")


def _shorten_end(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
