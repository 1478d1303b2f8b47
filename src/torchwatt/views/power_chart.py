"""The power curve as a small picture: decimated, with axes, for light and dark pages; and the bands under it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from math import ceil, floor, log10

import numpy as np

from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.meter import FloatArray, IntArray, Series
from torchwatt.core.report import PhaseInterval, Report, Step, Window
from torchwatt.core.terms import TEMPERATURE, UTILIZATION

MAX_BANDS = 200
MAX_LABELS = 3  # that a merged band names
_FULL_SHARE = 0.9  # a phase with this part of a band's time is named alone


@dataclass(frozen=True, slots=True)
class Band:
    """One interval in seconds since the start of the run.

    `count` is the number of steps in a band of steps; `group` the modules with the most time in a band of a phase.
    """

    start_s: float
    end_s: float
    label: str
    count: int = 1
    group: str = ""


def power_bands(report: Report, max_bands: int = MAX_BANDS) -> dict[str, tuple[Band, ...]]:
    """Return the bands of each row with at least one, in time order: epochs, windows, stages, steps and phases.

    A row has at most `max_bands` bands: neighbours are merged, and a merged band names what it contains. The counts of
    the bands of steps add up to the steps of the report.
    """
    rows = {
        "epochs": [Band(*_span_s(report, w), w.name) for w in report.windows if w.kind == "epoch"],
        "windows": [Band(*_span_s(report, w), w.name) for w in report.windows if w.kind != "epoch"],
        "stages": list(_stages(report)),
        "steps": [Band(*_span_s(report, step), "", step.count) for step in report.steps],
        "phases": [Band(*_span_s(report, part), _phase_label(part), group=part.group) for part in report.timeline],
    }
    return {name: tuple(_merge_neighbours(bands, max_bands)) for name, bands in rows.items() if bands}


def _span_s(report: Report, part: Step | Window | PhaseInterval) -> tuple[float, float]:
    """Return start and end of a part in seconds since the start of the run, inside of the run."""
    length_ns = report.end_ns - report.start_ns
    lo, hi = (min(max(t_ns - report.start_ns, 0), length_ns) / 1e9 for t_ns in (part.start_ns, part.end_ns))
    return lo, max(lo, hi)


def _stages(report: Report) -> Iterator[Band]:
    """Yield a band for each row of steps of one stage; steps without a stage are left out."""
    for stage, group in groupby(report.steps, key=lambda step: step.stage):
        steps = list(group)
        if stage:
            lo, _ = _span_s(report, steps[0])
            yield Band(lo, max(_span_s(report, steps[-1])[1], lo), stage, sum(step.count for step in steps))


def _phase_label(part: PhaseInterval) -> str:
    return part.phase if part.share >= _FULL_SHARE else f"{part.phase} {part.share:.0%}"


def _merge_neighbours(bands: Sequence[Band], max_bands: int) -> Iterator[Band]:
    """Yield at most `max_bands` bands in order of their starts, each merged from as many neighbours."""
    ordered = sorted(bands, key=lambda band: (band.start_s, band.end_s))
    width = -(-len(ordered) // max_bands) if max_bands > 0 else 0
    for at in range(0, len(ordered) if width else 0, width or 1):
        part = ordered[at : at + width]
        yield Band(
            part[0].start_s,
            max(band.end_s for band in part),
            _join_labels([band.label for band in part]),
            sum(band.count for band in part),
            _join_labels([band.group for band in part]),
        )


def _join_labels(labels: Sequence[str]) -> str:
    distinct = [label for label in dict.fromkeys(labels) if label]
    return ", ".join(distinct[:MAX_LABELS]) + (", ..." if len(distinct) > MAX_LABELS else "")


MAX_POINTS = 500
MISSED_PERIODS = 3  # a gauge without readings for longer than this is a gap in its line
_GAUGES = {
    UTILIZATION: ("utilisation", "%", 100.0),
    TEMPERATURE: ("temperature", "°C", 1.0),
}  # kind, unit, per raw unit
COLORS = ("#3b8ede", "#ec8626", "#2fa87a", "#a06cd5", "#d9534f", "#8a8f98")
_GREY = "#8b929b"  # readable on white and on black: a picture does not see the page's theme
_WIDTH, _HEIGHT = 860, 240  # without bands
_UNITS = ((1e6, "MW"), (1e3, "kW"), (1.0, "W"), (1e-3, "mW"))
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 26, 34
_BAND_HEIGHT, _BAND_GAP, _LETTER_WIDTH = 11, 3, 6
_BAND_COLORS = {
    "forward": "#3b8ede",
    "backward": "#ec8626",
    "optimizer": "#a06cd5",
    "data": "#2fa87a",
    "transfer": "#6fbf9f",
    "communication": "#b8a100",
    "compile": "#d9534f",
    "train": "#3b8ede",
    "validation": "#2fa87a",
    "inference": "#a06cd5",
}


@dataclass(frozen=True, slots=True)
class ChartLine:
    """Power of one domain over seconds since the run's start, ready to be joined by straight lines."""

    domain: str
    t_s: FloatArray
    power_w: FloatArray


def build_power_line(report: Report, curve: EnergyCurve, max_points: int = MAX_POINTS) -> ChartLine:
    """Return a domain's power with at most `max_points` points.

    A curve has the mean power of each interval. It is drawn as steps if they fit into `max_points`; otherwise by the
    middles of the intervals, decimated to the minimum and maximum of equal parts. Intervals without readings are
    NaN: gaps in the line.
    """
    power_w, t_s = curve.power_w(), (curve.t_ns - report.start_ns) / 1e9
    if 2 * len(power_w) <= max_points:
        return ChartLine(str(curve.domain), np.repeat(t_s, 2)[1:-1], np.repeat(power_w, 2))
    keep = select_extremes(power_w, max_points)
    return ChartLine(str(curve.domain), ((t_s[:-1] + t_s[1:]) / 2)[keep], power_w[keep])


@dataclass(frozen=True, slots=True)
class GaugeLine:
    """Readings of a gauge over seconds since the run's start; NaN interrupts the line."""

    domain: str
    kind: str  # utilisation or temperature
    unit: str
    t_s: FloatArray
    value: FloatArray


def gauge_lines(report: Report, max_points: int) -> Iterator[GaugeLine]:
    """Yield the utilisation and temperature of the metered domains, each with about `max_points` points."""
    domains = {str(curve.domain) for curve in report.curves}
    for series in report.gauges:
        domain = str(series.channel.domain)
        if domain in domains and series.channel.name in _GAUGES and len(series) and max_points > 0:
            kind, unit, factor = _GAUGES[series.channel.name]
            t_s, value = _with_gaps(series, report.start_ns)
            keep = select_extremes(value, max_points)
            yield GaugeLine(domain, kind, unit, t_s[keep], value[keep] * factor)


def _with_gaps(series: Series, start_ns: int) -> tuple[FloatArray, FloatArray]:
    """Return times in seconds and values; a NaN follows the last reading before a gap."""
    t_s = (series.t_ns - start_ns) / 1e9
    value = series.raw * series.channel.scale
    period_s = max(series.channel.period_ns / 1e9, float(np.median(np.diff(t_s))) if len(t_s) > 1 else 0.0)
    gaps = np.flatnonzero(np.diff(t_s) > MISSED_PERIODS * period_s) + 1
    return np.insert(t_s, gaps, t_s[gaps - 1]), np.insert(value, gaps, np.nan)


def select_extremes(values: FloatArray, max_points: int) -> list[int]:
    """Return ascending indices of the minimum and the maximum of each of `max_points / 2` equal parts."""
    if len(values) <= max_points:
        return list(range(len(values)))
    keep: set[int] = set()
    for part in np.array_split(np.arange(len(values)), max(max_points // 2, 1)):
        finite = part[~np.isnan(values[part])]
        keep |= (
            {int(finite[np.argmin(values[finite])]), int(finite[np.argmax(values[finite])])} if len(finite) else set()
        )
        keep |= set(part[np.isnan(values[part])][:1].tolist())
    return sorted(keep)


def choose_ticks(top: float, count: int = 5) -> list[float]:
    """Return round steps of 1, 2 or 5 from 0 to the first one at or above `top`."""
    if not top > 0:
        return [0.0, 1.0]
    size = 10.0 ** floor(log10(top / count))
    step = next(m * size for m in (1, 2, 5, 10) if m * size * count >= top * 0.999)
    return [step * i for i in range(ceil(top / step - 1e-9) + 1)]


def render_chart(report: Report) -> str:
    """Return the curves as a `data:` address of an SVG picture; "" if nothing was metered."""
    lines = [build_power_line(report, curve) for curve in report.curves]
    lines = [line for line in lines if len(line.t_s)]
    lines.sort(key=lambda line: -float(np.nan_to_num(line.power_w).mean()))
    if not lines or report.duration_s <= 0:
        return ""
    svg = _render_svg(lines, report.duration_s, power_bands(report))
    return "data:image/svg+xml;base64," + b64encode(svg.encode()).decode()


def _render_svg(lines: Sequence[ChartLine], duration_s: float, bands: Mapping[str, Sequence[Band]]) -> str:
    y_ticks = choose_ticks(max(float(np.nan_to_num(line.power_w).max()) for line in lines))
    unit, per = ("min", 60.0) if duration_s >= 600 else ("ms", 1e-3) if duration_s < 1 else ("s", 1.0)
    x_ticks = [t for t in choose_ticks(duration_s / per, 8) if t <= duration_s / per * 1.001]
    scale = _ChartScale(duration_s, y_ticks[-1])
    parts = [_render_y_tick(scale, w, label) for w, label in zip(y_ticks, _format_ticks(y_ticks), strict=True)]
    height = _HEIGHT + len(bands) * (_BAND_HEIGHT + _BAND_GAP)
    for index, (row, row_bands) in enumerate(bands.items()):
        y = _HEIGHT - _BOTTOM + _BAND_GAP + index * (_BAND_HEIGHT + _BAND_GAP)
        parts.append(_render_text(_LEFT - 6, y + 10, row, "end"))
        parts.append(_render_bands(scale, row_bands, y))
    parts += [_render_text(scale.x(t * per), height - _BOTTOM + 16, f"{t:g}", "middle") for t in x_ticks]
    parts.append(_render_text(_WIDTH - _RIGHT, height - 4, f"time since start ({unit})", "end"))
    parts.append(_render_text(4, 14, "power", "start"))
    marks = [(line.domain, COLORS[index % len(COLORS)]) for index, line in enumerate(lines)]
    phases = dict.fromkeys(band.label.partition(" ")[0].rstrip(",") for band in bands.get("phases", ()))
    marks += [(phase, _BAND_COLORS[phase]) for phase in phases if phase in _BAND_COLORS]
    legend_x = _LEFT + 20
    for label, color in marks:
        parts.append(f'<rect x="{legend_x}" y="6" width="14" height="4" rx="2" fill="{color}"/>')
        parts.append(_render_text(legend_x + 19, 13, label, "start"))
        legend_x += 40 + 7 * len(label)
    parts += [_render_line(scale, line, color) for line, (_, color) in zip(lines, marks, strict=False)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="12" fill="{_GREY}">{"".join(parts)}</svg>'
    )


@dataclass(frozen=True, slots=True)
class _ChartScale:
    duration_s: float
    top_w: float

    def x(self, t_s: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * t_s / self.duration_s

    def y(self, power_w: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * power_w / self.top_w


def _render_y_tick(scale: _ChartScale, power_w: float, label: str) -> str:
    y = scale.y(power_w)
    rule = f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="{_GREY}" stroke-opacity="0.25"/>'
    return rule + _render_text(_LEFT - 6, y + 4, label, "end")


def _format_ticks(ticks_w: Sequence[float]) -> list[str]:
    """Format all ticks of an axis in the unit of the largest."""
    size, unit = next(((s, u) for s, u in _UNITS if ticks_w[-1] >= s), _UNITS[-1])
    return [f"{tick_w / size:.4g} {unit}" for tick_w in ticks_w]


def _band_fill(band: Band, index: int) -> tuple[str, float]:
    """Return colour and opacity by the band's label; bands of other labels, such as steps, alternate in two greys."""
    color = _BAND_COLORS.get(band.label.partition(" ")[0].rstrip(","))
    return (color, 0.85) if color is not None else (_GREY, (0.75, 0.45)[index % 2])


def _render_bands(scale: _ChartScale, bands: Sequence[Band], y: float) -> str:
    """Return one path for each colour, and the labels that fit."""
    outlines: dict[tuple[str, float], str] = {}
    labels = ""
    for index, band in enumerate(bands):
        x, fill = scale.x(band.start_s), _band_fill(band, index)
        width = max(scale.x(band.end_s) - x, 0.2)
        outlines[fill] = f"{outlines.get(fill, '')}M{x:.1f} {y}h{width:.1f}v{_BAND_HEIGHT}h-{width:.1f}z"
        if band.label and width > _LETTER_WIDTH * len(band.label) + 6:
            labels += _render_text(x + 3, y + 9, band.label, "start")
    shapes = "".join(
        f'<path class="band" d="{outline}" fill="{color}" fill-opacity="{opacity}"/>'
        for (color, opacity), outline in outlines.items()
    )
    return f'{shapes}<g fill="#0b0f14" font-size="10">{labels}</g>'


def _render_line(scale: _ChartScale, line: ChartLine, color: str) -> str:
    is_known = ~np.isnan(line.power_w)
    stretches = np.split(np.arange(len(is_known)), np.flatnonzero(np.diff(is_known.astype(int))) + 1)
    return "".join(_render_line_part(scale, line, part, color) for part in stretches if is_known[part[0]])


def _render_line_part(scale: _ChartScale, line: ChartLine, part: IntArray, color: str) -> str:
    pairs = zip(line.t_s[part].tolist(), line.power_w[part].tolist(), strict=True)
    points = " ".join(f"{scale.x(t):.1f},{scale.y(p):.1f}" for t, p in pairs)
    return f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.6" stroke-linejoin="round"/>'


def _render_text(x: float, y: float, content: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'
