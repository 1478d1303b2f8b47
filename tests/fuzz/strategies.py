"""Hypothesis draws what `mutate` chooses, so a failing input shrinks to few and simple changes."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.fuzz.mutate import mutate
from tests.fuzz.targets import TARGETS


@st.composite
def inputs(draw: st.DrawFn, name: str) -> bytes:
    """Draw an input of a target: a valid one, changed in one to three places."""
    entry = TARGETS[name]
    start = draw(st.sampled_from(entry.seeds()))
    return mutate(entry.form, start, draw(st.randoms(use_true_random=False)))
