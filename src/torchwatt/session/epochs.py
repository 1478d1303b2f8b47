"""Steps, evaluations, checkpoints and joules of each epoch. Pure functions of a report."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import fsum
from typing import Any

from torchwatt.core.report import Report, Window
from torchwatt.core.terms import VALIDATION
from torchwatt.core.units import NS_PER_S

OUTSIDE = "(outside)"
PAUSES = ("evaluation", "checkpoint")
COLUMNS = (
    "epoch", "start_s", "duration_s", "steps", "energy_j", "train_j", "evaluation_j", "checkpoint_j", "step_j",
)  # fmt: skip


def epoch_rows(report: Report) -> list[dict[str, Any]]:
    """Return one row per epoch, and one for the time outside of all epochs; their joules add up to the report's.

    `steps` counts training steps.
    `energy_j` is the sum of `train_j`, `evaluation_j` and `checkpoint_j`; `step_j` is `train_j` per step. A value is
    None if a meter did not cover the whole interval.
    """
    epochs = [window for window in report.windows if window.kind == "epoch"]
    if not epochs:
        return []
    pauses = sorted((w for w in report.windows if w.kind in PAUSES), key=lambda w: w.start_ns)
    begun = [pause.start_ns for pause in pauses]
    training = [step for step in report.steps if step.stage != VALIDATION]
    ends, done = [step.end_ns for step in training], [0, *accumulate(step.count for step in training)]
    rows, used = [], 0
    outside_pauses: list[Window] = []
    for epoch in epochs:
        first_pause, end_pause = bisect_left(begun, epoch.start_ns), bisect_left(begun, epoch.end_ns)
        outside_pauses += pauses[used:first_pause]
        used = end_pause
        steps = done[bisect_right(ends, epoch.end_ns)] - done[bisect_right(ends, epoch.start_ns)]
        rows.append(_row(report, epoch, pauses[first_pause:end_pause], steps))
    inside_j = _sum(epoch.energy_j for epoch in epochs)
    outside_j = None if inside_j is None or report.energy_j is None else report.energy_j - inside_j
    outside = {
        "epoch": OUTSIDE,
        "start_s": None,
        "duration_s": report.duration_s - fsum(row["duration_s"] for row in rows),
        "steps": done[-1] - sum(row["steps"] for row in rows),
        **_parts([*outside_pauses, *pauses[used:]], outside_j),
        "step_j": None,
    }
    return [*rows, outside]


def _row(report: Report, epoch: Window, pauses: Sequence[Window], steps: int) -> dict[str, Any]:
    parts = _parts(pauses, epoch.energy_j)
    train_j = parts["train_j"]
    return {
        "epoch": epoch.name.removeprefix("epoch "),
        "start_s": (epoch.start_ns - report.start_ns) / NS_PER_S,
        "duration_s": (epoch.end_ns - epoch.start_ns) / NS_PER_S,
        "steps": steps,
        **parts,
        "step_j": None if train_j is None or not steps else train_j / steps,
    }


def _parts(pauses: Sequence[Window], energy_j: float | None) -> dict[str, float | None]:
    paused = {f"{kind}_j": _sum(w.energy_j for w in pauses if w.kind == kind) for kind in PAUSES}
    complete_j = _sum([energy_j, *paused.values()])
    train_j = None if complete_j is None else fsum(((energy_j or 0.0), *(-(x or 0.0) for x in paused.values())))
    return {"energy_j": energy_j, "train_j": train_j, **paused}


def _sum(parts: Iterable[float | None]) -> float | None:
    summands = list(parts)
    return None if None in summands else fsum(x for x in summands if x is not None)
