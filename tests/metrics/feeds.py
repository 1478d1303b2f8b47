"""Live meters that a test holds in its hand: power is constant, and time is the real one."""

import time

from torchwatt.core.meter import Channel, Meter, Recording, series_from_readings
from torchwatt.core.terms import Domain

STEP_NS = 20_000_000


def meter(name, sensor="nvml_power", known="measured"):
    domain = Domain.parse(name)
    channel = Channel(domain, "power", "power", "W", 1.0, STEP_NS, sensor)
    return Meter(domain, (channel,), known, "device", f"model of {name}")


class LiveFeed:
    """Says `watts` of each domain, every 20 ms from its start on; `silent` ones say nothing."""

    def __init__(self, watts, silent=()):
        self.watts = watts
        self.meters = tuple(meter(name) for name in (*watts, *silent))
        self.unavailable = ()
        self.begun_ns = None
        self.peeks = 0

    def start(self):
        self.begun_ns = time.monotonic_ns()

    def read_now(self):
        pass

    wait_for_update = read_now

    def peek(self, since_ns):
        self.peeks += 1
        return self.snapshot(since_ns)

    def snapshot(self, since_ns=0):
        first = max(self.begun_ns - 10 * STEP_NS, since_ns)
        ticks = range(first // STEP_NS + 1, time.monotonic_ns() // STEP_NS + 1)
        found = (
            series_from_readings(m.channels[0], [(tick * STEP_NS, self.watts[str(m.domain)]) for tick in ticks])
            for m in self.meters
            if str(m.domain) in self.watts
        )
        return Recording(self.meters, tuple(found))

    def stop(self):
        time.sleep(2 * STEP_NS / 1e9)
        return self.snapshot()
