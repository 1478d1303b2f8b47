"""Bands under the power curve: the epochs, windows, stages, steps and phases that ran."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from torchwatt.core.report import PhaseInterval, Report, Step, Window

MAX_BANDS = 200
MAX_LABELS = 3  # that a merged band names
_FULL_SHARE = 0.9  # a phase with this part of a band's time is named alone


@dataclass(frozen=True, slots=True)
class Band:
    """One interval in seconds since the start of the run.

    `count` is the number of steps in a band of steps; `group` the modules with the most time in a band of a phase.
    """

    start_s: float
    end_s: float
    label: str
    count: int = 1
    group: str = ""


def power_bands(report: Report, max_bands: int = MAX_BANDS) -> dict[str, tuple[Band, ...]]:
    """Return the bands of each row with at least one, in time order: epochs, windows, stages, steps and phases.

    A row has at most `max_bands` bands: neighbours are merged, and a merged band names what it contains. The counts of
    the bands of steps add up to the steps of the report.
    """
    rows = {
        "epochs": [Band(*_span_s(report, w), w.name) for w in report.windows if w.kind == "epoch"],
        "windows": [Band(*_span_s(report, w), w.name) for w in report.windows if w.kind != "epoch"],
        "stages": list(_stages(report)),
        "steps": [Band(*_span_s(report, step), "", step.count) for step in report.steps],
        "phases": [Band(*_span_s(report, part), _phase_label(part), group=part.group) for part in report.timeline],
    }
    return {name: tuple(_merge_neighbours(bands, max_bands)) for name, bands in rows.items() if bands}


def _span_s(report: Report, part: Step | Window | PhaseInterval) -> tuple[float, float]:
    """Return start and end of a part in seconds since the start of the run, inside of the run."""
    length_ns = report.end_ns - report.start_ns
    lo, hi = (min(max(t_ns - report.start_ns, 0), length_ns) / 1e9 for t_ns in (part.start_ns, part.end_ns))
    return lo, max(lo, hi)


def _stages(report: Report) -> Iterator[Band]:
    """Yield a band for each row of steps of one stage; steps without a stage are left out."""
    for stage, group in groupby(report.steps, key=lambda step: step.stage):
        steps = list(group)
        if stage:
            lo, _ = _span_s(report, steps[0])
            yield Band(lo, max(_span_s(report, steps[-1])[1], lo), stage, sum(step.count for step in steps))


def _phase_label(part: PhaseInterval) -> str:
    return part.phase if part.share >= _FULL_SHARE else f"{part.phase} {part.share:.0%}"


def _merge_neighbours(bands: Sequence[Band], max_bands: int) -> Iterator[Band]:
    """Yield at most `max_bands` bands in order of their starts, each merged from as many neighbours."""
    ordered = sorted(bands, key=lambda band: (band.start_s, band.end_s))
    width = -(-len(ordered) // max_bands) if max_bands > 0 else 0
    for at in range(0, len(ordered) if width else 0, width or 1):
        part = ordered[at : at + width]
        yield Band(
            part[0].start_s,
            max(band.end_s for band in part),
            _join_labels([band.label for band in part]),
            sum(band.count for band in part),
            _join_labels([band.group for band in part]),
        )


def _join_labels(labels: Sequence[str]) -> str:
    distinct = [label for label in dict.fromkeys(labels) if label]
    return ", ".join(distinct[:MAX_LABELS]) + (", ..." if len(distinct) > MAX_LABELS else "")
