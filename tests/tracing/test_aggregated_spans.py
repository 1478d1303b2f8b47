"""Folding by its laws: no nanosecond is lost or made, and nothing crosses what is kept."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.tracing.nets import Net, assert_nested, batch, calls, codes, traced, train
from torchwatt.core.intervals import self_times
from torchwatt.tracing.aggregated_spans import MAX_KINDS, AggregatedSpans, SpanKinds, _units, merge_spans, split_log
from torchwatt.tracing.log_rows import OPTIMIZER_KEY, OUTERMOST_TASK, BackwardCall
from torchwatt.tracing.scope import StepMarks

INSIDE = st.sampled_from([(), ((1, 2),), ((0, 3), (1, 2)), ((0, 1), (2, 4))])


@st.composite
def stretches(draw):
    """Units one after the other, some with records inside, in runs."""
    rows, t, run = [], draw(st.integers(0, 5)), 0
    for _ in range(draw(st.integers(1, 25))):
        t += draw(st.integers(0, 3))
        length = draw(st.integers(0, 8))
        rows.append((draw(st.integers(0, 3)), t, t + length, 1, run))
        rows += [(draw(st.integers(0, 3)), t + a, t + b, 1, run) for a, b in draw(INSIDE) if b <= length]
        t += length
        if draw(st.booleans()):
            run, t = run + 1, t + 1
    table = np.array(sorted(rows, key=lambda r: (r[1], -r[2])), dtype=np.int64)
    return AggregatedSpans(*table.T, _units(table[:, 1], table[:, 2]), 0 * table[:, 0])


def own_by_kind(records):
    own = np.array(self_times(records.start.tolist(), records.end.tolist()))
    mine = {int(kind): records.kind == kind for kind in np.unique(records.kind)}
    return {kind: (int(own[m].sum()), int(records.count[m].sum())) for kind, m in mine.items()}


@given(stretches(), st.integers(2, 9))
def test_merging_keeps_the_time_and_count_of_every_kind(records, g):
    assert own_by_kind(merge_spans(records, g)) == own_by_kind(records)


@given(stretches(), st.integers(1, 3))
def test_merging_twice_is_merging_once(records, power):
    g = 2**power
    once, twice = merge_spans(records, 2 * g), merge_spans(merge_spans(records, g), 2 * g)
    assert own_by_kind(once) == own_by_kind(twice)
    assert len(once) == len(twice)


@given(stretches(), st.integers(2, 9))
def test_merged_records_lie_apart_inside_their_run(records, g):
    merged = merge_spans(records, g)
    assert np.all(merged.start[1:] >= merged.end[:-1])
    for run in np.unique(records.run):
        before, after = records.run == run, merged.run == run
        assert merged.start[after].min() >= records.start[before].min()
        assert merged.end[after].max() <= records.end[before].max()


def test_a_merge_worked_out_by_hand():
    #                 kind start end count run unit
    table = [(7, 0, 10, 1, 0, 0), (8, 2, 5, 1, 0, 0), (7, 12, 20, 1, 0, 1), (8, 30, 31, 1, 1, 2)]
    merged = merge_spans(AggregatedSpans(*np.array(table, dtype=np.int64).T, np.zeros(len(table), dtype=np.int64)), 2)
    assert merged.kind.tolist() == [7, 8, 8]
    assert merged.start.tolist() == [0, 15, 30]  # 7 for 7 + 8 ns, then 8 for 3 ns; the other run stays apart
    assert merged.end.tolist() == [15, 18, 31]
    assert merged.count.tolist() == [2, 1, 1]


def test_what_is_traced_is_kept_and_ends_a_run():
    first, last = (1, 0, 5, 0, 3, OUTERMOST_TASK), (1, 20, 25, 0, 3, OUTERMOST_TASK)
    rows = [first, (OPTIMIZER_KEY, 6, 7, 0, 0, -1), (1, 10, 15, 0, 3, -1), last]
    parts = split_log(np.array(rows, dtype=np.int64), [], SpanKinds())
    assert parts.kept.tolist() == [2]
    assert parts.records.run.tolist() == [0, 0, 2]
    assert parts.runs == 2


def test_a_scope_around_traced_calls_is_kept_with_them():
    rows = [(1, 2, 5, 0, 3, -1), (-10, 1, 9, 0, 3, -1), (-10, 20, 25, 0, 0, -1)]
    parts = split_log(np.array(rows, dtype=np.int64), [], SpanKinds())
    assert parts.kept.tolist() == [0, 1]
    assert parts.records.start.tolist() == [20]


def test_light_backward_calls_are_records_and_recorded_ones_are_kept():
    table = np.zeros((0, 6), dtype=np.int64)
    keys = {"keys": (("coarse", (), 0),)}
    plain = [BackwardCall(start, start + 1, 0, 0, 0, light, cache=keys) for start, light in ((0, True), (5, False))]
    parts = split_log(table, plain, SpanKinds())
    assert parts.calls == (plain[1],)
    assert parts.records.start.tolist() == [0]


def test_an_endless_variety_of_kinds_becomes_one_kind():
    kinds = SpanKinds()
    numbers = {kinds.number(("row", 1, size, -2)) for size in range(10_000)}
    assert len(numbers) == MAX_KINDS + 1


@given(st.integers(0, 700), st.integers(2, 30))
def test_marks_are_bounded_and_count_every_step(steps, most):
    marks = StepMarks(most)
    for end in range(1, steps + 1):
        marks.add(end)
    entries = marks.entries()
    assert len(entries) <= most + most % 2
    assert sum(n for _, n in entries) == steps
    ends = [end for end, _ in entries]
    assert ends == sorted(set(ends))
    assert not ends or ends[-1] == steps
    assert np.cumsum([n for _, n in entries]).tolist() == ends  # each ends where its steps end


@examples(5)
@given(st.sampled_from([1e-9, 1e-4]))
def test_a_loop_that_is_folded_while_it_runs_keeps_calls_and_steps(budget):
    from torchwatt.tracing import step_controller, thread_log

    before = step_controller.FOLD_STEPS, thread_log.MAX_RECORDS
    step_controller.FOLD_STEPS, thread_log.MAX_RECORDS = 20, 40
    fold, merged, snapshots = thread_log.ThreadLog.fold, [], []
    thread_log.ThreadLog.fold = lambda *args: merged.append(fold(*args)) or merged[-1]
    net = Net()
    try:
        with traced(net, overhead_budget=budget) as run:
            hub = run.tracer._hub
            for _ in range(6):
                train(net, 50)
                snapshots.append(run.tracer.snapshot())
                hub.stepping._fold(hub.logs[0], hub.clock_ns())  # when it folds by itself depends on the clock
            kept = len(run.tracer._hub.logs[0]._records)
    finally:
        step_controller.FOLD_STEPS, thread_log.MAX_RECORDS = before
        thread_log.ThreadLog.fold = fold
    trace = run.trace
    assert kept <= 40 + 3 * 20
    assert ("STEPS_FOLDED" in codes(trace)) == (max(merged) > 1)
    assert [calls(each, "head", "forward") for each in snapshots] == [50, 100, 150, 200, 250, 300]
    assert calls(trace, "head", "forward") == calls(trace, "blocks.1.fc2", "backward") == 300
    assert sum(trace.step_counts or [1] * len(trace.steps)) == 300
    assert_nested(trace)


def test_evaluation_after_training_wakes_a_sleeping_thread():
    net = Net()
    with traced(net, overhead_budget=1e-9) as run:
        train(net, 200)
        asleep = run.tracer._hub.logs[0].mode
        net.eval()
        with torch.no_grad():
            for _ in range(100):
                net(batch())
    assert asleep == 2
    assert calls(run.trace, "(root)", "forward") == 300
    assert calls(run.trace, "head", "forward") == 300
