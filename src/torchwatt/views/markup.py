"""Write the subset of HTML that JupyterLab's sanitiser keeps in an untrusted notebook.

It keeps inline styles only, of these properties, and colours only as names, `#hex`, `rgb()` and `rgba()`:
`currentColor` and `var()` are dropped. So colours here are half transparent, for light and dark pages, and text has
the colour of the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from torchwatt.core.plain_text import escape_unprintable
from torchwatt.core.terms import Phase

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
