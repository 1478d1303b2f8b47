"""Laws of evening out what the machine did to single recorded calls."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tracing.nets import Net, batch, traced
from torchwatt.tracing.call_template import ElasticTemplate, TimedCall, even_interruptions, template_of
from torchwatt.tracing.log_rows import COMMUNICATION_KEY

MS = 1_000_000


def call_of(lengths_ms, owners, inner=False):
    """Make the template of a call: pieces one after the other, if `inner` with one inside each; then 1 ms of nobody."""
    ends = np.cumsum([round(length * MS) for length in lengths_ms])
    starts = np.concatenate(([0], ends[:-1]))
    pieces = [(int(s), int(e), owner, 1) for s, e, owner in zip(starts, ends, owners, strict=True)]
    if inner:
        pieces += [(s + (e - s) // 4, e - (e - s) // 4, owner + 100, 1) for s, e, owner, _ in pieces if owner > 0]
        pieces.sort(key=lambda piece: (piece[0], -piece[1]))
    call = TimedCall(0, int(ends[-1]) + MS)
    return ElasticTemplate(template_of(call, pieces), call.net_ns)


def times_ms(call):
    return {owner: share * call.net_ns / MS for owner, share in call.plain.shares().items()}


WORK = [0.2, 1.0, 1.0, 3.0, 0.5]
OWNERS = [1, 2, 3, 4, COMMUNICATION_KEY]


def calls_with(interruptions_ms, inner=False):
    """Make calls that did the same work; each was interrupted in one piece."""
    lengths = [[length + (ms if i == at else 0.0) for i, length in enumerate(WORK)] for at, ms in interruptions_ms]
    return [call_of(each, OWNERS, inner) for each in lengths]


interruptions = st.tuples(st.integers(0, 3), st.floats(0.0, 20.0))


@given(st.lists(interruptions, min_size=2, max_size=12), st.booleans(), st.data())
def test_no_time_is_lost_and_communication_keeps_its_own(found, inner, data):
    calls = calls_with(found, inner)
    away = [data.draw(st.integers(0, 30 * MS)) for _ in calls]
    for before, after in zip(calls, even_interruptions(calls, away), strict=True):
        assert after.net_ns == before.net_ns
        assert times_ms(after)[COMMUNICATION_KEY] == pytest.approx(times_ms(before)[COMMUNICATION_KEY], abs=1e-4)
        bounds = np.sort(np.concatenate((after.plain.first, after.plain.last)))
        assert bounds[0] >= 0
        assert bounds[-1] <= 1
        assert np.all(after.plain.last >= after.plain.first)
        assert np.array_equal(after.plain.owner, before.plain.owner)
        assert np.array_equal(after.plain.calls, before.plain.calls)


@given(st.lists(st.floats(0.0, 20.0), min_size=2, max_size=11), st.booleans())
def test_what_the_machine_took_is_spread_over_the_work(lengths_ms, inner):
    found = [(0, 0.0), *((i % 4, ms) for i, ms in enumerate(lengths_ms))]  # most calls did not lose any one piece
    calls = calls_with(found, inner)
    usual = times_ms(calls[0])
    for (at, ms), after in zip(found, even_interruptions(calls, [round(ms * MS) for _, ms in found]), strict=True):
        if ms <= 2.0 * WORK[at] + 1.0:
            continue  # what is not much longer than usual may be work
        longer = [own / usual[owner] for owner, own in times_ms(after).items() if owner > 0]
        assert max(longer) <= 1.01 * min(longer)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_call_that_was_never_away_keeps_its_work(count):
    calls = calls_with([(2, 9.0 * (i % 2)) for i in range(count)])
    assert all(after is before for before, after in zip(calls, even_interruptions(calls, [0] * count), strict=True))


def test_no_more_is_moved_than_the_call_was_away():
    calls = calls_with([(1, 0.0), (1, 0.0), (1, 10.0)])
    after = times_ms(even_interruptions(calls, [0, 0, 4 * MS])[2])
    assert after[2] == pytest.approx((11.0 - 4.0) * 16.2 / (16.2 - 4.0), rel=1e-6)  # of 16.2 ms that are work


def test_calls_of_other_shape_are_not_compared():
    calls = [call_of(WORK, OWNERS), call_of(WORK[::-1], OWNERS[::-1]), call_of(WORK[:2], OWNERS[:2])]
    assert even_interruptions(calls, [50 * MS] * 3) == calls


def test_a_layer_that_waits_in_every_call_is_left_alone():
    calls = calls_with([(1, 8.0)] * 6)
    assert even_interruptions(calls, [8 * MS] * 6) == calls


class Waiting(torch.autograd.Function):
    """In backward its thread does not run for a while."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        time.sleep(0.02)
        return grad


def test_a_recorded_call_knows_how_long_its_thread_did_not_run():
    model = Net()
    with traced(model) as run:
        for waits in (False, False, True):
            y = model(batch())
            (Waiting.apply(y) if waits else y).sum().backward()
        call = run.tracer._log.backwards[-1]
    assert call.nodes is not None
    assert 19 * MS <= call.away_ns <= call.end_ns - call.start_ns
