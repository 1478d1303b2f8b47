from math import isclose

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.attribution.owned_intervals import NO_OWNER, cut_by_owner, flatten_spans
from torchwatt.core.trace import Span, trace_from_spans


@st.composite
def nested(draw, lo=0, hi=24, depth=3, thread=0):
    """Draw properly nested spans with times from a small range: ties break joins."""
    spans = []
    if depth == 0 or hi - lo < 1:
        return spans
    cuts = sorted(draw(st.lists(st.integers(lo, hi), max_size=6)))
    for a, b in zip(cuts[::2], cuts[1::2], strict=False):
        name = draw(st.sampled_from(["a", "b", "c"]))
        spans.append(Span(f"{name}{depth}", "forward", a, b, thread))
        spans += draw(nested(lo=a, hi=b, depth=depth - 1, thread=thread))
    return spans


def innermost_by_hand(spans, instant):
    """Return the span that started last among those running; the later in the list at a tie, as it is inner."""
    running = [(s.start_ns, -s.end_ns, i) for i, s in enumerate(spans) if s.start_ns <= instant < s.end_ns]
    return max(running)[2] if running else None


@given(nested())
def test_each_instant_belongs_to_the_innermost_span(spans):
    start = np.array([s.start_ns for s in spans], dtype=np.int64)
    end = np.array([s.end_ns for s in spans], dtype=np.int64)
    lo, hi, owner = flatten_spans(start, end)
    for instant in range(24):
        at = [int(o) for a, b, o in zip(lo, hi, owner, strict=True) if a <= instant < b]
        expected = innermost_by_hand(spans, instant)
        assert len(at) == (expected is not None)
        if at:
            got, want = spans[at[0]], spans[expected]
            assert (got.start_ns, got.end_ns) == (want.start_ns, want.end_ns)


@given(nested(), nested(thread=1), st.randoms())
def test_weights_cover_the_window_exactly_whatever_the_order(one, two, random):
    spans = [*one, *two]
    random.shuffle(spans)
    cut = cut_by_owner(trace_from_spans(spans), 0, 30)
    covered = ((cut.end_ns - cut.start_ns) * cut.weight).sum()
    assert isclose(covered, 30.0, rel_tol=1e-12)
    for instant in range(30):
        here = (cut.start_ns <= instant) & (cut.end_ns > instant)
        assert isclose(cut.weight[here].sum(), 1.0)


def test_two_threads_share_an_instant_equally():
    trace = trace_from_spans([Span("a", "forward", 0, 10), Span("b", "forward", 5, 20, thread=1)])
    cut = cut_by_owner(trace, 0, 20)
    seconds = {
        slot: float(((cut.end_ns - cut.start_ns) * cut.weight)[cut.slot == slot].sum()) for slot in np.unique(cut.slot)
    }
    assert seconds == {0: 7.5, 1: 12.5}


def test_a_span_that_outlives_its_parent_is_clipped_to_it():
    lo, hi, owner = flatten_spans(np.array([0, 5]), np.array([10, 15]))
    assert list(zip(lo, hi, owner, strict=True)) == [(0, 5, 0), (5, 10, 1)]


def test_no_spans_is_one_gap():
    cut = cut_by_owner(trace_from_spans([]), 3, 9)
    assert (cut.start_ns.tolist(), cut.end_ns.tolist(), cut.slot.tolist()) == ([3], [9], [NO_OWNER])
