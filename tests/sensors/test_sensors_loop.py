import math
import mmap
import threading
from random import Random

import numpy as np
import pytest

from torchwatt.core.errors import SensorError
from torchwatt.core.meter import Channel, series_from_readings
from torchwatt.core.terms import Domain
from torchwatt.sensors import recording_builder
from torchwatt.sensors.sample_buffer import FAILING_NS, MISSED, PERIOD_NS, READS, ROUNDS, SampleBuffer
from torchwatt.sensors.source_loop import PolledChannel, SourceLoop

MS = 1_000_000
END_NS = 10_000 * MS


class World:
    """A clock that moves only by waiting and reading, a reader that does as told, and the loop between them."""

    def __init__(self, monkeypatch, read, *, keys=("cpu:0/energy",), period_ns=10 * MS, capacity=4096):
        self.now_ns = 1000 * MS
        self.start_ns = self.now_ns
        self.read_fn = read
        self.closed = 0
        self.opened = 0
        size = SampleBuffer.size(1, [capacity] * len(keys))
        self.board = SampleBuffer(mmap.mmap(-1, size), 1, [capacity] * len(keys))
        for ring in self.board.rings:
            ring.put(PERIOD_NS, period_ns)
        taps = [PolledChannel(key, ring) for key, ring in zip(keys, self.board.rings, strict=True)]
        monkeypatch.setattr("torchwatt.sensors.source_loop.open_reader", self.open)
        self.loop = SourceLoop(
            self.board, 0, {"kind": "fake"}, taps, stop=self, random=Random(3), clock_ns=lambda: self.now_ns
        )

    def open(self, spec):
        self.opened += 1
        return self

    def read(self, key):
        self.now_ns += MS // 10
        return self.read_fn(self, key)

    def close(self):
        self.closed += 1

    def wait(self, seconds):
        self.now_ns += max(round(seconds * 1e9), 0)
        return self.is_set()

    def is_set(self):
        return self.now_ns - self.start_ns >= END_NS

    def run(self):
        self.loop.run()
        return [note.code for note in self.board.notes()]


def test_a_quiet_run_reads_every_period_and_misses_nothing(monkeypatch):
    world = World(monkeypatch, lambda w, key: float(w.now_ns))
    assert world.run() == []
    ring = world.board.rings[0]
    assert ring.word(READS) == pytest.approx(END_NS / (10 * MS), abs=2)
    assert ring.word(MISSED) == 0
    assert world.board.word(ROUNDS) == 1
    assert (world.opened, world.closed) == (1, 1)
    t_ns = recording_builder.make_series(Channel(Domain("cpu", 0), "energy", "counter", "J", 1.0, 1, "rapl"), ring).t_ns
    gaps = t_ns[1:] - t_ns[:-1]
    assert gaps.min() >= 0.2 * 10 * MS - MS
    assert gaps.max() <= 1.8 * 10 * MS + MS
    assert gaps.std() > 2 * MS  # the jitter is really there


def test_slow_reads_are_missed_ticks_not_a_backlog(monkeypatch):
    def slow(world, key):
        world.now_ns += 35 * MS
        return 1.0

    world = World(monkeypatch, slow)
    world.run()
    ring = world.board.rings[0]
    assert ring.word(READS) + ring.word(MISSED) == pytest.approx(END_NS / (10 * MS), abs=5)
    assert ring.word(MISSED) > ring.word(READS)


def test_one_long_read_is_a_hang_and_a_gap_for_the_others(monkeypatch):
    def read(world, key):
        if key == "gpu:0/power" and 3000 * MS < world.now_ns < 3020 * MS:
            world.now_ns += 2000 * MS
        return 1.0

    world = World(monkeypatch, read, keys=("gpu:0/energy", "gpu:0/power"))
    codes = world.run()
    assert "SENSOR_HANG" in codes
    assert "SAMPLE_GAP" in codes
    assert all(190 <= ring.word(MISSED) <= 205 for ring in world.board.rings)


def test_a_failing_channel_is_retried_each_second_and_its_return_is_told(monkeypatch):
    tries = []

    def read(world, key):
        if key == "gpu:0/power" and 3000 * MS < world.now_ns < 5500 * MS:
            tries.append(world.now_ns)
            raise SensorError("gpu:0/power: lost", code="SENSOR_LOST")
        return 1.0

    world = World(monkeypatch, read, keys=("gpu:0/energy", "gpu:0/power"))
    codes = world.run()
    assert codes == ["SENSOR_LOST", "SENSOR_BACK"]
    assert len(tries) == 3
    assert world.board.notes()[0].count == 3
    energy, power = world.board.rings
    assert energy.word(READS) > power.word(READS) + 200
    assert power.word(FAILING_NS) == 0


def test_any_other_exception_is_an_event_too_and_the_loop_goes_on(monkeypatch):
    def read(world, key):
        if world.now_ns < 2000 * MS:
            raise RuntimeError("a binding broke")
        return 1.0

    world = World(monkeypatch, read)
    assert world.run() == ["SENSOR_ERROR", "SENSOR_BACK"]
    assert world.board.rings[0].word(READS) > 700


def test_a_meter_that_never_answers_stays_failing(monkeypatch):
    def read(world, key):
        raise SensorError("gone", code="SENSOR_LOST")

    world = World(monkeypatch, read)
    assert world.run() == ["SENSOR_LOST"]
    ring = world.board.rings[0]
    assert ring.word(FAILING_NS) > 0
    found = recording_builder.make_series(Channel(Domain("cpu", 0), "energy", "counter", "J", 1.0, 1, "rapl"), ring)
    (lost,) = recording_builder.lost_domains([found], {"cpu:0/energy": ring}, world.board.notes())
    assert lost.domain == "cpu:0"
    assert "gone" in lost.reason


def test_zero_watts_are_noted_and_kept_and_the_sensor_is_polled_on(monkeypatch):
    def read(world, key):
        if 3000 * MS < world.now_ns < 4000 * MS:
            raise SensorError("0 W", code="ZERO_READING")
        return 1.0

    world = World(monkeypatch, read)
    assert world.run() == ["ZERO_READING"]
    assert world.board.notes()[0].count == pytest.approx(100, abs=4)
    raw = np.frombuffer(world.board.rings[0].read()[1], np.float64)
    assert (raw == 1.0).sum() == pytest.approx(900, abs=4)
    assert (raw == 0.0).sum() == world.board.notes()[0].count  # what is no reading is nobody's joules: attribution


def test_nothing_to_say_is_not_recorded_and_no_error(monkeypatch):
    world = World(monkeypatch, lambda w, key: math.nan)
    assert world.run() == []
    assert world.board.rings[0].word(READS) == 0


def test_a_full_ring_slows_its_channel_and_says_so(monkeypatch):
    world = World(monkeypatch, lambda w, key: 1.0, keys=("cpu:0/energy", "dram:0/energy"), capacity=64)
    assert world.run() == ["SAMPLER_THINNED", "SAMPLER_THINNED"]
    assert all(320 * MS >= ring.word(PERIOD_NS) > 10 * MS for ring in world.board.rings)


def test_notes_of_one_domain_become_one_event_with_its_channels():
    board = SampleBuffer(mmap.mmap(-1, SampleBuffer.size(0, [])), 0, [])
    board.note(5 * MS, "warning", "SENSOR_LOST", "gpu:0/energy", "GPU is lost")
    board.note(6 * MS, "warning", "SENSOR_LOST", "gpu:0/power", "GPU is lost")
    board.note(1005 * MS, "warning", "SENSOR_LOST", "gpu:0/energy", "GPU is lost")
    (event,) = recording_builder.note_events(board.notes())
    assert (event.t_ns, event.severity, event.code, event.subject) == (5 * MS, "warning", "SENSOR_LOST", "gpu:0")
    assert event.message == "gpu:0/energy: GPU is lost (2 times, the last 1 s after the first; channels energy, power)"


def test_a_step_of_the_wall_clock_is_seen_and_its_drift_is_not():
    pairs = [(0, 10), (1000 * MS, 1000 * MS + 10), (2000 * MS, 1940 * MS), (3000 * MS, 2941 * MS)]
    (event,) = recording_builder.clock_step_events(pairs)
    assert (event.code, event.t_ns) == ("CLOCK_STEP", 2000 * MS)
    assert "-0.060 s" in event.message


def test_throttling_is_told_once_and_idle_is_no_throttling():
    channel = Channel(Domain("gpu", 0), "throttle", "gauge", "1", 1.0, 1, "nvml_throttle")
    (event,) = recording_builder.throttling_events([series_from_readings(channel, [(1, 1.0), (2, 4.0), (3, 64.0)])])
    assert (event.code, event.subject, event.t_ns) == ("THROTTLED", "gpu:0", 2)
    assert "2 of 3" in event.message
    assert "power cap, thermal" in event.message
    assert recording_builder.throttling_events([series_from_readings(channel, [(1, 1.0), (2, 2.0)])]) == ()


def test_the_update_period_is_seen_from_changes():
    channel = Channel(Domain("gpu", 0), "energy", "counter", "J", 1.0, 1, "nvml_energy_counter")
    steps = series_from_readings(channel, [(i * 20 * MS, float(i // 5)) for i in range(100)])
    assert recording_builder.update_period_ns(steps) == 100 * MS
    assert recording_builder.update_period_ns(series_from_readings(channel, [(0, 1.0), (1, 1.0)])) is None
    assert recording_builder.update_period_ns(series_from_readings(channel, [])) is None


def test_stop_ends_the_wait(monkeypatch):
    stop = threading.Event()
    size = SampleBuffer.size(1, [8])
    board = SampleBuffer(mmap.mmap(-1, size), 1, [8])
    board.rings[0].put(PERIOD_NS, 3_600_000 * MS)

    class Still:
        def read(self, key):
            return 1.0

        def close(self):
            pass

    monkeypatch.setattr("torchwatt.sensors.source_loop.open_reader", lambda spec: Still())
    thread = threading.Thread(target=SourceLoop(board, 0, {}, [PolledChannel("a/b", board.rings[0])], stop=stop).run)
    thread.start()
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize(("publish_ms", "period_ms"), [(1, 20), (25, 10)])
def test_a_counter_with_news_at_every_look_is_looked_at_half_as_often(monkeypatch, publish_ms, period_ms):
    world = World(monkeypatch, lambda w, key: float(w.now_ns // (publish_ms * MS)))
    for tap in world.loop._taps:
        tap.calm_ns = 20 * MS
    assert world.run() == []
    ring = world.board.rings[0]
    assert ring.word(PERIOD_NS) == period_ms * MS
    assert ring.word(READS) == pytest.approx(END_NS / (period_ms * MS), rel=0.15)
    assert ring.word(MISSED) == 0


def follow(world, *, gap_ns=20 * MS):
    """Let the world's reader answer as a driver with a ring of samples does."""
    world.told_ns = world.now_ns

    def take(key):
        world.now_ns += MS // 10
        due = range(world.told_ns + gap_ns, world.now_ns + 1, gap_ns)
        world.told_ns = due[-1] if due else world.told_ns
        return [(t_ns, float(t_ns)) for t_ns in due]

    world.take = take
    world.loop._taps[0].read_ns = 1000 * MS
    world.loop.follows = True
    return world.board.rings[0]


def test_a_drivers_ring_is_read_once_a_second_and_once_more_at_the_end(monkeypatch):
    looks = []
    world = World(monkeypatch, lambda w, key: 1.0, period_ns=20 * MS)
    ring = follow(world)
    take = world.take
    world.take = lambda key: looks.append(world.now_ns) or take(key)
    assert world.run() == []
    t_ns, raw, late_ns = recording_builder._columns(ring, 0)
    assert list(t_ns) == list(raw) == list(range(world.start_ns + 20 * MS, world.now_ns + 1, 20 * MS))
    assert world.now_ns - t_ns[-1] < 20 * MS  # the last second is there
    assert not late_ns.any()
    assert len(looks) == pytest.approx(END_NS / (1000 * MS), abs=3)
    world.loop.finish()  # a second end changes nothing
    assert ring.word(READS) == len(t_ns)


def test_a_full_ring_of_a_drivers_samples_is_thinned_and_stays_even(monkeypatch):
    world = World(monkeypatch, lambda w, key: 1.0, period_ns=20 * MS, capacity=200)
    ring = follow(world)
    assert "SAMPLER_THINNED" in world.run()
    t_ns = recording_builder._columns(ring, 0)[0]
    period_ns = ring.word(PERIOD_NS)
    assert period_ns == 80 * MS
    assert (t_ns[1:] - t_ns[:-1] == period_ns).sum() >= len(t_ns) - 3  # all but where it became thinner
    assert world.now_ns - t_ns[-1] < period_ns + 20 * MS


def test_a_drivers_ring_that_fails_is_retried_and_no_other_channel_waits(monkeypatch):
    world = World(monkeypatch, lambda w, key: 1.0, keys=("gpu:0/power_fine", "gpu:0/power"), period_ns=20 * MS)
    ring = follow(world)
    take = world.take

    def fails(key):
        if 3000 * MS < world.now_ns < 6000 * MS:
            raise SensorError("gpu:0/power_fine: lost", code="SENSOR_LOST")
        return take(key)

    world.take = fails
    assert world.run() == ["SENSOR_LOST", "SENSOR_BACK"]
    assert world.board.rings[1].word(READS) == pytest.approx(END_NS / (20 * MS), abs=5)
    assert ring.word(FAILING_NS) == 0
