"""DDP's reducer within recorded backward calls, and which calls fill which."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.tracing.backward_templates import NEIGHBOURING_CALLS, BackwardTemplate, most_similar
from torchwatt.tracing.call_template import ElasticTemplate, TimedCall, template_of
from torchwatt.tracing.log_rows import COMMUNICATION_KEY, FORWARD_TASK, AutogradNodes, BackwardCall, keys_of
from torchwatt.tracing.thread_log import ThreadLog
from torchwatt.tracing.trace_spans import MOST_AFTER_NS, UNOWNED, join_backward, reducer_intervals

GRADIENT = -1  # AccumulateGrad has no sequence number


def nodes(*rows):
    """Nodes (start, end, seq) of one thread."""
    start, end, seq = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    one = np.ones(len(start), dtype=np.int64)
    return AutogradNodes(start, end, seq, one, one)


def log_of(*rows):
    return np.array([(key, 0, 1, s0, s1, FORWARD_TASK) for key, s0, s1 in rows], dtype=np.int64)


TWO_LAYERS = log_of((1, 0, 1), (2, 1, 2))  # two equal layers with one node each
CALL = nodes((10, 20, 1), (20, 21, GRADIENT), (30, 40, 0), (40, 41, GRADIENT))


def pieces(*, reduces):
    call = BackwardCall(5, 100, 0, 0, 0, light=False, reduces=reduces, nodes=CALL)
    return join_backward(call, TWO_LAYERS)[0].tolist()


def test_the_reducer_works_after_each_gradient_and_waits_after_the_last_one():
    assert pieces(reduces=True) == [
        [10, 21, 2, 1], [21, 30, COMMUNICATION_KEY, 1], [30, 41, 1, 1], [41, 100, COMMUNICATION_KEY, 0]
    ]  # fmt: skip


def test_where_nothing_is_reduced_the_engine_belongs_to_the_layers():
    assert pieces(reduces=False) == [[10, 30, 2, 1], [30, 100, 1, 1]]


def test_an_interruption_after_the_last_node_is_no_work_of_the_layer_that_was_last():
    late = BackwardCall(5, 30_000_000, 0, 0, 0, light=False, nodes=CALL)
    assert join_backward(late, TWO_LAYERS)[0].tolist() == [[10, 30, 2, 1], [30, 41 + MOST_AFTER_NS, 1, 1]]


def test_gradients_inside_a_node_are_reduced_there():
    inside = reducer_intervals([0, 2, 6, 10], [10, 5, 7, 12], [3, 1, GRADIENT, GRADIENT], 20)  # a reentrant checkpoint
    assert sorted(inside) == [(7, 10, COMMUNICATION_KEY, -2), (12, 20, COMMUNICATION_KEY, -2)]


@st.composite
def calls(draw):
    """Node rows in order and apart, and when the call ends."""
    cuts = draw(st.lists(st.integers(0, 1000), min_size=4, max_size=20, unique=True).map(sorted))
    rows = [(a, b, draw(st.integers(GRADIENT, 5))) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    return rows, cuts[-1] + draw(st.integers(1, 500))


@given(calls())
def test_communication_is_what_no_node_did_and_all_of_the_end(found):
    rows, limit = found
    parts = reducer_intervals(*(list(column) for column in zip(*rows, strict=True)), limit)
    for start, end, key, _ in parts:
        assert key == COMMUNICATION_KEY
        assert all(end <= a or start >= b for a, b, _ in rows)  # never during a node
    assert max(end for _, end, *_ in parts) == limit
    after = {b for _, b, seq in rows if seq == GRADIENT} | {rows[-1][1]}
    assert {start for start, *_ in parts} <= after


def test_calls_that_reduce_and_calls_that_do_not_are_no_templates_of_each_other():
    table = np.concatenate([TWO_LAYERS, TWO_LAYERS])
    accumulating = BackwardCall(0, 10, 0, 2, 2, light=False)
    reducing = BackwardCall(20, 40, 2, 4, 4, light=False, reduces=True)
    assert not set(keys_of(table, accumulating, None)) & set(keys_of(table, reducing, accumulating))


def test_a_reducer_is_used_once_and_several_are_used_by_every_call():
    log = ThreadLog(0)
    assert not log.takes_reducers()
    log.reducers.add(1)
    assert log.takes_reducers()
    assert not log.takes_reducers()
    log.reducers |= {1, 2}
    assert [log.takes_reducers(), log.takes_reducers()] == [True, True]


def model(length_ns):
    template = template_of(TimedCall(0, length_ns), [(0, length_ns, UNOWNED + 1, 1)])
    elastic = ElasticTemplate(template, length_ns)
    return BackwardTemplate(elastic, elastic, {}, length_ns)


def test_an_interrupted_call_stands_for_long_calls_only():
    calls = [(t_ns, model(length_ns)) for t_ns, length_ns in enumerate([100, 900, 101, 99])]
    assert most_similar(calls, 1, 105).length_ns == 101
    assert most_similar(calls, 3, 2000).length_ns == 900
    assert most_similar([], 0, 1) is None


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=40), st.integers(0, 40), st.integers(1, 10**9))
def test_the_nearest_call_is_near_in_time_and_of_these_most_alike(lengths, t_ns, length_ns):
    calls = [(i, model(length)) for i, length in enumerate(lengths)]
    after = min(t_ns + 1, len(lengths))
    near = lengths[max(after - NEIGHBOURING_CALLS, 0) : after + NEIGHBOURING_CALLS]
    chosen = most_similar(calls, t_ns, length_ns)
    ratio = max(chosen.length_ns / length_ns, length_ns / chosen.length_ns)
    assert ratio == pytest.approx(min(max(n / length_ns, length_ns / n) for n in near))
