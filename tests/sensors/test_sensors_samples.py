"""Following a driver's ring: each sample once, in order, at its own instant, whatever the driver and the clocks do."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.core.errors import SensorError
from torchwatt.sensors.gpu_facts import DriverRing, measure_ring, ring_period_ns
from torchwatt.sensors.readers.sample_follower import SampleFollower, matching_clock

MS = 1_000_000
S = 1000 * MS
UNIX_NS = 1_800_000_000 * S


class Driver:
    """A ring that samples every `gap_ms`, keeps 120, and stamps with the wall clock; samples are numbered."""

    def __init__(self, *, gaps_ms=(20,), depth=120, name="CLOCK_REALTIME"):
        self.now_ns = 50 * S
        self.ahead_ns = UNIX_NS
        self.gaps_ms = gaps_ms
        self.depth = depth
        self.taken = []  # (stamp in us, number), the true monotonic instant of each
        self.true_ns = {}
        self.next_ns = self.now_ns
        self.options = []
        self.answer = lambda samples: samples
        self.follower = SampleFollower({name: lambda: self.now_ns + self.ahead_ns}, lambda: self.now_ns)

    def wait(self, ms):
        until_ns = self.now_ns + round(ms * MS)
        while self.next_ns <= until_ns:
            number = len(self.true_ns)
            self.true_ns[number] = self.next_ns
            self.taken.append(((self.next_ns + self.ahead_ns) // 1000, float(number)))
            self.next_ns += self.gaps_ms[number % len(self.gaps_ms)] * MS
        self.now_ns = until_ns

    def ask(self, since_us):
        self.options.append(since_us)
        return self.answer([sample for sample in self.taken[-self.depth :] if sample[0] > since_us])

    def take(self):
        return self.follower.take(self.ask)

    def truth(self, first_ns):
        return [(t_ns, float(n)) for n, t_ns in self.true_ns.items() if first_ns < t_ns <= self.now_ns]


def started(**settings):
    driver = Driver(**settings)
    driver.wait(3000)
    assert driver.take() == []
    return driver


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=12), st.lists(st.integers(7, 45), min_size=1, max_size=9))
def test_every_sample_since_the_start_comes_once_in_order_at_its_instant(waits_ms, gaps_ms):
    driver = started(gaps_ms=tuple(gaps_ms), depth=400)
    start_ns, found = driver.now_ns, []
    for wait in waits_ms:
        driver.wait(wait)
        found += driver.take()
    assert found == driver.truth(start_ns)


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_a_driver_that_repeats_itself_and_forgets_the_order_changes_nothing(waits_ms, random):
    driver = started()
    start_ns, found = driver.now_ns, []

    def whole(_):  # whatever was asked for: all that there is, some of it twice, in any order
        samples = driver.taken[-driver.depth :] * 2
        return random.sample(samples, len(samples))

    driver.answer = whole
    for wait in waits_ms:
        driver.wait(wait)
        found += driver.take()
    assert found == driver.truth(start_ns)


def test_only_what_is_newer_is_asked_for():
    driver = started()
    driver.wait(1000)
    driver.take()
    driver.wait(1000)
    driver.take()
    assert driver.options[0] == 0
    assert driver.options[2] == driver.taken[-51][0]


def test_a_sampler_that_slept_longer_than_the_ring_reaches_misses_readings_and_no_more():
    driver = started()
    start_ns = driver.now_ns
    driver.wait(1000)
    found = driver.take()
    driver.wait(10_000)
    found += driver.take()
    driver.wait(1000)
    found += driver.take()
    truth = driver.truth(start_ns)
    assert found == [*truth[:50], *truth[-50 - 120 :]]


STEPS_MS = st.sampled_from([0, 0, 15, -15, 200, -200, 1500, -1500, 3_600_000, -3_600_000])


@given(st.lists(st.tuples(st.integers(1, 1500), STEPS_MS), min_size=1, max_size=10))
def test_a_wall_clock_that_is_set_costs_readings_and_never_misdates_one(turns):
    driver = started()
    found = []
    for wait_ms, step_ms in turns:
        driver.wait(wait_ms)
        driver.ahead_ns += step_ms * MS
        driver.wait(400)
        found += driver.take()
    assert [t_ns for t_ns, _ in found] == [driver.true_ns[int(number)] for _, number in found]
    assert [number for _, number in found] == sorted({number for _, number in found})
    driver.wait(6000)
    driver.take()
    driver.wait(1000)
    assert len(driver.take()) == 50  # it goes on


def test_a_clock_that_is_steered_gives_each_sample_once():
    driver = started()
    start_ns, found = driver.now_ns, []
    for wait in range(200):
        driver.ahead_ns += (-1) ** wait * 500_000
        driver.wait(333)
        found += driver.take()
    truth = driver.truth(start_ns)
    assert [number for _, number in found] == [number for _, number in truth]
    assert max(abs(a - b) for (a, _), (b, _) in zip(found, truth, strict=True)) <= 500_000


def test_samples_from_the_future_are_left_out():
    driver = started()
    driver.wait(1000)
    driver.answer = lambda samples: [*samples, (samples[-1][0] + 10**9, -1.0)]
    assert len(driver.take()) == 50
    driver.wait(1000)
    assert len(driver.take()) == 50


def test_a_ring_that_is_empty_at_first_is_followed_once_it_is_not():
    driver = Driver()
    assert driver.take() == []
    driver.wait(500)
    assert driver.take() == []  # the clock is known now
    driver.wait(100)
    assert len(driver.take()) == 5


def test_a_ring_that_stands_still_says_nothing_and_is_no_error():
    driver = started()
    driver.next_ns = 10**18
    for _ in range(5):
        driver.wait(1000)
        assert driver.take() == []


@pytest.mark.parametrize("off_ns", [10 * S, -10 * S])
def test_a_ring_on_no_known_clock_is_refused(off_ns):
    driver = Driver()
    driver.wait(3000)
    driver.taken = [(us + off_ns // 1000, n) for us, n in driver.taken]
    with pytest.raises(SensorError, match="no known clock") as caught:
        driver.take()
    assert caught.value.code == "NOT_SUPPORTED"


def test_the_clock_is_seen_from_the_newest_sample():
    clocks = {"CLOCK_REALTIME": lambda: UNIX_NS, "CLOCK_BOOTTIME": lambda: 900 * S}
    assert matching_clock((UNIX_NS - 16 * MS) // 1000, clocks) == "CLOCK_REALTIME"
    assert matching_clock((900 * S - 16 * MS) // 1000, clocks) == "CLOCK_BOOTTIME"
    assert matching_clock(5 * S // 1000, clocks) is None


def ring(newest_ns, gap_ms=20, count=120):
    return [((newest_ns - i * gap_ms * MS) // 1000, 1.0) for i in range(count)]


def test_a_ring_is_used_if_it_lives_is_fine_and_holds_enough():
    now_ns = time.time_ns() - 16 * MS
    assert measure_ring(ring(now_ns)) == DriverRing(20 * MS, 2380 * MS)
    assert measure_ring(ring(now_ns) * 2) == DriverRing(20 * MS, 2380 * MS)
    for samples, why in (
        (ring(now_ns, count=4), "holds 4 samples"),
        ([], "holds 0 samples"),
        (ring(now_ns - 10 * S), "no new samples"),
        (ring(now_ns, gap_ms=100), "100 ms apart"),
    ):
        with pytest.raises(SensorError, match=why):
            measure_ring(samples)


@pytest.mark.parametrize(
    ("depth_s", "call_ms", "devices", "expected_ms"), [(2.4, 0.4, 1, 1000), (1.0, 0.4, 1, 500), (2.4, 1.4, 8, 1120)]
)
def test_a_ring_is_read_once_a_second_or_before_half_of_it_is_new(depth_s, call_ms, devices, expected_ms):
    assert ring_period_ns(DriverRing(20 * MS, round(depth_s * S)), call_ms / 1e3, devices) == pytest.approx(
        expected_ms * MS, abs=MS
    )


def test_a_ring_whose_reads_would_cost_more_than_one_percent_is_left_alone():
    with pytest.raises(SensorError, match="a read takes 20 ms"):
        ring_period_ns(DriverRing(20 * MS, round(2.4 * S)), 0.020, 1)
