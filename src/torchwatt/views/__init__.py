"""Views of a report: pure functions from a value to text, HTML, rows and a payload."""

from __future__ import annotations

from torchwatt.views.answer import Answer, answer
from torchwatt.views.html_report import to_html_fragment, to_html_page
from torchwatt.views.layer_groups import VIEWS, LayerGroup, View, default_view, layer_groups
from torchwatt.views.live_payload import (
    LiveLayersView,
    LivePoint,
    LiveSums,
    rate_payload,
    start_payload,
    steps_payload,
    update_payload,
)
from torchwatt.views.module_tree import LAYER_COLUMNS, layer_rows
from torchwatt.views.number_format import DASH, format_energy, format_interval, format_mass, format_power, format_time
from torchwatt.views.perfetto_trace import SpanTimeline, select_spans, to_perfetto
from torchwatt.views.report_payload import MIME, to_payload
from torchwatt.views.terminal_report import MAX_LAYERS, to_markdown, to_text

__all__ = [
    "DASH",
    "LAYER_COLUMNS",
    "MAX_LAYERS",
    "MIME",
    "VIEWS",
    "Answer",
    "LayerGroup",
    "LiveLayersView",
    "LivePoint",
    "LiveSums",
    "SpanTimeline",
    "View",
    "answer",
    "default_view",
    "format_energy",
    "format_interval",
    "format_mass",
    "format_power",
    "format_time",
    "layer_groups",
    "layer_rows",
    "rate_payload",
    "select_spans",
    "start_payload",
    "steps_payload",
    "to_html_fragment",
    "to_html_page",
    "to_markdown",
    "to_payload",
    "to_perfetto",
    "to_text",
    "update_payload",
]
