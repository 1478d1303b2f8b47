"""Views of a report: pure functions from a value to text, HTML, rows and a payload."""

from __future__ import annotations

from torchwatt.views.html import to_html_fragment
from torchwatt.views.live import Point, beat_payload, begin_payload, live_layers, live_steps
from torchwatt.views.numbers import (
    DASH,
    format_energy,
    format_interval,
    format_mass,
    format_power,
    format_time,
)
from torchwatt.views.page import to_html_page
from torchwatt.views.payload import MIME, to_payload
from torchwatt.views.rows import LAYER_COLUMNS, layer_rows
from torchwatt.views.table import to_text

__all__ = [
    "DASH",
    "LAYER_COLUMNS",
    "MIME",
    "Point",
    "beat_payload",
    "begin_payload",
    "format_energy",
    "format_interval",
    "format_mass",
    "format_power",
    "format_time",
    "layer_rows",
    "live_layers",
    "live_steps",
    "to_html_fragment",
    "to_html_page",
    "to_payload",
    "to_text",
]
