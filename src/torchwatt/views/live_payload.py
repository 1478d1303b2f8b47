"""JSON messages of the live view: one at the start of a run, then one for each update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchwatt.core.meter import Meter, Unavailable
from torchwatt.core.report import Report
from torchwatt.views.answer import main_groups
from torchwatt.views.layer_sums import LayerSum
from torchwatt.views.module_tree import build_layer_tree
from torchwatt.views.number_format import format_energy
from torchwatt.views.report_payload import json_number, layers_payload, payload_text

LIVE_SCHEMA, LIVE_VERSION = "torchwatt.live", 1
MAX_TOP_GROUPS = 3
MAX_LIVE_LAYERS = 150  # modules of a message; smaller ones are folded into their parents


@dataclass(frozen=True, slots=True)
class LivePoint:
    """A point of the power curves: mean watts since the previous point by domain; None without a reading."""

    t_s: float
    power_w: Mapping[str, float | None]


def start_payload(
    run_id: str,
    name: str,
    meters: Sequence[Meter],
    unavailable: Sequence[Unavailable],
    carbon_how: str,
    *,
    traces: bool,
) -> dict[str, Any]:
    """Return the first message of a run."""
    return {
        "schema": LIVE_SCHEMA,
        "version": LIVE_VERSION,
        "run_id": payload_text(run_id),
        "name": payload_text(name),
        "domains": [
            {"domain": str(m.domain), "provenance": m.provenance, "meter": payload_text(m.model)}
            for m in _energy_meters(meters)
        ],
        "unavailable": [
            {"domain": payload_text(gone.domain), "reason": payload_text(gone.reason), "fix": payload_text(gone.fix)}
            for gone in unavailable
        ],
        "carbon_how": payload_text(carbon_how),
        "traces": traces,
    }


def update_payload(
    points: Sequence[LivePoint],
    domains_j: Mapping[str, float],
    power_w: Mapping[str, float | None],
    carbon_g: float | None,
    as_of_s: float,
) -> dict[str, Any]:
    """Return one update, without layers.

    Args:
        points: The latest points, the newest last.
        domains_j: Joules so far by domain.
        power_w: Watts now by domain.
        carbon_g: Grams so far.
        as_of_s: Seconds since the start up to which all joules are known; slow meters lag behind.
    """
    t_s = points[-1].t_s if points else 0.0
    return {
        "t_s": json_number(t_s),
        "as_of_s": json_number(min(max(as_of_s, 0.0), t_s)),
        "energy_j": json_number(sum(domains_j.values())) if domains_j else None,
        "carbon_g": json_number(carbon_g),
        "power_w": {domain: json_number(watts) for domain, watts in power_w.items()},
        "domains_j": {domain: json_number(joules) for domain, joules in domains_j.items()},
        "points": {
            "t_s": [round(point.t_s, 3) for point in points],
            "power_w": {domain: [json_number(point.power_w.get(domain)) for point in points] for domain in power_w},
        },
    }


def steps_payload(steps: int, step_j: float | None) -> dict[str, Any]:
    """Return the number of completed steps, and the joules of one as text."""
    return {"steps": steps, "per_step": "" if step_j is None else format_energy(step_j)}


def rate_payload(unit: str, unit_j: float | None) -> dict[str, Any]:
    """Return the joules of one step or counted unit as text; nothing if they are unknown."""
    if unit_j is None:
        return {}
    return {"rate": {"label": payload_text(f"per {unit}"), "text": format_energy(unit_j)}}


def live_layers_payload(report: Report) -> dict[str, Any]:
    """Return the layers of a report so far, with the time up to which they are complete, and its largest groups."""
    booked = build_layer_tree(report)
    groups = top_groups(report, (*booked.modules, *booked.reserved))
    return {
        "top": [[payload_text(name), json_number(share)] for name, share in groups],
        "layers": {
            "as_of_s": json_number(report.duration_s),
            **layers_payload(booked, MAX_LIVE_LAYERS),
        },
    }


def top_groups(report: Report, layers: Sequence[LayerSum] | None = None) -> list[tuple[str, float]]:
    """Return names and shares of the groups with the most joules, largest first: those of the report's answer.

    Args:
        report: The run.
        layers: Its sums, where they are known already.
    """
    run_j = report.energy_j or 0.0
    groups = sorted(main_groups(report, layers).items(), key=lambda item: (-item[1], item[0]))
    return [(name, energy_j / run_j) for name, energy_j in groups[:MAX_TOP_GROUPS]] if run_j > 0 else []


def _energy_meters(meters: Sequence[Meter]) -> list[Meter]:
    return [m for m in meters if any(channel.quantity != "gauge" for channel in m.channels)]
