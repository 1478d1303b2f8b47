"""When a device was done: a simulated queue with a clock of its own against what the stamps say."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchwatt.tracing.devices.stamps import ANCHOR_EVERY_NS, JOINED_NS, MOST_PENDING, MOST_STAMPS, Stamps, on_device

MS = 1_000_000


class Device:
    """A queue whose work ends one after the other; its clock is off and runs at another pace; single precision."""

    def __init__(self, drift=20e-6, offset_ns=7e12):
        self.now_ns = self.free_ns = 1_000 * MS
        self.drift, self.offset_ns = drift, offset_ns
        self.recorded = 0
        self.stuck = False  # an event apart waits for all others, as with one connection to the device

    def clock_ns(self):
        self.now_ns += 1_000  # looking takes a microsecond
        return self.now_ns

    def work(self, ns):
        self.free_ns = max(self.free_ns, self.now_ns) + ns

    def record(self, *, apart=False):
        self.recorded += 1
        return self.now_ns if apart and not self.stuck else max(self.free_ns, self.now_ns)

    def passed(self, event):
        return event <= self.now_ns

    def ns_between(self, first, second):
        return float(np.float32((second - first) * (1 + self.drift) / 1e6)) * 1e6


def run(device, steps):
    """Do steps of (host's ns, device's ns); return the stamps, the host's steps, and the truth."""
    stamps, host, truth = Stamps(device, device.clock_ns), [], []
    for host_ns, device_ns in steps:
        start, began = device.now_ns, max(device.free_ns, device.now_ns)
        device.work(device_ns)
        device.now_ns += host_ns
        host.append((start, device.now_ns, 1))
        truth.append((began, max(device.free_ns, device.now_ns)))
        stamps.mark()
    device.now_ns = max(device.now_ns, device.free_ns)
    stamps.settle()
    return stamps, host, truth


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(100_000, 80 * MS), st.integers(0, 80 * MS)), min_size=2, max_size=60),
    st.floats(-50e-6, 50e-6),
)
def test_a_device_s_steps_are_found_on_the_host_s_clock(steps, drift):
    device = Device(drift)
    stamps, host, truth = run(device, steps)
    found = on_device(host, *stamps.known(), device.now_ns)
    length_s = (device.now_ns - 1_000 * MS) / 1e9
    allowed = 20_000 + 1e9 * abs(drift) * length_s  # anchors take some microseconds; beyond the last, clocks drift
    for busy, (began, ended) in zip(found, truth, strict=True):
        assert abs(busy.end_ns - ended) <= allowed
        assert abs(busy.start_ns - began) <= allowed + JOINED_NS * (busy.start_ns < began)
    assert all(a.end_ns <= b.start_ns for a, b in itertools.pairwise(found))


def test_a_host_that_runs_ahead_leaves_the_device_bound_and_one_that_waits_does_not():
    device = Device()
    stamps, host, _ = run(device, [(2 * MS, 40 * MS)] * 20 + [(2_000 * MS, 40 * MS)] * 5)
    found = on_device(host, *stamps.known(), device.now_ns)
    assert [busy.bound for busy in found[1:20]] == [True] * 19
    assert [busy.bound for busy in found[21:]] == [False] * 4
    assert found[19].end_ns - found[1].start_ns == pytest.approx(19 * 40 * MS, rel=1e-3)


def test_clocks_that_drift_are_held_together_for_an_hour():
    device = Device(drift=50e-6)
    stamps, host, truth = run(device, [(100 * MS, 150 * MS if i % 3 == 0 else 20 * MS) for i in range(36_000)])
    host_ns, lag_ns = stamps.known()
    assert len(host_ns) <= MOST_STAMPS
    ends = {end: done for (_, end, _), (_, done) in zip(host, truth, strict=True)}
    keys = np.array(list(ends))
    nearest = keys[np.searchsorted(keys, host_ns, side="right") - 1]
    error = host_ns + lag_ns - np.array([ends[key] for key in nearest.tolist()])
    assert np.abs(error).max() < ANCHOR_EVERY_NS * 50e-6 + 20_000


def test_where_no_event_passes_nothing_is_known_and_nothing_grows():
    device = Device()
    device.work(10**15)
    stamps = Stamps(device, device.clock_ns)
    device.stuck = True
    for _ in range(2 * MOST_PENDING):
        device.now_ns += MS
        stamps.mark()
    assert len(stamps.known()[0]) == 0
    assert device.recorded < 2 * MOST_PENDING
    steps = [(0, 10, 1), (10, 30, 2)]
    assert [(b.start_ns, b.end_ns, b.steps) for b in on_device(steps, *stamps.known(), 30)] == steps


def test_a_step_without_a_stamp_of_its_own_ends_as_far_behind_as_its_neighbours():
    host_ns, lag_ns = np.array([100, 400]), np.array([50.0, 80.0])
    found = on_device([(0, 100, 1), (100, 200, 1), (200, 300, 1), (300, 400, 1)], host_ns, lag_ns, 1_000)
    assert [(b.start_ns, b.end_ns) for b in found] == [(0, 150), (150, 260), (260, 370), (370, 480)]


def test_a_call_whose_stamp_comes_at_the_next_call_lasts_until_then():
    host_ns, lag_ns = np.array([100, 200]), np.array([0.0, 0.0])
    found = on_device([(0, 10, 1), (100, 110, 1), (200, 210, 1)], host_ns, lag_ns, 1_000)
    assert [(b.start_ns, b.end_ns) for b in found] == [(0, 100), (100, 200), (200, 210)]


def test_steps_with_next_to_nothing_between_them_leave_no_hole_in_what_is_watched():
    host_ns, lag_ns = np.array([10 * MS, 30 * MS]), np.array([0.0, 0.0])
    steps = [(0, 10 * MS, 1), (10 * MS + 30_000, 20 * MS, 1), (25 * MS, 30 * MS, 1)]
    found = on_device(steps, host_ns, lag_ns, 40 * MS)
    assert [(b.start_ns, b.end_ns) for b in found] == [(0, 10 * MS), (10 * MS, 20 * MS), (25 * MS, 30 * MS)]


def test_a_call_without_a_stamp_lasts_until_the_next_one_where_the_others_do():
    starts = range(0, 1_000 * MS, 100 * MS)
    steps = [(start, start + MS, 1) for start in starts]  # the host is done in no time, and waits for the device
    host_ns = np.array([start - 1_000 for start in starts if start not in (0, 300 * MS, 400 * MS)])
    found = on_device(steps, host_ns, np.zeros(len(host_ns)), 1_000 * MS)
    for busy, after in itertools.pairwise(found):
        assert busy.end_ns == after.start_ns
        assert busy.end_ns - busy.start_ns == pytest.approx(100 * MS, abs=2_000)
