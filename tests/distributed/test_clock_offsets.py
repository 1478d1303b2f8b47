"""The offset between two clocks is found within its stated bound, whatever the road between them does."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchwatt.core.job import ClockOffset
from torchwatt.distributed import clock_offsets as clocks
from torchwatt.distributed.clock_offsets import ClockClient, ClockServer
from torchwatt.distributed.rank_records import MachineClock


class Store:
    """A store in memory whose answers take a while."""

    def __init__(self, delay_s=0.0):
        self.values, self.count, self.lock, self.delay_s = {}, 0, threading.Lock(), delay_s
        self.lost = False

    def set(self, key, value):
        if self.lost:
            raise ConnectionError("gone")
        time.sleep(self.delay_s)
        self.values[key] = value

    def get(self, key, timeout_s, every_s=0.0):
        end = time.monotonic() + timeout_s
        while not self.lost:
            if key in self.values:
                return self.values[key]
            if time.monotonic() >= end:
                return None
            time.sleep(0.0002)
        return None

    def add(self, key):
        with self.lock:
            self.count += 1
            return self.count

    def drop(self, key):
        self.values.pop(key, None)


def measured(store, offset_ns, **kinds):
    answers = ClockServer(store, "t", "theirs", clock_ns=lambda: time.monotonic_ns() + offset_ns)
    looks = ClockClient(store, "t", "ours", **kinds)
    time.sleep(0.25)
    found = looks.stop()
    answers.stop()
    return found


@pytest.mark.parametrize("offset_ns", [0, 3_600_000_000_000, -7_123_456_789])
@pytest.mark.parametrize("delay_s", [0.0, 0.004])
def test_the_offset_is_found_within_its_bound(offset_ns, delay_s, monkeypatch):
    monkeypatch.setattr(clocks, "STOP_TIMEOUT_S", 30.0)  # both ends share one process here, and the machine may be busy
    found = measured(Store(delay_s), offset_ns)
    assert len(found) >= 2  # at the start and at the end
    for look in found:
        assert abs(look.offset_ns - offset_ns) <= look.bound_ns


def test_one_machine_needs_no_look_unless_it_is_asked_for():
    store = Store()
    store.values["t/host"] = b"ours"
    looks = ClockClient(store, "t", "ours")
    time.sleep(0.05)
    assert looks.stop() == ()


def test_a_store_that_goes_away_keeps_nobody_waiting():
    store = Store()
    answers = ClockServer(store, "t", "theirs")
    looks = ClockClient(store, "t", "ours")
    time.sleep(0.15)
    store.lost = True
    begun = time.monotonic()
    looks.stop()
    answers.stop()
    assert (
        time.monotonic() - begun < clocks.STOP_TIMEOUT_S + 20
    )  # its threads would look for ever; the machine may be busy


def test_rank_0_that_never_comes_keeps_nobody_waiting(monkeypatch):
    monkeypatch.setattr(clocks, "STOP_TIMEOUT_S", 60.0)  # an end that waited would wait so long
    begun = time.monotonic()
    assert ClockClient(Store(), "t", "ours").stop() == ()
    assert time.monotonic() - begun < 20


def test_a_number_whose_owner_died_does_not_stop_the_others():
    store = Store()
    store.add("t/number")  # taken, and never asked
    assert measured(store, 5_000_000)


@settings(deadline=None)
@given(
    offset_ns=st.integers(-(10**18), 10**18), drift=st.floats(-1e-4, 1e-4), start_ns=st.integers(0, 10**15),
    t_ns=st.lists(st.integers(0, 3600 * 10**9), min_size=1, max_size=20),
)  # fmt: skip
def test_a_drifting_clock_is_straightened_between_two_looks(offset_ns, drift, start_ns, t_ns):
    hour_ns = 3600 * 10**9
    looks = (
        ClockOffset(start_ns, offset_ns, 1000),
        ClockOffset(start_ns + hour_ns, offset_ns + round(drift * hour_ns), 1000),
    )
    times = np.array(sorted(set(t_ns)), dtype=np.int64) + start_ns
    shifted = MachineClock(looks, "store").shift(times)
    exact = [t + offset_ns + round(drift * (t - start_ns)) for t in times.tolist()]
    assert max(abs(a - b) for a, b in zip(shifted.tolist(), exact, strict=True)) <= 2
