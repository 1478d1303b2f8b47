from math import isclose

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.attribution.timeline import NOBODY, PAUSE_NS, flatten, pieces
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
    lo, hi, owner = flatten(start, end)
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
    cut = pieces(trace_from_spans(spans), 0, 30)
    covered = ((cut.end_ns - cut.start_ns) * cut.weight).sum()
    assert isclose(covered, 30.0, rel_tol=1e-12)
    for instant in range(30):
        here = (cut.start_ns <= instant) & (cut.end_ns > instant)
        assert isclose(cut.weight[here].sum(), 1.0)


def test_two_threads_share_an_instant_equally():
    trace = trace_from_spans([Span("a", "forward", 0, 10), Span("b", "forward", 5, 20, thread=1)])
    cut = pieces(trace, 0, 20)
    seconds = {
        slot: float(((cut.end_ns - cut.start_ns) * cut.weight)[cut.slot == slot].sum()) for slot in np.unique(cut.slot)
    }
    assert seconds == {0: 7.5, 1: 12.5}


def seconds_by_slot(spans, end_ns):
    """Return how long each slot owned the window up to a time, by name and phase."""
    trace = trace_from_spans(spans)
    cut = pieces(trace, 0, end_ns)
    names = [(slot.fqn, slot.phase) for slot in trace.slots]
    owned = (cut.end_ns - cut.start_ns) * cut.weight
    return {
        names[slot] if slot != NOBODY else None: float(owned[cut.slot == slot].sum()) for slot in np.unique(cut.slot)
    }


def steps_of(thread, offset, *, phases=("forward", "backward"), n=8):
    """Return steps of 10: two spans of 4, and 2 between this step and the next."""
    return [
        Span(f"m{thread}", phase, begin := offset + 10 * i + 4 * k, begin + 4, thread)
        for i in range(n)
        for k, phase in enumerate(phases)
    ]


@given(st.integers(0, 9))
def test_what_a_thread_that_trains_does_between_its_spans_is_work_beside_another_thread(offset):
    owned = seconds_by_slot([*steps_of(0, 0), *steps_of(1, offset)], 80)
    alone = seconds_by_slot(steps_of(0, 0), 80)
    assert isclose(owned[None], alone[None], abs_tol=offset)  # nobody's: two in ten, however the steps overlap


def test_a_worker_that_answers_waits_between_its_spans():
    answers = [Span("worker", "forward", 10 * i, 10 * i + 1, 1) for i in range(8)]
    owned = seconds_by_slot([Span("busy", "forward", 0, 80), *answers], 80)
    assert owned == {("busy", "forward"): 76.0, ("worker", "forward"): 4.0}


def test_a_long_pause_of_a_thread_that_trains_is_none_of_its_work():
    later = [Span("m1", "forward", PAUSE_NS + 8, PAUSE_NS + 12, 1)]
    owned = seconds_by_slot([Span("busy", "forward", 0, PAUSE_NS + 12), *steps_of(1, 0, n=1), *later], PAUSE_NS + 12)
    assert owned["busy", "forward"] == PAUSE_NS + 6
    assert None not in owned


def test_a_span_that_outlives_its_parent_is_clipped_to_it():
    lo, hi, owner = flatten(np.array([0, 5]), np.array([10, 15]))
    assert list(zip(lo, hi, owner, strict=True)) == [(0, 5, 0), (5, 10, 1)]


def test_no_spans_is_one_gap():
    cut = pieces(trace_from_spans([]), 3, 9)
    assert (cut.start_ns.tolist(), cut.end_ns.tolist(), cut.slot.tolist()) == ([3], [9], [NOBODY])
