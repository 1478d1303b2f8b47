"""The power curve as a small picture: decimated, with axes, for light and dark pages."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

import numpy as np

from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.core.report import Report

MAX_POINTS = 500
COLORS = ("#3b8ede", "#ec8626", "#2fa87a", "#a06cd5", "#d9534f", "#8a8f98")
_GREY = "#8b929b"  # readable on white and on black: a picture does not see the page's theme
_WIDTH, _HEIGHT = 860, 240
_UNITS = ((1e6, "MW"), (1e3, "kW"), (1.0, "W"), (1e-3, "mW"))
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 26, 34


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
    return "data:image/svg+xml;base64," + b64encode(_render_svg(lines, report.duration_s).encode()).decode()


def _render_svg(lines: Sequence[ChartLine], duration_s: float) -> str:
    y_ticks = choose_ticks(max(float(np.nan_to_num(line.power_w).max()) for line in lines))
    unit, per = ("min", 60.0) if duration_s >= 600 else ("ms", 1e-3) if duration_s < 1 else ("s", 1.0)
    x_ticks = [t for t in choose_ticks(duration_s / per, 8) if t <= duration_s / per * 1.001]
    scale = _ChartScale(duration_s, y_ticks[-1])
    parts = [_render_y_tick(scale, w, label) for w, label in zip(y_ticks, _format_ticks(y_ticks), strict=True)]
    parts += [_render_x_tick(scale, t, per) for t in x_ticks]
    parts.append(_render_text(_WIDTH - _RIGHT, _HEIGHT - 4, f"time since start ({unit})", "end"))
    parts.append(_render_text(4, 14, "power", "start"))
    legend_x = _LEFT + 20
    for index, line in enumerate(lines):
        color = COLORS[index % len(COLORS)]
        parts.append(_render_line(scale, line, color))
        parts.append(f'<rect x="{legend_x}" y="6" width="14" height="4" rx="2" fill="{color}"/>')
        parts.append(_render_text(legend_x + 19, 13, line.domain, "start"))
        legend_x += 40 + 7 * len(line.domain)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="system-ui, sans-serif" font-size="12" fill="{_GREY}">{"".join(parts)}</svg>'
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


def _render_x_tick(scale: _ChartScale, value: float, per: float) -> str:
    return _render_text(scale.x(value * per), _HEIGHT - _BOTTOM + 16, f"{value:g}", "middle")


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
