"""The trace for Perfetto: counters hold the ledger's joules, slices nest, and what was not traced says so."""

import gzip
import json
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from math import fsum, isclose

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.reports import bare_report, named_report, sample_report
from torchwatt.core.errors import BundleError
from torchwatt.core.terms import Slot
from torchwatt.core.trace import Activity, Span, trace_from_spans
from torchwatt.reports.report_result import JobRun
from torchwatt.views import SpanTimeline, select_spans, to_perfetto
from torchwatt.views.perfetto_trace import FILLED, NO_GAUGE_READINGS, NO_READINGS

REPORT = sample_report()


def read(report, trace=None):
    return json.loads(to_perfetto(report, None if trace is None else SpanTimeline(trace)))


def slices(document, track=None):
    """Return the slices of one track, or of all, by the name of their track."""
    names = {e["tid"]: e["args"]["name"] for e in document["traceEvents"] if e["name"] == "thread_name"}
    found = [(names[e["tid"]], e) for e in document["traceEvents"] if e["ph"] == "X"]
    return [event for name, event in found if track in {None, name}]


def counters(document):
    points = defaultdict(list)
    for event in document["traceEvents"]:
        if event["ph"] == "C" and event["cat"] == "power":
            points[event["name"]].append((event["ts"], event["args"]["W"]))
    return points


def nest(document):
    """Check that the slices of each track are nested or follow each other."""
    tracks = defaultdict(list)
    for event in slices(document):
        tracks[event["tid"]].append((round(event["ts"] * 1000), round((event["ts"] + event["dur"]) * 1000)))
    for track in tracks.values():
        open_ends = []
        for start_ns, end_ns in sorted(track, key=lambda one: (one[0], -one[1])):
            while open_ends and open_ends[-1] <= start_ns:
                open_ends.pop()
            assert not open_ends or end_ns <= open_ends[-1]
            open_ends.append(end_ns)


def test_the_integral_of_each_counter_is_the_energy_of_its_domain():
    points = counters(read(REPORT))
    assert len(points) == len(REPORT.curves)
    for ledger in REPORT.ledgers:
        track = points[f"{ledger.domain} power ({ledger.provenance})"]
        joules = fsum(w * (after - at) / 1e6 for (at, w), (after, _) in pairwise(track))
        assert isclose(joules, ledger.energy_j, rel_tol=1e-9)


def test_utilisation_and_temperature_are_counters_where_they_were_read():
    document, found = read(REPORT), defaultdict(list)
    for event in document["traceEvents"]:
        if event["ph"] == "C" and event["cat"] == "gauge":
            found[event["name"]].append((event["ts"], event["args"]))
    use, heat = REPORT.gauges
    since_us = [(t_ns - REPORT.start_ns) / 1000 for t_ns in use.t_ns.tolist()]
    shares = [{"%": value} for value in use.raw.tolist()]
    assert found["gpu:0 utilisation"] == list(zip(since_us, shares, strict=True))
    assert [args for _, args in found["gpu:0 temperature"]] == [{"°C": value} for value in heat.raw.tolist()]
    (pause,) = slices(document, "gpu:0 utilisation sensor")
    assert (pause["name"], pause["ts"], pause["dur"]) == (NO_GAUGE_READINGS, 9e6, 5e6)
    assert not [event for event in read(replace(REPORT, gauges=()))["traceEvents"] if event.get("cat") == "gauge"]


def test_where_there_are_no_readings_a_slice_says_so():
    gap = (REPORT.start_ns + 4_000_000_000, REPORT.start_ns + 5_000_000_000)
    curve = REPORT.curves[0]
    energy_j = np.where(curve.t_ns > gap[0], np.maximum(curve.energy_j - curve.between(*gap), curve.at(gap[0])), 0)
    energy_j = np.where(curve.t_ns <= gap[0], curve.energy_j, energy_j)
    document = read(replace(REPORT, curves=(replace(curve, energy_j=energy_j, silent=(gap,)),)))
    (shown,) = slices(document, "gpu:0 meter")
    assert (shown["name"], shown["ts"], shown["dur"]) == (NO_READINGS, 4e6, 1e6)
    inside = [w for at, w in counters(document)["gpu:0 power (measured)"] if 4e6 <= at < 5e6]
    assert inside
    assert set(inside) == {0.0}


def test_steps_stages_and_epochs_have_their_times_joules_and_names():
    document = read(REPORT)
    steps = slices(document, "steps")
    assert [event["name"] for event in steps] == [f"step {i}" for i in range(40)]
    for event, step in zip(steps, REPORT.steps, strict=True):
        assert event["ts"] == (step.start_ns - REPORT.start_ns) / 1000
        assert isclose(event["args"]["energy_j"], fsum(step.energy_j.values()))
    assert [e["name"] for e in slices(document, "stages")] == ["train", "validation"] * 8
    assert [e["name"] for e in slices(document, "epochs")] == ["warm up"]
    about = document["otherData"]
    assert about["clock"].startswith("microseconds since the run's start")
    assert about["start_unix_ns"] == str(REPORT.start_unix_ns)
    assert about["module_slices"].startswith("none")
    grouped = replace(REPORT, steps=(replace(REPORT.steps[0], count=8),))
    assert [e["name"] for e in slices(read(grouped), "steps")] == ["steps 0-7"]


def test_steps_and_modules_that_were_not_traced_are_marked():
    first, second, third = REPORT.steps[:3]
    spans = [
        Span("a", "forward", first.start_ns, first.end_ns),
        Span("a.b", "forward", first.start_ns, first.start_ns + 500),
        Span("a", "forward", second.start_ns, second.end_ns),
        Span("(profiler)", "other", second.start_ns, second.start_ns + 9),  # never filled in
        Span("a", "forward", third.start_ns, third.start_ns + 10),
        Span("a", "backward", third.start_ns + 10, third.end_ns),
    ]
    trace = replace(trace_from_spans(spans), filled=np.array([False, False, True, False, False, True]))
    document = read(REPORT, trace)
    names = [e["name"] for e in slices(document, "steps")]
    assert names[:4] == ["step 0", "step 1 (filled in)", "step 2 (partly filled in)", "step 3"]
    modules = slices(document, "modules, thread 0")
    assert [e["args"].get("layers") for e in modules] == [None, None, FILLED, None, None, FILLED]
    assert modules[1]["dur"] == 0.5
    nest(document)


times = st.integers(0, 12)


@given(st.lists(st.tuples(times, times, st.integers(0, 1)), max_size=30))
def test_slices_of_a_track_nest_whatever_overlaps(drawn):
    start_ns = REPORT.start_ns
    spans = [Span(f"m{i}", "forward", start_ns + a, start_ns + a + b, t) for i, (a, b, t) in enumerate(drawn)]
    document = read(REPORT, trace_from_spans(spans))
    nest(document)
    assert sum(event["name"].startswith("m") for event in slices(document)) == len(drawn)


@given(st.lists(st.tuples(times, times), min_size=1, max_size=30), st.integers(1, 20))
def test_the_longest_spans_are_kept_with_all_that_encloses_them(drawn, limit):
    trace = trace_from_spans([Span(str(i), "forward", a, a + b) for i, (a, b) in enumerate(drawn)])
    timeline = select_spans(trace, limit)
    kept = timeline.trace
    assert len(kept) + timeline.omitted == len(drawn)
    assert len(kept) <= max(limit, 0) or len(drawn) <= limit
    names = {kept.slots[i].fqn for i in kept.slot.tolist()}
    for i, (a, b) in enumerate(drawn):
        if str(i) in names:
            assert all(str(j) in names for j, (c, d) in enumerate(drawn) if c <= a and a + b <= c + d and d > b)


def test_records_of_a_device_are_slices_of_their_stream():
    start_ns = REPORT.start_ns
    records = Activity(
        "gpu:0", (Slot("head", "backward"),), np.array([0, 0]), start_ns + np.array([10, 40]),
        start_ns + np.array([30, 60]), np.array([7, 7]), np.array([False, True]),
    )  # fmt: skip
    document = read(REPORT, replace(trace_from_spans(()), activities=(records,)))
    found = slices(document, "gpu:0, stream 7")
    assert [(e["name"], e["cat"], e["dur"], e["args"].get("layers")) for e in found] == [
        ("head", "backward", 0.02, None), ("head", "backward", 0.02, FILLED),
    ]  # fmt: skip


def test_a_report_without_meters_and_hostile_names_are_written(tmp_path):
    assert counters(read(bare_report())) == {}
    assert read(named_report("\ud800<script>"), trace_from_spans([Span("\ud800", "forward", 1, 2)]))
    path = JobRun(REPORT).to_perfetto(tmp_path / "new" / "run.json.gz")
    assert json.loads(gzip.decompress(path.read_bytes())) == read(REPORT)
    assert json.loads(JobRun(REPORT).to_perfetto(tmp_path / "run.json").read_bytes()) == read(REPORT)
    with pytest.raises(BundleError, match="is not a file: name one for the trace"):
        JobRun(REPORT).to_perfetto(tmp_path)
