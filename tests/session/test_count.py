"""`run.count`: each number is counted as it is, or refused at the call with one sentence."""

from __future__ import annotations

import threading
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.core.errors import ConfigError
from torchwatt.session.run import Run
from torchwatt.session.session import Session


def counting() -> Run:
    """Return a run that has not begun: all that counting needs."""
    session = Session.__new__(Session)
    session.units, session._counting = {}, threading.Lock()
    return Run(session)


@pytest.fixture
def run() -> Run:
    return counting()


RIGHT = [
    (64, 64.0), (0, 0.0), (2.5, 2.5), (2**53, 2.0**53), (np.int64(64), 64.0), (np.uint8(200), 200.0),
    (np.float32(0.5), 0.5), (np.float64(3.0), 3.0), (np.array(7), 7.0), (torch.tensor(7), 7.0),
    (torch.tensor(2.5), 2.5), (torch.tensor(7, dtype=torch.uint8), 7.0), (Fraction(1, 2), 0.5),
    (torch.tensor(3.0, requires_grad=True), 3.0),
]  # fmt: skip
WRONG = [
    1e308, 1e-320, 2**53 + 1, 10**400, 10**5000, -(10**400), float("nan"), float("inf"), -float("inf"), -1, -0.5,
    True, False, np.True_, torch.tensor(1, dtype=torch.bool), "64", b"64", None, [64], (64,), {}, object,
    np.array([7, 8]), np.array([7]),
    torch.tensor([7, 8]), torch.tensor(float("nan")), np.float32("inf"), np.nan, 1 + 0j, np.complex64(3), np.str_("64"),
    Decimal("NaN"), torch.empty(0), torch.empty((), device="meta"), np.datetime64("2026-01-01"),
    SimpleNamespace(item=lambda: 1 / 0),
]  # fmt: skip


@pytest.mark.parametrize(("given", "counted"), RIGHT, ids=[repr(given) for given, _ in RIGHT])
def test_a_number_is_counted_as_it_is(run, given, counted):
    run.count("token", given)
    run.count("token")
    assert run.units == {"token": counted + 1}
    assert type(run.units["token"]) is float


@pytest.mark.parametrize("given", WRONG, ids=map(str, range(len(WRONG))))
def test_anything_else_is_refused_at_the_call_in_one_sentence(run, given):
    run.count("token", 3)
    with pytest.raises(ConfigError) as refused:
        run.count("token", given)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200
    assert run.units == {"token": 3.0}


@given(st.lists(st.one_of(st.floats(0, allow_infinity=False), st.integers(0, 2**64)), max_size=6))
def test_no_sum_of_counts_leaves_the_range_in_which_it_is_exact(given):
    run = counting()
    for n in given:
        before = run.units.get("u", 0.0)
        try:
            run.count("u", n)
        except ConfigError:
            assert run.units.get("u", 0.0) == before
            assert n + before > 2**53 or 0 < n < 1e-9
    assert run.units.get("u", 0.0) <= 2**53


@pytest.mark.parametrize("unit", ["", None, 5, b"image"])
def test_a_unit_is_named(run, unit):
    with pytest.raises(ConfigError, match="name the unit"):
        run.count(unit, 1)
