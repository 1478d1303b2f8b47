"""Format numbers and HTML.

Numbers have three significant figures and a suitable unit; unknown values are a dash. HTML is the subset that
JupyterLab's sanitiser keeps in an untrusted notebook: inline styles only, of its properties, and colours only as names,
`#hex`, `rgb()` and `rgba()`; `currentColor` and `var()` are dropped. So colours here are half transparent, for light
and dark pages, and text has the colour of the page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from math import floor, isfinite, log10

from torchwatt.core.plain_text import escape_unprintable
from torchwatt.core.terms import Phase
from torchwatt.core.units import J_PER_KWH

DASH = "—"
_PREFIXES = {-9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T"}


def format_energy(energy_j: float | None) -> str:
    """Return joules up to 1 kWh, kilowatt-hours from there on: `1.84 kJ`, `12.3 kWh`."""
    if energy_j is not None and isfinite(energy_j) and abs(energy_j) >= J_PER_KWH:
        return _format_si(energy_j / J_PER_KWH * 1000, "Wh")
    return _format_si(energy_j, "J")


def format_wh(energy_j: float | None) -> str:
    """Return watt-hours, the unit of an electricity bill: `0.511 Wh` is `511 mWh`."""
    return _format_si(None if energy_j is None else energy_j / J_PER_KWH * 1000, "Wh")


def format_power(power_w: float | None) -> str:
    """Return watts: `236 W`, `1.20 kW`."""
    return _format_si(power_w, "W")


def format_money(amount: float | None, currency: str) -> str:
    """Return an amount without prefixes: `0.00141 EUR`, `12.3 EUR`, `1234 EUR`."""
    if amount is None or not isfinite(amount):
        return DASH
    decimals = 2 if amount == 0 else max(2 - floor(log10(float(f"{abs(amount):.2e}"))), 0)
    return f"{amount:.{decimals}f} {currency}"


def format_mass(mass_g: float | None) -> str:
    """Return grams, kilograms or tonnes: `138 mg`, `1.20 kg`, `3.40 t`."""
    if mass_g is not None and isfinite(mass_g) and abs(mass_g) >= 1e6:
        return _format_si(mass_g / 1e6, "t")
    return _format_si(mass_g, "g")


def format_time(time_s: float | None) -> str:
    """Return seconds up to ten minutes, then minutes, then hours."""
    if time_s is None or not isfinite(time_s) or abs(time_s) < 600:
        return _format_si(time_s, "s")
    if abs(time_s) < 7200:
        return f"{_format_figures(time_s / 60)} min"
    return f"{_format_figures(time_s / 3600)} h"


def format_share(share: float | None) -> str:
    """Return a share in percent: `12.3 %`."""
    if share is None or not isfinite(share):
        return DASH
    return f"{share * 100:.1f} %"


def format_count(count: float | None) -> str:
    """Return a count: whole below a hundred thousand, `1.31 M` above."""
    if count is None or not isfinite(count):
        return DASH
    if abs(count) < 1e5:
        return f"{count:.0f}" if count == round(count) else _format_figures(count)
    return _format_si(count, "").strip()


def format_interval(lo: float | None, hi: float | None, unit: str = "J") -> str:
    """Return an interval in one unit: `1.20 to 1.26 kJ`."""
    if lo is None or hi is None or not isfinite(lo) or not isfinite(hi):
        return DASH
    power = _prefix_power(max(abs(lo), abs(hi)))
    ends = f"{_format_figures(lo / 10.0**power)} to {_format_figures(hi / 10.0**power)}"
    return f"{ends} {_PREFIXES[power]}{unit}"


_BEFORE_UNIT = re.compile(r"(?<=\d) (?=%|°C|(?:[nµmkMGT]?(?:Wh|[JWgsth])|min)(?![A-Za-z]))")


def keep_units(text: str) -> str:
    """Keep each number on one line with its unit, where a screen wraps text; for HTML only, files have plain spaces."""
    return _BEFORE_UNIT.sub("\N{NO-BREAK SPACE}", text)


def _format_si(value: float | None, unit: str) -> str:
    if value is None or not isfinite(value):
        return DASH
    power = _prefix_power(value)
    return f"{_format_figures(value / 10.0**power)} {_PREFIXES[power]}{unit}"


def _prefix_power(value: float) -> int:
    """Return the power of ten of the prefix, after rounding: 999.9 is 1.00 k."""
    if value == 0:
        return 0
    exponent = floor(log10(float(f"{abs(value):.2e}")))
    return max(min(exponent // 3 * 3, 12), -9)


def _format_figures(value: float) -> str:
    return f"{value:.{_decimals(value)}f}"


def _decimals(value: float) -> int:
    if value == 0:
        return 0
    return max(min(2 - floor(log10(float(f"{abs(value):.2e}"))), 2), 0)


def shorten_middle(name: str, width: int) -> str:
    """Replace the middle of a long name by `...`: its start says where a layer is, its end which one it is."""
    if len(name) <= width:
        return name
    start = max((width - 3) // 3, 0)
    return f"{name[:start]}...{name[len(name) - (width - 3 - start) :]}"


FORWARD, BACKWARD, OTHER = "#2f81d6", "#e8842a", "#8c9096"
TRACK = "rgba(128,128,128,0.14)"
BORDER = "1px solid rgba(128,128,128,0.28)"
COLOR_OF_PHASE: Mapping[Phase, str] = {"forward": FORWARD, "backward": BACKWARD}


def escape_text(value: object) -> str:
    """Escape untrusted text for a text node or a quoted attribute."""
    return escape(escape_unprintable(str(value)), quote=True)


def html_tag(name: str, content: str = "", style: str = "", **attributes: str) -> str:
    """Return one element around content that is already HTML."""
    named = {"style": style} | attributes if style else attributes
    written = "".join(f' {key.rstrip("_")}="{value}"' for key, value in named.items())
    return f"<{name}{written}>{content}</{name}>"


def muted_text(content: str, size: str = "12px") -> str:
    """Return content in small, half transparent text."""
    return html_tag("span", content, f"opacity:0.72;font-size:{size}")


def text_chip(content: str) -> str:
    """Return a word in a rounded border, such as the provenance of a number."""
    return html_tag(
        "span",
        escape_text(content),
        "display:inline-block;padding:0 6px;border:1px solid rgba(128,128,128,0.45);border-radius:8px;"
        "font-size:11px;white-space:nowrap",
    )


def bar_style(parts: list[tuple[str, float]], total: float) -> str:
    """Return the style of a bar of stacked parts over the whole: a gradient with hard stops."""
    stops, at = [], 0.0
    for color, value in parts:
        start, at = at, at + (100 * value / total if total > 0 else 0.0)
        if at > start:
            stops += [f"{color} {start:.2f}%", f"{color} {min(at, 100):.2f}%"]
    stops += [f"{TRACK} {min(at, 100):.2f}%", f"{TRACK} 100%"]
    return f"height:11px;border-radius:2px;background:linear-gradient(to right, {', '.join(stops)})"
