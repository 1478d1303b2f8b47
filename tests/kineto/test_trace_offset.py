"""An offset is found where the device's work explains the watts, and nowhere else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import examples
from torchwatt.core.errors import TraceError
from torchwatt.kineto.trace_offset import fit_offset

MS = 1_000_000


def work(rng, n=60):
    """Bursts of odd lengths with odd pauses: start, end in ns."""
    edges = np.cumsum(rng.integers(5, 80, 2 * n)) * MS
    return edges[::2], edges[1::2]


def watts(t_ns, start, end):
    """60 W, and 200 W more while the device works; a reading is the power at its time."""
    at = np.searchsorted(start, t_ns, side="right") - 1
    return 60.0 + 200.0 * ((at >= 0) & (t_ns < end[np.maximum(at, 0)]))


@examples(12)
@given(st.integers(0, 2**31), st.integers(-3_600_000, 3_600_000))
def test_a_known_offset_is_found_to_a_few_milliseconds(seed, offset_ms):
    rng = np.random.default_rng(seed)
    start, end = work(rng)
    t_ns = np.arange(start[0] - 2000 * MS, end[-1] + 3000 * MS, 10 * MS)
    power = watts(t_ns, start, end) + rng.normal(0, 5, len(t_ns))
    found = fit_offset(start, end, t_ns + offset_ms * MS, power)
    assert abs(found.offset_ns - offset_ms * MS) <= 6 * MS
    assert found.explained > 0.7
    assert not found.ambiguous


def test_overlapping_records_and_their_order_do_not_matter():
    rng = np.random.default_rng(1)
    start, end = work(rng)
    t_ns = np.arange(start[0] - 500 * MS, end[-1] + 500 * MS, 10 * MS)
    power = watts(t_ns, start, end)
    shuffle = rng.permutation(2 * len(start))
    twice = np.concatenate((start, start))[shuffle], np.concatenate((end, end))[shuffle]
    assert fit_offset(*twice, t_ns, power) == fit_offset(start, end, t_ns, power)


def test_work_that_repeats_exactly_is_said_to_be_ambiguous():
    start = np.arange(200) * 50 * MS
    t_ns = np.arange(-5000 * MS, 15_000 * MS, 5 * MS)
    long = np.arange(-100, 300) * 50 * MS
    assert fit_offset(start, start + 25 * MS, t_ns, watts(t_ns, long, long + 25 * MS)).ambiguous


def test_power_that_has_nothing_to_do_with_the_work_is_ambiguous():
    rng = np.random.default_rng(3)
    start, end = work(rng)
    t_ns = np.arange(0, 20_000 * MS, 10 * MS)
    assert fit_offset(start, end, t_ns, rng.normal(100, 10, len(t_ns))).ambiguous


@pytest.mark.parametrize(
    ("start", "end", "t", "power"),
    [
        ([], [], [0, 1, 2, 3], [1, 2, 1, 2]),
        ([0], [10 * MS], [0, MS, 2 * MS, 3 * MS], [5, 5, 5, 5]),
        ([0], [10 * MS], [0, MS], [1, 2]),
        ([0], [10 * MS], [0, 5 * MS, 10 * MS, 15 * MS], [1, 2, 1, 2]),
    ],
)
def test_where_there_is_nothing_to_fit_the_error_says_so(start, end, t, power):
    with pytest.raises(TraceError, match="offset cannot be fitted"):
        fit_offset(*(np.array(c, dtype=np.int64) for c in (start, end, t)), np.array(power, dtype=float))
