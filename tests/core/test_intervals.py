from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.core.intervals import (
    NO_INDEX,
    cut_crossings,
    enclosing_indices,
    extend_to_siblings,
    innermost,
    self_times,
    top_level,
)


@st.composite
def call_trees(draw):
    """Ranges of nested calls over a counter, in the order in which the calls end."""
    rows, counter = [], draw(st.integers(0, 5))

    def call(depth):
        nonlocal counter
        first = counter
        for _ in range(draw(st.integers(0, 2 if depth < 3 else 0))):
            counter += draw(st.integers(0, 2))
            call(depth + 1)
        counter += draw(st.integers(0, 2))
        rows.append((first, counter, depth))

    for _ in range(draw(st.integers(0, 3))):
        call(0)
        counter += draw(st.integers(0, 2))
    return rows


@given(call_trees(), st.lists(st.integers(0, 40)))
def test_the_innermost_range_is_the_deepest_that_contains_the_number(rows, numbers):
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    found = innermost(table[:, 0], table[:, 1], np.array(numbers, dtype=np.int64))
    for number, index in zip(numbers, found, strict=True):
        inside = [(depth, i) for i, (s0, s1, depth) in enumerate(rows) if s0 <= number < s1]
        assert index == (max(inside)[1] if inside else NO_INDEX)


@st.composite
def node_lists(draw):
    """Sorted, nested intervals and an end that none exceeds."""
    spans, now = [], 0

    def node(depth):
        nonlocal now
        start = now
        place = len(spans)
        spans.append(None)
        for _ in range(draw(st.integers(0, 2 if depth < 2 else 0))):
            now += draw(st.integers(0, 2))
            node(depth + 1)
        now += draw(st.integers(1, 3))
        spans[place] = (start, now)

    for _ in range(draw(st.integers(1, 4))):
        now += draw(st.integers(0, 2))
        node(0)
    return spans, now + draw(st.integers(0, 3))


@given(node_lists())
def test_extended_nodes_cover_the_call_from_the_first_node_on_without_overlap(case):
    nodes, limit = case
    start, end = [s for s, _ in nodes], [e for _, e in nodes]
    ends, up = extend_to_siblings(start, end, limit)
    top = [i for i, parent in enumerate(up) if parent == NO_INDEX]
    assert sum(ends[i] - start[i] for i in top) == limit - start[0]
    assert all(ends[a] == start[b] for a, b in pairwise(top))
    assert all(ends[i] >= end[i] for i in range(len(nodes)))
    assert all(ends[i] <= end[p] for i, p in enumerate(up) if p != NO_INDEX)


@given(node_lists())
def test_self_times_add_up_to_the_top_level(case):
    start, end = [s for s, _ in case[0]], [e for _, e in case[0]]
    top = [i for i, p in enumerate(enclosing_indices(start, end)) if p == NO_INDEX]
    assert sum(self_times(start, end)) == sum(end[i] - start[i] for i in top)
    assert top_level(np.array(start), np.array(end)).tolist() == top


def test_a_scope_that_crosses_a_call_is_cut_at_the_call():
    start = np.array([10, 0, 15, 40])
    end = np.array([20, 12, 30, 50])
    cut_crossings(start, end, np.array([1, 2]))
    assert end.tolist() == [20, 10, 20, 50]
