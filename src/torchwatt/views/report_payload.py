"""The report as one versioned JSON value for the front ends, small enough to be saved in a notebook."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any

from torchwatt.core.ledger import common_calls
from torchwatt.core.report import Report
from torchwatt.core.terms import Phase
from torchwatt.views import report_summary
from torchwatt.views.answer import answer
from torchwatt.views.energy_rates import energy_rates
from torchwatt.views.layer_groups import LayerGroup, cut_groups, default_view, flat_views
from torchwatt.views.layer_sums import LayerSum
from torchwatt.views.module_tree import LayerTree, ModuleNode, build_layer_tree, fold_tree
from torchwatt.views.power_chart import MAX_BANDS, build_power_line, gauge_lines, power_bands

MIME = "application/vnd.torchwatt.report.v1+json"
PAYLOAD_VERSION = 1
MAX_PAYLOAD_BYTES = 95_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_TEXT = 300
_MAX_HALFWAY_DIGITS = len("-1.2345")  # the most characters of a value half-way between two displayed numbers
# (layers, points of each curve, events, domains, groups of a view), tried in turn until the value is small enough.
_CAPS = (
    (400, 300, 50, 64, 40),
    (280, 200, 40, 64, 40),
    (200, 150, 30, 64, 30),
    (150, 100, 20, 32, 20),
    (100, 100, 20, 32, 20),
    (40, 50, 10, 16, 20),
    (10, 20, 5, 8, 5),
    (0, 0, 0, 4, 0),
)


def to_payload(report: Report) -> dict[str, Any]:
    """Return the report as a JSON value below 95 KB; layers that do not fit are folded into their parents."""
    booked = build_layer_tree(report)
    views = flat_views(report)
    result, value = answer(report), dict[str, Any]()
    fixed = {
        "answer": {"sentences": [payload_text(text) for text in result.sentences], "hint": payload_text(result.hint)},
        "how": [payload_text(sentence) for sentence in report_summary.measurement_notes(report)],
        "default_view": default_view(report),
    }
    for *caps, rows in _CAPS:
        value = {**_build_payload(report, booked, *caps), **fixed}
        value["groups"] = {
            view: [_group_value(group) for group in cut_groups(report, views[view], rows)] for view in views
        }
        if len(json.dumps(value, allow_nan=False)) < MAX_PAYLOAD_BYTES:
            break
    return value


def _build_payload(
    report: Report, booked: LayerTree, layers: int, points: int, events: int, domains: int
) -> dict[str, Any]:
    carbon = report_summary.describe_carbon(report)
    return {
        "schema": "torchwatt.report",
        "version": PAYLOAD_VERSION,
        "run_id": payload_text(report.run_id),
        "name": payload_text(report.name),
        "status": report.status,
        "exit_reason": payload_text(report.exit_reason),
        "started_at": (_EPOCH + timedelta(microseconds=report.start_unix_ns // 1000)).isoformat(),
        "duration_s": json_number(report.duration_s),
        "energy": {
            "value_j": json_number(report.energy_j),
            "interval_90_j": _json_bounds(report.interval_j),
            "systematic_j": _json_bounds(report.systematic_j),
            "systematic_text": report_summary.systematic_text(report),
            "provenance": report.provenance,
            "text": report_summary.energy_text(report),
        },
        "notes": [payload_text(note) for note in report_summary.head_notes(report)],
        "power_w": json_number(report.mean_power_w),
        "carbon": {"value_g": json_number(report.carbon_g), "text": carbon.grams, "how": payload_text(carbon.basis)},
        "rates": [
            {"label": payload_text(rate.label), "value": rate.value, "detail": rate.detail}
            for rate in energy_rates(report)
        ],
        "domains": list(_domain_values(report))[:domains],
        "unavailable": [
            {"domain": payload_text(gone.domain), "reason": payload_text(gone.reason), "fix": payload_text(gone.fix)}
            for gone in report.unavailable[:domains]
        ],
        "curves": [_curve_value(report, index, points) for index in range(min(len(report.curves), domains))],
        "bands": _band_values(report, min(points, MAX_BANDS)),
        "lines": [
            {
                "domain": line.domain,
                "kind": line.kind,
                "unit": line.unit,
                "t_s": [json_number(t) for t in line.t_s.tolist()],
                "value": [json_number(value) for value in line.value.tolist()],
            }
            for line in gauge_lines(report, points // 2)
        ],
        "positions": [
            {
                "first": group.first,
                "last": group.last,
                "tokens": group.tokens,
                "energy_j": json_number(group.each_j),
                "time_s": json_number(group.each_s),
            }
            for group in report.positions
        ],
        "step": {"count": report.step_count, "energy_j": json_number(report.energy_per(report.step_count))},
        **layers_payload(booked, layers),
        "events": [
            {
                "t_s": json_number((e.t_ns - report.start_ns) / 1e9),
                "severity": e.severity,
                "code": payload_text(e.code),
                "subject": payload_text(e.subject),
                "message": payload_text(e.message),
            }
            for e in sorted(report.events, key=lambda e: (e.t_ns, e.code, e.subject))[:events]
        ],
        "event_count": len(report.events),
        "cost": report_summary.describe_cost(report),
        "software": {
            payload_text(name): payload_text(value) for name, value in report.software.items() if name in _SOFTWARE
        },
    }


_SOFTWARE = ("torchwatt", "python", "torch", "os")  # no host name in a notebook that gets shared


def json_number(value: float | None) -> float | None:
    """Round to six figures; missing and non-finite numbers are null.

    A value whose six figures end in 5 is kept unrounded, since a front end may round a tie differently from Python.
    """
    if value is None or not isfinite(value):
        return None
    figures = f"{value:.5e}".partition("e")[0].rstrip("0")
    return value if figures.endswith("5") and len(figures) <= _MAX_HALFWAY_DIGITS else float(f"{value:.6g}")


def _json_bounds(bounds: tuple[float | None, float | None] | None) -> list[float | None] | None:
    return None if bounds is None or None in bounds else [json_number(end) for end in bounds]


def payload_text(value: str) -> str:
    """Truncate a text, and replace lone surrogates."""
    # A lone surrogate would break the message to the browser.
    return value[:_MAX_TEXT].encode("utf-8", "replace").decode()


def _domain_values(report: Report) -> Iterator[dict[str, Any]]:
    ledgers = {str(ledger.domain): ledger for ledger in report.ledgers}
    for item in report_summary.domain_texts(report):
        ledger = ledgers[item.domain]
        yield {
            "domain": item.domain,
            "energy_j": json_number(ledger.energy_j),
            "interval_90_j": _json_bounds((ledger.energy_lo_j, ledger.energy_hi_j)),
            "counted": ledger.counted,
            "share": json_number(ledger.energy_j / report.energy_j) if report.energy_j and ledger.counted else None,
            "static_w": json_number(ledger.static_w),
            "coverage": json_number(ledger.coverage),
            "method": ledger.method,
            "provenance": item.provenance,
            "meter": payload_text(item.meter),
            "sentence": payload_text(item.sentence),
            "text": item.energy_and_bounds,
        }


def _curve_value(report: Report, index: int, points: int) -> dict[str, Any]:
    line = build_power_line(report, report.curves[index], points) if points else None
    return {
        "domain": str(report.curves[index].domain),
        "t_s": [json_number(t) for t in line.t_s.tolist()] if line else [],
        "power_w": [json_number(p) for p in line.power_w.tolist()] if line else [],
    }


def _band_values(report: Report, max_bands: int) -> dict[str, list[list[Any]]]:
    """Return the bands of each row as [start_s, end_s, steps] or [start_s, end_s, label, modules]."""
    return {
        row: [
            [
                *(float(f"{t_s:.5g}") for t_s in (band.start_s, band.end_s)),
                *((band.count,) if row == "steps" else (payload_text(band.label),)),
                *((payload_text(band.group),) if row == "phases" else ()),
            ]
            for band in bands
        ]
        for row, bands in power_bands(report, max_bands).items()
    }


def layers_payload(booked: LayerTree, max_modules: int) -> dict[str, Any]:
    """Return the tree of the `max_modules` largest modules, the others folded into their parents; and reserved rows."""
    rows: list[dict[str, Any]] = []
    for node in fold_tree(booked.tops, max_modules):
        _flatten_node(node, None, rows)
    # `folded` held the omitted layers in older reports; they are now rows of their parents.
    return {"layers": rows, "reserved": [_layer_value(layer) for layer in booked.reserved], "folded": None}


def _group_value(group: LayerGroup) -> dict[str, Any]:
    return {
        "name": payload_text(group.name),
        "count": group.count,
        "energy_j": json_number(group.energy_j),
        "share": json_number(group.share),
        "interval_j": _json_bounds((group.lo_j, group.hi_j)),
        "each_j": _json_bounds((group.each_lo_j, group.each_hi_j)),
        "by_phase": _phase_values(group.phases),
        "provenance": group.provenance,
        "unclear": group.unclear,
        **({} if group.energy_per_tflop_j is None else {"energy_per_tflop_j": json_number(group.energy_per_tflop_j)}),
    }


def _flatten_node(node: ModuleNode, parent: int | None, rows: list[dict[str, Any]]) -> None:
    """Append the tree as rows; `parent` is the index of the parent's row, which comes earlier.

    `static_j` is the part of the total that is known to be static; `static_whole` is true if all of it is known.
    """
    index = len(rows)
    total_j = _phase_values(node.total_by_phase)
    own = _layer_value(node.layer) if node.layer else {"self_j": {}, "provenance": None, "calls": 0, "class": ""}
    if node.smaller:
        own |= {"self_j": total_j, "calls": None, "folded": node.smaller}
    rows.append(
        {
            **own,
            "fqn": payload_text(node.fqn),
            "name": payload_text(node.name),
            "parent": parent,
            "energy_j": json_number(node.total_j),
            "total_j": total_j,
            "static_j": _phase_values(node.static_by_phase),
            "static_whole": node.static_whole,
        }
    )
    for child in node.children:
        _flatten_node(child, index, rows)


def _layer_value(layer: LayerSum) -> dict[str, Any]:
    return {
        "fqn": payload_text(layer.fqn),
        "class": payload_text(layer.class_name),
        "self_j": _phase_values({phase: phase_sum.energy_j for phase, phase_sum in layer.phases.items()}),
        "interval_j": {
            p: [json_number(f.lo_j), json_number(f.hi_j)] for p, f in layer.phases.items() if f.lo_j is not None
        },
        "calls": common_calls(layer.entries),
        "provenance": layer.provenance,
    }


def _phase_values(values: Mapping[Phase, float]) -> dict[str, float | None]:
    return {str(phase): json_number(value) for phase, value in values.items()}
