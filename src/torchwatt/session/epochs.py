"""What each epoch used: its steps, its evaluations, its checkpoints. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from math import fsum
from typing import Any

from torchwatt.core.report import Report, Window
from torchwatt.core.units import NS_PER_S

OUTSIDE = "(outside)"
COLUMNS = (
    "epoch", "start_s", "duration_s", "steps", "energy_j", "train_j", "evaluation_j", "checkpoint_j", "step_j",
)  # fmt: skip


def epoch_rows(report: Report) -> list[dict[str, Any]]:
    """Return one row an epoch, and one for what lay outside of all: their joules add up to the report's.

    `energy_j` is `train_j`, `evaluation_j` and `checkpoint_j` together; `step_j` is `train_j` a step. What a meter did
    not see throughout is unknown: None.
    """
    epochs = [window for window in report.windows if window.kind == "epoch"]
    if not epochs:
        return []
    rows = [_row(report, window.name.removeprefix("epoch "), window.start_ns, window.end_ns, window.energy_j)
            for window in epochs]  # fmt: skip
    inside = _sum(window.energy_j for window in epochs)
    outside_j = None if inside is None or report.energy_j is None else report.energy_j - inside
    steps = report.step_count - sum(row["steps"] for row in rows)
    outside = _parts(_pauses(report, lambda w: not any(e.start_ns <= w.start_ns < e.end_ns for e in epochs)), outside_j)
    span_s = report.duration_s - fsum(row["duration_s"] for row in rows)
    return [*rows, {"epoch": OUTSIDE, "start_s": None, "duration_s": span_s, "steps": steps, **outside, "step_j": None}]


def _row(report: Report, name: str, start_ns: int, end_ns: int, energy_j: float | None) -> dict[str, Any]:
    steps = sum(step.count for step in report.steps if start_ns < step.end_ns <= end_ns)
    parts = _parts(_pauses(report, lambda w: start_ns <= w.start_ns < end_ns), energy_j)
    train_j = parts["train_j"]
    return {
        "epoch": name,
        "start_s": (start_ns - report.start_ns) / NS_PER_S,
        "duration_s": (end_ns - start_ns) / NS_PER_S,
        "steps": steps,
        **parts,
        "step_j": None if train_j is None or not steps else train_j / steps,
    }


def _pauses(report: Report, belongs: Any) -> list[Window]:
    return [w for w in report.windows if w.kind in {"evaluation", "checkpoint"} and belongs(w)]


def _parts(pauses: list[Window], energy_j: float | None) -> dict[str, float | None]:
    of = {kind: _sum(w.energy_j for w in pauses if w.kind == kind) for kind in ("evaluation", "checkpoint")}
    known = [energy_j, *of.values()]
    train_j = None if None in known else fsum((energy_j or 0.0, *(-(x or 0.0) for x in of.values())))
    return {"energy_j": energy_j, "train_j": train_j} | {f"{kind}_j": x for kind, x in of.items()}


def _sum(parts: Iterable[float | None]) -> float | None:
    found = list(parts)
    return None if None in found else fsum(x for x in found if x is not None)
