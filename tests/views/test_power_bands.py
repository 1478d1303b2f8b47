"""Bands under the power curve, and lines beside it."""

import re
from base64 import b64decode
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.reports import GPU, START_NS, sample_report
from torchwatt.attribution.phase_timeline import MAX_INTERVALS, phase_timeline
from torchwatt.core.meter import Channel, series_from_readings
from torchwatt.core.report import PhaseInterval, Step, Window
from torchwatt.core.terms import PHASES
from torchwatt.core.trace import Span, trace_from_spans
from torchwatt.views import to_payload
from torchwatt.views.power_chart import MAX_BANDS, gauge_lines, power_bands, render_chart

MS = 1_000_000
UTILIZATION = Channel(GPU, "utilization", "gauge", "1", 0.01, 1_000 * MS, "nvml_utilization")
TEMPERATURE = Channel(GPU, "temperature", "gauge", "Cel", 1.0, 1_000 * MS, "nvml_temperature")


@st.composite
def step_rows(draw):
    """Return rows of steps in time order, some beyond the run's ends."""
    widths_ms = draw(st.lists(st.integers(1, 500), max_size=700))
    stages = st.sampled_from(["", "train", "validation", "inference"])
    rows, t_ns = [], START_NS - draw(st.integers(0, 50)) * MS
    for index, width_ms in enumerate(widths_ms):
        rows.append(Step(index, t_ns, t_ns + width_ms * MS, {}, draw(st.integers(1, 9)), draw(stages)))
        t_ns += (width_ms + draw(st.integers(0, 3))) * MS
    return tuple(rows)


@given(step_rows(), st.integers(1, MAX_BANDS))
def test_bands_are_in_order_within_the_run_and_their_steps_add_up(steps, most):
    report = sample_report(steps=steps)
    bands = power_bands(report, most)
    assert sum(band.count for band in bands.get("steps", ())) == report.step_count
    for row in bands.values():
        assert 0 < len(row) <= most
        assert all(0 <= band.start_s <= band.end_s <= report.duration_s for band in row)
        assert all(a.end_s <= b.start_s + 1e-9 for a, b in pairwise(row))


@given(step_rows())
def test_steps_with_a_stage_are_in_its_band(steps):
    report = sample_report(steps=steps)
    stages = power_bands(report, 10_000).get("stages", ())
    assert sum(band.count for band in stages) == sum(step.count for step in steps if step.stage)
    inside = [s for s in steps if s.stage and s.start_ns >= START_NS and s.end_ns <= report.end_ns]
    for step in inside:
        middle_s = ((step.start_ns + step.end_ns) / 2 - START_NS) / 1e9
        assert [band.label for band in stages if band.start_s <= middle_s <= band.end_s] == [step.stage]


def test_epochs_and_other_windows_have_rows_of_their_own():
    windows = (
        Window("epoch 1", START_NS, START_NS + 10**9, None, "epoch"),
        Window("evaluation", START_NS + 10**9, START_NS + 2 * 10**9, None, "evaluation"),
    )
    bands = power_bands(sample_report(windows=windows))
    assert [(band.start_s, band.end_s, band.label) for band in bands["epochs"]] == [(0.0, 1.0, "epoch 1")]
    assert [(band.start_s, band.end_s, band.label) for band in bands["windows"]] == [(1.0, 2.0, "evaluation")]


@st.composite
def traces(draw):
    """Return spans of two threads that do not overlap within a thread, and the end of the run."""
    spans = []
    names = st.sampled_from(["a.0", "a.1", "b", "(optimizer)"])
    for thread in (0, 1):
        t_ns = draw(st.integers(0, 20)) * MS
        for width_ms, pause_ms in draw(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 20)), max_size=300)):
            spans.append(Span(draw(names), draw(st.sampled_from(PHASES)), t_ns, t_ns + width_ms * MS, thread))
            t_ns += (width_ms + pause_ms) * MS
    return spans, max((span.end_ns for span in spans), default=0) + MS


@given(traces())
def test_a_timeline_is_in_order_within_the_run_and_short(made):
    spans, end_ns = made
    timeline = phase_timeline(trace_from_spans(spans), 0, end_ns)
    assert len(timeline) <= MAX_INTERVALS
    edges = [t_ns for part in timeline for t_ns in (part.start_ns, part.end_ns)]
    assert edges == sorted(edges)
    assert all(0 <= t_ns <= end_ns for t_ns in edges)
    assert all(0 < part.share <= 1 for part in timeline)
    assert all(part.start_ns < part.end_ns for part in timeline)


@given(st.lists(st.tuples(st.sampled_from(PHASES), st.integers(1, 50)), min_size=1, max_size=60))
def test_few_phases_one_after_the_other_are_exact(parts):
    spans, t_ns = [], 5 * MS
    for phase, width_ms in parts:
        spans.append(Span("model.3", phase, t_ns, t_ns + width_ms * MS))
        t_ns += width_ms * MS
    timeline = phase_timeline(trace_from_spans(spans), 0, t_ns + 5 * MS)
    covered = {span.phase: sum(s.end_ns - s.start_ns for s in spans if s.phase == span.phase) for span in spans}
    shown = {phase: sum(p.end_ns - p.start_ns for p in timeline if p.phase == phase) for phase in covered}
    assert shown == pytest.approx(covered)
    assert {part.share for part in timeline} == {1.0}
    assert {part.group for part in timeline} == {"model.*"}


def test_many_short_phases_are_one_interval_that_says_how_much_it_has_of_the_prevailing_one():
    spans = [Span("compile", "compile", 0, 5_000 * MS)]
    for step in range(2_000):
        start_ns = (5_000 + 10 * step) * MS
        spans.append(Span("f", "forward", start_ns, start_ns + 3 * MS))
        spans.append(Span("layers.7", "backward", start_ns + 3 * MS, start_ns + 9 * MS))
    compiling, training = phase_timeline(trace_from_spans(spans), 0, 25_000 * MS)
    assert (compiling.phase, compiling.share, compiling.group) == ("compile", pytest.approx(1.0), "compile")
    assert (training.phase, training.share, training.group) == ("backward", pytest.approx(0.6, abs=0.01), "layers.*")
    assert training.end_ns == 25_000 * MS


def test_a_long_pause_is_no_band():
    spans = [Span("a", "forward", 0, 10 * MS), Span("a", "forward", 1_000 * MS, 1_010 * MS)]
    timeline = phase_timeline(trace_from_spans(spans), 0, 2_000 * MS)
    assert [(part.start_ns, part.end_ns) for part in timeline] == [(0, 10 * MS), (1_000 * MS, 1_010 * MS)]


def gauge(channel, *seconds_and_values):
    return series_from_readings(channel, [(START_NS + round(t * 1e9), float(v)) for t, v in seconds_and_values])


def test_lines_of_gauges_have_units_and_break_where_readings_are_missing():
    gauges = (
        gauge(UTILIZATION, (1, 90), (2, 80), (9, 70), (10, 60)),
        gauge(TEMPERATURE, (1, 45), (2, 46)),
    )
    use, heat = gauge_lines(sample_report(gauges=gauges), 100)
    assert (use.domain, use.kind, use.unit) == ("gpu:0", "utilisation", "%")
    assert use.t_s.tolist() == [1, 2, 2, 9, 10]
    assert np.array_equal(use.value, [90, 80, np.nan, 70, 60], equal_nan=True)
    assert (heat.kind, heat.unit, heat.value.tolist()) == ("temperature", "°C", [45, 46])


@given(st.integers(2, 2_000), st.integers(10, 100))
def test_long_lines_are_thinned_and_keep_their_extremes(count, most):
    rising = gauge(TEMPERATURE, *((t, t % 97) for t in range(count)))
    (line,) = gauge_lines(sample_report(gauges=(rising,)), most)
    assert len(line.t_s) <= most
    assert line.value.max() == max(t % 97 for t in range(count))


def test_a_gauge_of_a_domain_without_power_is_not_drawn():
    other = replace(UTILIZATION, domain=replace(GPU, index=7))
    assert list(gauge_lines(sample_report(gauges=(gauge(other, (1, 90)),)), 100)) == []


def test_the_payload_has_bands_lines_and_steps_that_add_up_and_stays_small():
    timeline = tuple(
        PhaseInterval(START_NS + i * 100 * MS, START_NS + (i + 1) * 100 * MS, "forward", 0.8, f"blocks.*.part{i}")
        for i in range(200)
    )
    payload = to_payload(sample_report(timeline=timeline, gauges=(gauge(UTILIZATION, (1, 50), (2, 60)),)))
    assert sum(count for _, _, count in payload["bands"]["steps"]) == payload["step"]["count"] == 40
    assert payload["bands"]["phases"][0][2:] == ["forward 80%", "blocks.*.part0"]
    assert payload["lines"][0]["value"] == [50, 60]
    assert set(payload["bands"]) <= {"epochs", "windows", "stages", "steps", "phases"}


def test_the_picture_has_a_band_for_each_row_inside_of_its_axes():
    svg = b64decode(render_chart(sample_report()).partition(",")[2]).decode()
    height = float(re.search(r'height="([\d.]+)"', svg)[1])
    outlines = re.findall(r'class="band" d="([^"]+)"', svg)
    bands = [tuple(map(float, band)) for band in re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)", "".join(outlines))]
    assert len(bands) == sum(len(row) for row in power_bands(sample_report()).values())
    assert all(58 <= x <= x + width <= 848.2 for x, _, width in bands)
    assert all(206 < y < height - 20 for _, y, _ in bands)
    assert {"windows", "stages", "steps", "phases", "backward"} <= set(re.findall(">([^<]+)</text>", svg))
    bare = sample_report(timeline=(), steps=(), windows=())
    assert 'class="band"' not in b64decode(render_chart(bare).partition(",")[2]).decode()
