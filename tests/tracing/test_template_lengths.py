"""Laws of fitting a template to a call of another length."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.tracing.call_template import FINEST_RATIO, ElasticTemplate, TimedCall, template_of
from torchwatt.tracing.log_rows import COMMUNICATION_KEY, UNCOUNTED_COMMUNICATION_KEY

NET_NS = 1_000_000
owners = st.sampled_from([1, 2, 3, COMMUNICATION_KEY])


@st.composite
def templates(draw):
    """Pieces side by side, some with a piece of communication inside, that fill a call of `NET_NS`."""
    cuts = draw(st.lists(st.integers(1, NET_NS - 1), max_size=8, unique=True).map(sorted))
    pieces = []
    for start, end in pairwise([0, *cuts, NET_NS]):
        owner = draw(owners)
        pieces.append((start, end, owner, 1))
        if draw(st.booleans()):
            inner = UNCOUNTED_COMMUNICATION_KEY if owner == COMMUNICATION_KEY else COMMUNICATION_KEY
            third = (end - start) // 3
            pieces.append((start + third, end - third, inner, 1))
    return template_of(TimedCall(0, NET_NS), pieces)


def times(template, net_ns):
    """Net time of work by owner, and of communication."""
    shares = template.shares()
    talk = sum(share for owner, share in shares.items() if owner in (COMMUNICATION_KEY, UNCOUNTED_COMMUNICATION_KEY))
    return {owner: share * net_ns for owner, share in shares.items() if owner > 0}, talk * net_ns


@given(templates(), st.integers(NET_NS // 20, 50 * NET_NS))
def test_work_keeps_its_time_and_communication_takes_the_rest(template, net_ns):
    before, talk_before = times(template, NET_NS)
    fitted = ElasticTemplate(template, NET_NS).fitted(net_ns)
    after, talk = times(fitted, net_ns)
    assert sum(after.values()) + talk == pytest.approx(net_ns, rel=1e-6)  # nothing is lost
    if talk_before == 0:
        assert fitted is template
        return
    work = sum(before.values())
    if work < 0.99 * net_ns:
        for owner, own in before.items():
            assert after[owner] == pytest.approx(own, rel=1.01 * FINEST_RATIO, abs=2)
    else:  # too short for the work: all of it shrinks alike, and nobody waited
        for owner, own in before.items():
            assert after[owner] == pytest.approx(own * net_ns / work, rel=0.03, abs=2)


@given(templates(), st.integers(NET_NS // 20, 50 * NET_NS))
def test_the_order_stays_and_all_is_inside(template, net_ns):
    fitted = ElasticTemplate(template, NET_NS).fitted(net_ns)
    bounds = np.concatenate((template.first, template.last))
    moved = np.concatenate((fitted.first, fitted.last))
    order = np.argsort(bounds, kind="stable")
    assert (np.diff(moved[order]) >= -1e-9).all()
    assert moved.min() >= 0
    assert moved.max() <= 1


def test_a_call_of_the_same_length_gets_the_template_as_it_is():
    template = template_of(TimedCall(0, 100), [(0, 60, 1, 1), (60, 100, COMMUNICATION_KEY, 1)])
    fitted = ElasticTemplate(template, 100).fitted(100)
    assert np.allclose(fitted.first, template.first)
    assert np.allclose(fitted.last, template.last)


def test_a_wait_of_ten_seconds_is_no_work_of_a_layer():
    template = template_of(TimedCall(0, 100), [(0, 60, 1, 1), (60, 100, COMMUNICATION_KEY, 1)])
    fitted = ElasticTemplate(template, 100).fitted(100_000)
    work, talk = times(fitted, 100_000)
    assert work[1] == pytest.approx(60, rel=0.02)
    assert talk == pytest.approx(99_940, rel=1e-3)
