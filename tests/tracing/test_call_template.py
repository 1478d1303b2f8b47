from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.tracing.call_template import (
    ASSUMED_REL_SD,
    TemplateCatalogue,
    TimedCall,
    neighbours_in_time,
    relative_sd,
    stretch_template,
    stretch_templates,
    template_of,
)

bounds = st.lists(st.integers(0, 1000), min_size=2, max_size=12, unique=True).map(sorted)
cuts = st.lists(st.integers(1, 4000), max_size=6, unique=True).map(sorted)


def call(start, length, marks):
    inside = [start + mark for mark in marks if mark < length]
    return TimedCall(start, start + length, tuple(zip(inside[::2], inside[1::2], strict=False)))


@given(bounds, st.integers(1, 5000), st.integers(0, 10**12), cuts)
def test_stretching_keeps_order_and_total_time(marks, length, start, inner):
    pieces = [(a, b, i, 1) for i, (a, b) in enumerate(pairwise(marks))]
    template = template_of(TimedCall(marks[0], marks[-1]), pieces)
    target = call(start, length, inner)
    first, last = stretch_template(template, target)
    assert (first[1:] >= last[:-1]).all()
    assert (last >= first).all()
    assert first[0] >= target.start_ns
    assert last[-1] <= target.end_ns
    net = target.to_net(last) - target.to_net(first)
    assert net.sum() == target.net_ns


@given(bounds, st.integers(1, 5000), cuts)
def test_a_filled_span_never_crosses_a_real_one(marks, length, inner):
    pieces = [(a, b, i, 1) for i, (a, b) in enumerate(pairwise(marks))]
    target = call(0, length, inner)
    for a, b in zip(*stretch_template(template_of(TimedCall(marks[0], marks[-1]), pieces), target), strict=True):
        for s, e in target.inner:
            assert b <= s or e <= a or (a <= s and e <= b) or a == b


@given(bounds, st.integers(1, 10**9))
def test_many_calls_at_once_are_stretched_like_one(marks, length):
    template = template_of(TimedCall(marks[0], marks[-1]), [(a, a + 1, 7, 1) for a in marks[:-1]])
    one = stretch_template(template, TimedCall(5, 5 + length))
    many = stretch_templates(template, np.array([5]), np.array([5 + length]))
    assert [m[0].tolist() for m in many] == [o.tolist() for o in one]


def test_shares_leave_children_and_recomputed_modules_out():
    traced = TimedCall(0, 120, ((10, 30),))  # 20 ns of a recomputed module: net 100
    template = template_of(traced, [(0, 70, 1, 1), (40, 50, 2, 1), (70, 120, 3, 1)])
    assert template.shares() == pytest.approx({1: 0.4, 2: 0.1, 3: 0.5})


def test_templates_of_the_same_structure_are_candidates_the_near_ones_first():
    a, b, c = (template_of(TimedCall(0, 10), [(0, 10, i, 1)]) for i in (1, 2, 3))
    catalogue = TemplateCatalogue()
    catalogue.add(["x"], 0, a)
    catalogue.add(["x"], 100, b)
    catalogue.add(["y"], 40, c)
    assert catalogue.candidates(["x"]) == ([(0, a), (100, b)], True)
    assert catalogue.candidates(["x"], lambda template: template is b) == ([(100, b)], True)
    assert catalogue.candidates(["z", "y"]) == ([(40, c)], True)
    assert catalogue.candidates(["z"]) == ([(0, a), (40, c), (100, b)], False)
    assert TemplateCatalogue().candidates(["z"]) == ([], False)
    assert neighbours_in_time([(0, a), (40, c), (100, b)], 41, 1) == [c, b]


def test_spread_is_taken_within_a_structure_only():
    same = [{1: 0.4, 2: 0.6}, {1: 0.4, 2: 0.6}]
    other = [{1: 0.9}, {1: 0.9}]
    assert relative_sd([same, other]) == {1: 0.0, 2: 0.0}
    assert relative_sd([[{1: 0.3}, {1: 0.5}]])[1] == pytest.approx(0.1 * 2**0.5 / 0.4)
    assert relative_sd([[{1: 0.3}]]) == {1: ASSUMED_REL_SD}
