"""JSON messages of the live view: one at the start of a run, then one for each update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchwatt.core.meter import Meter, Unavailable
from torchwatt.core.report import Report
from torchwatt.views.numbers import format_energy
from torchwatt.views.payload import layers_payload, number, text
from torchwatt.views.tree import books

SCHEMA, VERSION = "torchwatt.live", 1
MAX_LAYERS = 150  # modules of a message; smaller ones are folded into their parents


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the power curves: mean watts since the previous point by domain; None without a reading."""

    t_s: float
    power_w: Mapping[str, float | None]


def begin_payload(
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
        "schema": SCHEMA,
        "version": VERSION,
        "run_id": text(run_id),
        "name": text(name),
        "domains": [
            {"domain": str(m.domain), "provenance": m.provenance, "meter": text(m.model)} for m in _energetic(meters)
        ],
        "unavailable": [
            {"domain": text(gone.domain), "reason": text(gone.reason), "fix": text(gone.fix)} for gone in unavailable
        ],
        "carbon_how": text(carbon_how),
        "traces": traces,
    }


def beat_payload(
    points: Sequence[Point],
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
        "t_s": number(t_s),
        "as_of_s": number(min(max(as_of_s, 0.0), t_s)),
        "energy_j": number(sum(domains_j.values())) if domains_j else None,
        "carbon_g": number(carbon_g),
        "power_w": {domain: number(watts) for domain, watts in power_w.items()},
        "domains_j": {domain: number(joules) for domain, joules in domains_j.items()},
        "points": {
            "t_s": [round(point.t_s, 3) for point in points],
            "power_w": {domain: [number(point.power_w.get(domain)) for point in points] for domain in power_w},
        },
    }


def live_steps(steps: int, step_j: float | None) -> dict[str, Any]:
    """Return the number of completed steps, and the joules of one as text."""
    return {"steps": steps, "per_step": "" if step_j is None else format_energy(step_j)}


def live_layers(report: Report) -> dict[str, Any]:
    """Return the layers of a report so far, with the time up to which they are complete."""
    return {"layers": {"as_of_s": number(report.duration_s), **layers_payload(books(report), MAX_LAYERS)}}


def _energetic(meters: Sequence[Meter]) -> list[Meter]:
    return [m for m in meters if any(channel.quantity != "gauge" for channel in m.channels)]
