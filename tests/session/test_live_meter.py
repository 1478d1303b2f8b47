"""Live joules are those of the readings, however long a run is added up beat by beat."""

from types import SimpleNamespace

import numpy as np
import pytest

from torchwatt.core.meter import Channel, Meter, Recording, Series
from torchwatt.core.terms import Domain
from torchwatt.metrics import energy_counters
from torchwatt.session import live_meter

WATTS, PUBLISHED_NS = 450.0, 100_000_000  # as NVML's energy counter does
START_NS, QUIET_NS = 1_000_000_000_000, 300_000_000
CPU = Domain.parse("cpu:0")
CHANNEL = Channel(CPU, "energy", "counter", "mJ", 1e-3, 20_000_000, "rapl")
METER = Meter(CPU, (CHANNEL,), "measured", "device", "a counter that publishes ten times a second")


class CounterFeed:
    """A steady power behind a counter, polled by a process which the machine lets wait; a test moves its clock."""

    meters = (METER,)

    def __init__(self, seed):
        waits_ns = np.random.default_rng(seed).choice([8e6, 20e6, 45e6, 90e6, 130e6], size=20_000)
        self.now_ns = START_NS
        self.polls_ns = START_NS - QUIET_NS + np.cumsum(waits_ns.astype(np.int64))

    def snapshot(self, since_ns=0):
        seen = self.polls_ns[(self.polls_ns >= since_ns) & (self.polls_ns <= self.now_ns)]
        published = np.floor(seen / PUBLISHED_NS) * PUBLISHED_NS * WATTS / 1e6
        return Recording(self.meters, (Series(CHANNEL, seen, published, np.zeros_like(seen)),))

    peek = snapshot


@pytest.fixture
def a_session(monkeypatch):
    """Return a maker of a running session whose clock is its feed's."""

    def make(seed):
        feed = CounterFeed(seed)
        clock = SimpleNamespace(monotonic_ns=lambda: feed.now_ns, time_ns=lambda: feed.now_ns)
        monkeypatch.setattr(live_meter, "time", clock)
        monkeypatch.setattr(energy_counters, "time", clock)
        asked = SimpleNamespace(name="run", project="", carbon=SimpleNamespace(location=None))
        return SimpleNamespace(
            feed=feed, start_ns=START_NS, options=asked, running=True, nested=False, ended_ns=None, report=None
        )

    return make


def by_pulse(session):
    made = live_meter.LiveMeter(session)

    def read_j():
        made.update()
        return made.energy_j.get("cpu:0", 0.0)

    return read_j


def by_books(session):
    made = energy_counters.EnergyCounters()
    made.on_begin(session)
    return lambda: sum(made.current_values().energy_j.values())


@pytest.mark.parametrize("read_by", [by_pulse, by_books])
@pytest.mark.parametrize("seed", range(4))
def test_live_joules_do_not_drift_from_the_readings(a_session, read_by, seed):
    session = a_session(seed)
    read_j = read_by(session)
    shown = []
    for _ in range(200):  # a minute
        session.feed.now_ns += 300_000_000
        shown.append(read_j())
        true_j = WATTS * (session.feed.now_ns - START_NS) / 1e9
        # The last poll is up to 130 ms old and what it read up to 100 ms older; going on from there may be as far off.
        assert abs(shown[-1] - true_j) < 0.25 * WATTS
    assert shown == sorted(shown)
