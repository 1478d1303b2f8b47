"""Laws of the join: what must not change it, and what nests and shares must satisfy."""

import random

import numpy as np
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tests.kineto.trace_files import BACK, event, joined, kernel, launch, module, node, note, op, owned
from tests.support.examples import examples
from torchwatt.core.intervals import NO_INDEX, busy_ns, busy_shares_ns, nest_intervals, union_intervals
from torchwatt.kineto.column_builder import ns_from_us

FEW = examples(15, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def runs(draw):
    """A training step in small numbers, so that ends and starts meet often."""
    size = st.integers(1, 4)
    t, events, correlation, seq = 0, [], 0, 0
    layers = draw(st.lists(size, min_size=1, max_size=4))
    for i, length in enumerate(layers):
        events.append(module(f"Layer_{i}", t, length + 2))
        if draw(st.booleans()):
            events.append(module(f"Inner_{i}", t + 1, length))
        events.append(op("aten::mm", t + 1, 1, seq=seq))
        correlation += 1
        events += [launch(t + 1, correlation), kernel(t + draw(size), draw(size), correlation, stream=draw(size))]
        t, seq = t + length + 2, seq + 1
    for i in reversed(range(len(layers))):
        correlation += 1
        events.append(node("MmBackward0", t, 4, seq=i))
        events += [launch(t + 1, correlation, BACK), kernel(t + draw(size), draw(size), correlation, stream=draw(size))]
        if draw(st.booleans()):
            events.append(node("torch::autograd::AccumulateGrad", t + 4, 2))
            correlation += 1
            events += [launch(t + 4, correlation, BACK), kernel(t + 6, draw(size), correlation)]
        t += 6
    events.append(note("Optimizer.step#SGD.step", t, 3))
    events += [launch(t, 900), kernel(t + 1, draw(size), 900), kernel(t, draw(size), 901)]
    return events


@FEW
@given(runs(), st.randoms(use_true_random=False))
def test_the_order_of_events_in_the_file_does_not_matter(tmp_path, events, rng: random.Random):
    shuffled = list(events)
    rng.shuffle(shuffled)
    a, b = joined(tmp_path, events), joined(tmp_path, shuffled)
    assert owned(a) == owned(b)
    assert a.kernel_ns == b.kernel_ns


@FEW
@given(runs(), st.integers(-(10**9), 10**12))
def test_shifting_the_clock_changes_nothing(tmp_path, events, shift_us):
    later = [{**e, "ts": e["ts"] + shift_us} for e in events]
    a, b = joined(tmp_path, events), joined(tmp_path, later, offset_ns=-shift_us * 1000)
    assert owned(a) == owned(b)
    assert a.activities[0].start_ns.tolist() == b.activities[0].start_ns.tolist()


@FEW
@given(runs(), st.integers(1, 5))
def test_putting_records_on_other_streams_changes_no_owner(tmp_path, events, n):
    split = [
        {**e, "args": {**e["args"], "stream": i % n}, "tid": i % n} if e["cat"] == "kernel" else e
        for i, e in enumerate(events)
    ]
    assert owned(joined(tmp_path, events)) == owned(joined(tmp_path, split))


@FEW
@given(runs())
def test_every_record_is_joined_once_and_kernel_time_is_the_traces_own(tmp_path, events):
    found = joined(tmp_path, events)
    kernels = [e for e in events if e["cat"] == "kernel"]
    assert found.total_kernel_ns == sum(e["dur"] * 1000 for e in kernels)
    assert sum(len(a) for a in found.activities) == found.records == len(kernels)
    assert sum(owned(found).values()) == found.total_kernel_ns


@FEW
@given(runs())
def test_events_that_say_nothing_of_the_device_change_nothing(tmp_path, events):
    more = [event("python_function", "loop.py(3): run", 0, 50), event("cpu_instant_event", "[memory]", 1, 0)]
    assert owned(joined(tmp_path, events)) == owned(joined(tmp_path, [*more, *events]))


intervals = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(0, 6)), max_size=12)


def arrays(rows):
    lane, start, length = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return lane, start, start + length


def nested(rows):
    """Keep what is nested or apart, thread by thread."""
    kept = []
    for lane, start, length in rows:
        end = start + length
        apart = all(
            lane != k or end <= s or start >= s + n or (s <= start and end <= s + n) or (start <= s and s + n <= end)
            for k, s, n in kept
        )
        if apart:
            kept.append((lane, start, length))
    return kept


@given(intervals, st.integers(0, 2), st.integers(0, 20))
def test_the_innermost_is_the_shortest_that_holds_the_instant(rows, lane, t):
    rows = nested(rows)
    lanes, start, end = arrays(rows)
    found = int(nest_intervals(lanes, start, end).at(np.array([lane]), np.array([t]))[0])
    holding = [i for i in range(len(rows)) if lanes[i] == lane and start[i] <= t < end[i]]
    if not holding:
        assert found == NO_INDEX
    else:
        assert found in holding
        assert end[found] - start[found] == min(end[i] - start[i] for i in holding)


@given(intervals)
def test_whatever_crosses_still_gives_one_owner_that_had_begun(rows):
    lanes, start, end = arrays(rows)
    times = np.arange(0, 20)
    tree = nest_intervals(lanes, start, end)
    for lane in range(3):
        for t, found in zip(times, tree.at(np.full(20, lane), times), strict=True):
            assert found == NO_INDEX or (lanes[found] == lane and start[found] <= t < end[found])
    top = tree.outermost(np.arange(len(rows)))
    assert (tree.parent[top] == NO_INDEX).all()


@given(intervals)
def test_shares_add_up_to_busy_time_which_is_the_union(rows):
    _, start, end = arrays(rows)
    covered = {t for s, e in zip(start.tolist(), end.tolist(), strict=True) for t in range(s, e)}
    assert busy_ns(start, end) == len(covered)
    share = busy_shares_ns(start, end)
    assert np.isclose(share.sum(), len(covered))
    for i in range(len(rows)):
        ticks = range(int(start[i]), int(end[i]))
        by_hand = sum(1 / sum(s <= t < e for s, e in zip(start, end, strict=True)) for t in ticks)
        assert np.isclose(share[i], by_hand)
    lo, hi = union_intervals(start, end)
    assert (lo[1:] > hi[:-1]).all()


@given(st.integers(0, 2_000_000_000_000_000), st.integers(0, 3))
def test_unix_microseconds_keep_every_digit_that_a_double_has(us, quarter):
    time_us = np.array([us + quarter / 4])
    assert ns_from_us(time_us).tolist() == [us * 1000 + quarter * 250]
