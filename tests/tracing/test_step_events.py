"""When a device was done: a simulated queue with a clock of its own against what the stamps say."""

import itertools
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import examples
from torchwatt.tracing import step_events as stamped_module
from torchwatt.tracing.overhead_budget import OverheadBudget
from torchwatt.tracing.step_events import (
    ANCHOR_EVERY_NS,
    JOINED_NS,
    MOST_PENDING,
    MOST_STAMPS,
    NO_LAG,
    DeviceLag,
    StepEvents,
    device_steps,
    nonempty_steps,
)

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

    def record(self, *, separate=False):
        self.recorded += 1
        return self.now_ns if separate and not self.stuck else max(self.free_ns, self.now_ns)

    def passed(self, event):
        return event <= self.now_ns

    def ns_between(self, first, second):
        return float(np.float32((second - first) * (1 + self.drift) / 1e6)) * 1e6


def run(device, steps, *, kind="step", stamped=lambda i: True):
    """Do steps of (host's ns, device's ns); return the stamps, the host's steps, and the truth."""
    stamps, host, truth = StepEvents(device, device.clock_ns), [], []
    for i, (host_ns, device_ns) in enumerate(steps):
        start, began = device.now_ns, max(device.free_ns, device.now_ns)
        device.work(device_ns)
        device.now_ns += host_ns
        host.append((start, device.now_ns, 1))
        truth.append((began, max(device.free_ns, device.now_ns)))
        if stamped(i):
            stamps.mark(kind)
    device.now_ns = max(device.now_ns, device.free_ns)
    stamps.settle()
    return stamps, host, truth


@examples(20)
@given(
    st.lists(st.tuples(st.integers(100_000, 80 * MS), st.integers(0, 80 * MS)), min_size=2, max_size=60),
    st.floats(-50e-6, 50e-6),
)
def test_a_device_s_steps_are_found_on_the_host_s_clock(steps, drift):
    device = Device(drift)
    stamps, host, truth = run(device, steps)
    found = device_steps(host, stamps.known(), device.now_ns)
    length_s = (device.now_ns - 1_000 * MS) / 1e9
    allowed = 20_000 + 1e9 * abs(drift) * length_s  # anchors take some microseconds; beyond the last, clocks drift
    for busy, (began, ended) in zip(found, truth, strict=True):
        assert abs(busy.end_ns - ended) <= allowed
        assert abs(busy.start_ns - began) <= allowed + JOINED_NS * (busy.start_ns < began)
    assert all(a.end_ns <= b.start_ns for a, b in itertools.pairwise(found))


def test_a_host_that_runs_ahead_leaves_the_device_bound_and_one_that_waits_does_not():
    device = Device()
    stamps, host, _ = run(device, [(2 * MS, 40 * MS)] * 20 + [(2_000 * MS, 40 * MS)] * 5)
    found = device_steps(host, stamps.known(), device.now_ns)
    assert [busy.bound for busy in found[1:20]] == [True] * 19
    assert [busy.bound for busy in found[21:]] == [False] * 4
    assert found[19].end_ns - found[1].start_ns == pytest.approx(19 * 40 * MS, rel=1e-3)


def test_clocks_that_drift_are_held_together_for_an_hour():
    device = Device(drift=50e-6)
    stamps, host, truth = run(device, [(100 * MS, 150 * MS if i % 3 == 0 else 20 * MS) for i in range(36_000)])
    known = stamps.known()
    assert len(known.host_ns) <= MOST_STAMPS
    ends = {end: done for (_, end, _), (_, done) in zip(host, truth, strict=True)}
    keys = np.array(list(ends))
    nearest = keys[np.searchsorted(keys, known.host_ns, side="right") - 1]
    error = known.host_ns + known.lag_ns - np.array([ends[key] for key in nearest.tolist()])
    assert np.abs(error).max() < ANCHOR_EVERY_NS * 50e-6 + 20_000


def test_where_no_event_passes_nothing_is_known_and_nothing_grows():
    device = Device()
    device.work(10**15)
    stamps = StepEvents(device, device.clock_ns)
    device.stuck = True
    for _ in range(2 * MOST_PENDING):
        device.now_ns += MS
        stamps.mark()
    assert stamps.known() is NO_LAG
    assert device.recorded < 2 * MOST_PENDING
    steps = [(0, 10, 1), (10, 30, 2)]
    assert [(b.start_ns, b.end_ns, b.steps) for b in device_steps(steps, stamps.known(), 30)] == steps


def stamped(*pairs, call=False):
    host_ns, lag_ns = np.array(pairs).T
    return DeviceLag(host_ns.astype(np.int64), lag_ns.astype(np.float64), np.full(len(pairs), call))


def bounds(found):
    return [(busy.start_ns, busy.end_ns) for busy in found]


def test_a_step_without_a_stamp_of_its_own_ends_as_far_behind_as_its_neighbours():
    found = device_steps(
        [(0, 100, 1), (100, 200, 1), (200, 300, 1), (300, 400, 1)], stamped((100, 50), (400, 80)), 1_000
    )
    assert bounds(found) == [(0, 150), (150, 260), (260, 370), (370, 480)]


def test_the_stamp_of_a_call_is_no_end_of_a_step_that_has_none():
    # The evaluation's calls are stamped; the last step of training before it was left out.
    steps = [(0, 10 * MS, 1), (10 * MS, 20 * MS, 1), (60_000 * MS, 60_010 * MS, 1)]
    known = DeviceLag(np.array([10 * MS, 5_000 * MS, 60_010 * MS]), np.zeros(3), np.array([False, True, False]))
    assert bounds(device_steps(steps, known, 10**12))[1] == (10 * MS, 20 * MS)
    training = stamped((10 * MS + 30_000, 0), (20 * MS + 30_000, 0))  # stamped late, the next step begins at once
    assert (
        bounds(device_steps([*steps[:2], (20 * MS + 40_000, 30 * MS, 1), steps[2]], training, 10**12))[2][1] == 30 * MS
    )


def test_a_call_ends_with_its_work_and_not_when_the_next_one_comes():
    device, calls = Device(), []
    stamps = StepEvents(device, device.clock_ns)
    for _ in range(6):  # a server: 45 ms of work a second, and the host is back in 1 ms
        start = device.now_ns
        device.work(45 * MS)
        device.now_ns += MS
        calls.append((start, device.now_ns, 1))
        stamps.mark("call")
        device.now_ns += 999 * MS
    found = device_steps(calls, stamps.known(), device.now_ns, calls=True)
    for busy, (start, _, _) in zip(found[:-1], calls, strict=False):  # the last one's event was not looked at
        assert busy.end_ns - start == pytest.approx(45 * MS, abs=50_000)


def test_steps_with_next_to_nothing_between_them_leave_no_hole_in_what_is_watched():
    steps = [(0, 10 * MS, 1), (10 * MS + 30_000, 20 * MS, 1), (25 * MS, 30 * MS, 1)]
    found = device_steps(steps, stamped((10 * MS, 0), (30 * MS, 0)), 40 * MS)
    assert bounds(found) == [(0, 10 * MS), (10 * MS, 20 * MS), (25 * MS, 30 * MS)]


def test_a_moment_at_which_the_device_was_waited_for_ends_a_lag():
    # Few stamps, a deep queue, and a window in between that waits: the lag is 0 there.
    device = Device()
    stamps, host, truth = run(device, [(MS, 8 * MS)] * 25, stamped=lambda i: i % 12 == 0)
    stamps.still()
    more, host_2, truth_2 = [], [], []
    for _ in range(3):
        start = device.now_ns
        device.work(8 * MS)
        device.now_ns = device.free_ns  # recorded one by one
        host_2.append((start, device.now_ns, 1))
        truth_2.append((start, device.now_ns))
        more.append(stamps.mark())
    stamps.still()
    found = device_steps([*host, *host_2], stamps.known(), device.now_ns)
    for busy, (began, ended) in zip(found[-3:], truth_2, strict=True):
        assert busy.end_ns - busy.start_ns == pytest.approx(ended - began, abs=50_000)
    assert truth[-1][1] == pytest.approx(found[24].end_ns, abs=50_000)


def test_no_step_is_lost_where_several_end_together():
    steps = [(0, 10, 1), (10, 20, 2), (20, 30, 1), (30, 40, 3)]
    found = device_steps(steps, stamped((10, 100), (20, 1_000)), 120)
    kept = nonempty_steps(found)
    assert all(start < end <= 120 for start, end, _ in kept)
    assert sum(n for *_, n in kept) == 7


def test_threads_that_look_ask_the_device_nothing_and_see_whole_entries():
    device = Device()
    stamps, failed, done = StepEvents(device, device.clock_ns), [], threading.Event()
    asked = []
    passed = device.passed
    device.passed = lambda event: asked.append(threading.get_ident()) or passed(event)

    def look():
        while not done.is_set():
            known = stamps.known()
            if len({len(known.host_ns), len(known.lag_ns), len(known.call)}) != 1:
                failed.append(known)

    looking = [threading.Thread(target=look) for _ in range(2)]
    for thread in looking:
        thread.start()
    for _ in range(3_000):
        device.work(MS)
        device.now_ns += 2 * MS
        stamps.mark()
    done.set()
    for thread in looking:
        thread.join()
    assert not failed
    assert set(asked) == {threading.get_ident()}


class Torch:
    """What `StepClocks` asks of torch.cuda."""

    def __init__(self, current=0):
        self.current = current
        self.cuda = SimpleNamespace(current_device=lambda: self.current, device=lambda index: nullcontext())


@pytest.fixture
def clocks(monkeypatch):
    device = Device()
    monkeypatch.setattr(stamped_module, "torch", Torch())
    monkeypatch.setattr(stamped_module, "CudaEvents", lambda index: device)
    monkeypatch.setattr(stamped_module, "devices_in_use", lambda: (0,))
    return stamped_module.StepClocks(device.clock_ns)


def test_a_device_that_the_program_has_not_set_up_is_left_alone(clocks, monkeypatch):
    monkeypatch.setattr(stamped_module, "devices_in_use", lambda: (3,))
    clocks.ended("thread", OverheadBudget(0.01, 0), 1e7)
    assert clocks._stamps == {}
    assert clocks.only() is NO_LAG


def test_one_thread_stamps(clocks):
    budget = OverheadBudget(1.0, 0)
    for owner in ("first", "second", "first"):
        clocks.ended(owner, budget, 0.0)
    assert len(clocks._stamps[0]._pending) + len(clocks._stamps[0]._host) == 2


def test_what_the_first_stamp_costs_is_not_what_stamps_cost(clocks, monkeypatch):
    costs = iter([0, 3_000_000, *itertools.chain(*((0, 30_000) for _ in range(400)))])
    monkeypatch.setattr(stamped_module, "own_ns", lambda: next(costs))
    budget = OverheadBudget(0.01, 0)
    for _ in range(200):
        clocks.ended("thread", budget, 10 * MS)
    stamps = clocks._stamps[0]
    assert len(stamps._pending) + len(stamps._host) >= 60  # 30 us of the 10 us a step that a tenth of the budget allows
    assert budget.spent_ns["fixed"] >= 3_000_000


def test_a_device_that_failed_keeps_what_was_known_of_it(clocks):
    budget = OverheadBudget(1.0, 0)
    for _ in range(3):
        clocks.ended("thread", budget, 0.0)
    stamps = clocks._stamps[0]
    before = len(stamps.known().host_ns)

    def failed(event):
        raise RuntimeError("CUDA error: device-side assert triggered")

    stamps._events.passed = failed
    clocks.settle()
    assert len(clocks.known("gpu:0").host_ns) == before > 0
