"""The account of a process: it only grows, and no joule of a device is in it twice."""

import threading
import time
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchwatt as tw
from tests.metrics.feeds import LiveFeed
from torchwatt.metrics.energy_counters import MAX_RUNS, OTHER_RUNS, EnergyCounters, MonotonicCounter
from torchwatt.session import session_registry


@pytest.fixture
def books():
    made = EnergyCounters()
    made.open()
    yield made
    made.close()


def profile(feed, **asked):
    return tw.profile(feed=feed, baseline_s=0, layers="off", **asked)


def joules(look):
    return {key.device: value for key, value in look.energy_j.items()}


def wait(seconds=0.15):
    time.sleep(seconds)


@given(st.lists(st.floats(-1e6, 1e6), max_size=30))
def test_an_account_never_goes_back_and_ends_where_its_corrections_are_paid(amounts):
    account, shown = MonotonicCounter(), []
    for amount in amounts:
        account.add("x", amount)
        shown.append(account.sums()["x"])
    assert shown == sorted(shown)
    highest = list(accumulate(accumulate(amounts), max))
    assert shown == pytest.approx([max(value, 0.0) for value in highest], abs=1e-3)


def test_what_is_booked_while_a_run_runs_ends_at_its_report(books):
    feed = LiveFeed({"gpu:0": 200.0, "cpu:0": 50.0})
    with profile(feed) as run:
        seen = []
        for _ in range(4):
            wait(0.05)
            seen.append(joules(books.current_values()).get("gpu:0", 0.0))
    assert seen == sorted(seen)
    assert seen[-1] > 0
    assert joules(books.current_values()) == pytest.approx(
        {str(x.domain): x.energy_j for x in run.report.ledgers}, rel=1e-9
    )


def test_runs_after_each_other_add_up(books):
    total_j, before = 0.0, 0.0
    for _ in range(3):
        with profile(LiveFeed({"gpu:0": 100.0})) as run:
            wait()
            books.current_values()
        total_j += run.energy_j
        now = joules(books.current_values())["gpu:0"]
        assert now > before
        before = now
    assert before == pytest.approx(total_j, rel=1e-9)


def test_a_nested_run_adds_nothing(books):
    with profile(LiveFeed({"gpu:0": 100.0}), name="outer") as outer:
        with profile(None, name="inner") as inner:
            wait()
            books.current_values()
        wait(0.05)
    assert inner.energy_j > 0
    look = books.current_values()
    assert {key.run.run for key in look.energy_j} == {"outer"}
    assert joules(look)["gpu:0"] == pytest.approx(outer.energy_j, rel=1e-9)


def test_a_nested_run_says_that_its_joules_are_anothers_too():
    with profile(LiveFeed({"gpu:0": 100.0})) as outer, profile(None) as inner:
        wait(0.05)
    codes = [[event.code for event in run.report.events] for run in (outer, inner)]
    assert ["NESTED_SESSION" in found for found in codes] == [False, True]


def test_runs_beside_each_other_book_a_device_once(books):
    def work(seconds):
        with profile(LiveFeed({"gpu:0": 100.0}), name=f"{seconds}"):
            wait(seconds)

    begun_s = time.monotonic()
    threads = [threading.Thread(target=work, args=(seconds,)) for seconds in (0.5, 0.4, 0.7)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        wait(0.05)
        look = books.current_values()
        assert sum(look.power_w.values()) == pytest.approx(100.0, rel=0.01) or not look.power_w
    lasted_s = time.monotonic() - begun_s
    found_j = sum(books.current_values().energy_j.values())
    assert 100.0 * 0.65 < found_j < 100.0 * lasted_s * 1.01  # added up, they would be 1.6 s of 100 W


def test_a_session_that_runs_already_counts_from_then_on():
    with profile(LiveFeed({"gpu:0": 100.0})):
        wait(0.4)
        late, begun_s = EnergyCounters(), time.monotonic()
        late.open()
        wait(0.1)
    asked_s = time.monotonic() - begun_s
    assert 0 < joules(late.current_values())["gpu:0"] <= 100.0 * asked_s * 1.02
    late.close()


def test_a_meter_that_says_nothing_has_no_number(books):
    with profile(LiveFeed({"cpu:0": 30.0}, silent=("gpu:0",))):
        wait()
        look = books.current_values()
        assert {key.device for key in look.energy_j} == {key.device for key in look.power_w} == {"cpu:0"}
    look = books.current_values()
    assert set(joules(look)) == {"cpu:0"}
    assert (look.power_w, look.sessions) == ({}, 0)


def test_a_recording_that_is_played_back_is_no_power_of_now(books):
    class Played(LiveFeed):
        peek = None

    with profile(Played({"gpu:0": 100.0})) as run:
        wait()
        assert books.current_values().sessions == 0
    assert run.energy_j > 0
    assert books.current_values().energy_j == {}


def test_grams_follow_the_runs_factor_and_joules_without_one_are_counted(books):
    with profile(LiveFeed({"gpu:0": 100.0}), name="priced", intensity_g_per_kwh=50.0) as run:
        wait()
        books.current_values()
    with profile(LiveFeed({"gpu:0": 100.0}), name="not") as other:
        wait()
    look = books.current_values()
    assert {key.run: g for key, g in look.location_g.items()} == pytest.approx({"priced": run.carbon_g}, rel=1e-9)
    assert {key.run: j for key, j in look.unpriced_j.items()} == pytest.approx({"not": other.energy_j}, rel=0.3)


def test_names_of_runs_are_bounded(books):
    class Session:
        nested, running, start_ns = False, False, 0
        feed = LiveFeed({})

        def __init__(self, name):
            self.options = type("Asked", (), {"name": name, "project": "p"})

    for number in range(MAX_RUNS + 50):
        books.on_begin(Session(f"run at {number}"))
    names = {one.key.run for one in books._watched}
    assert len(names) == MAX_RUNS + 1
    assert OTHER_RUNS in names


def test_a_listener_that_fails_costs_no_run():
    class Broken:
        def on_begin(self, session):
            raise ValueError("mine")

        def on_end(self, session, recording):
            raise ValueError("mine")

    broken = Broken()
    session_registry.add_listener(broken)
    try:
        with pytest.warns(RuntimeWarning, match="live metrics"), profile(LiveFeed({"gpu:0": 100.0})) as run:
            wait(0.05)
    finally:
        session_registry.remove_listener(broken)
    assert run.energy_j > 0
    assert "METRICS_LOST" in {event.code for event in run.report.events}


def test_nothing_looks_at_the_meters_unless_asked():
    feed = LiveFeed({"gpu:0": 100.0})
    with profile(feed):
        wait(0.05)
    assert feed.peeks == 0
