import mmap
from itertools import pairwise
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.core.meter import Channel
from torchwatt.core.terms import Domain
from torchwatt.sensors.recording_builder import make_series
from torchwatt.sensors.sample_buffer import (
    GENERATION,
    MAX_NOTES,
    NOTE_COUNT,
    PERIOD_NS,
    READS,
    THINNED,
    SampleBuffer,
    create_memory_file,
)
from torchwatt.sensors.source_loop import JITTER, ReadSchedule

CHANNEL = Channel(Domain("cpu", 0), "energy", "counter", "J", 1e-6, 10, "rapl")


def board(capacity, n_rings=1):
    size = SampleBuffer.size(2, [capacity] * n_rings)
    return SampleBuffer(mmap.mmap(-1, size), 2, [capacity] * n_rings)


@given(st.integers(8, 40), st.integers(0, 150))
def test_thinning_keeps_order_and_covers_the_whole_time(capacity, n):
    ring = board(capacity).rings[0]
    ring.put(PERIOD_NS, 10)
    period_ns, due = 10, 0
    times = []
    for _ in range(n):
        times.append(due)
        ring.append(due, float(due), 1)
        period_ns = ring.word(PERIOD_NS)
        due += period_ns
    found = make_series(CHANNEL, ring)
    assert len(found) <= capacity
    assert set(found.t_ns.tolist()) <= set(times)
    assert np.all(np.diff(found.t_ns) > 0)
    assert np.all(found.raw == found.t_ns)
    assert ring.word(READS) == n
    assert ring.word(GENERATION) == 2 * ring.word(THINNED)
    assert found.channel.period_ns == 10 * 2 ** ring.word(THINNED)
    if n:  # the first reading is never lost, and no hole is wider than two of the present periods
        assert found.t_ns[0] == times[0]
        assert found.t_ns[-1] >= times[-1] - period_ns
        assert max((b - a for a, b in pairwise(found.t_ns)), default=0) <= 2 * period_ns


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=20))
def test_raw_values_pass_through_unchanged(values):
    ring = board(32).rings[0]
    for i, value in enumerate(values):
        ring.append(i, value, 0)
    assert make_series(CHANNEL, ring).raw.tolist() == values


@given(st.sets(st.integers(0, 50)), st.integers(0, 60))
def test_since_is_found_by_bisection(times, since):
    ring = board(64).rings[0]
    for t in sorted(times):
        ring.append(t, 0.0, 0)
    assert ring.index_since(since) == sum(t < since for t in times)


@given(st.sets(st.integers(1, 40)), st.sets(st.integers(1, 40)))
def test_edges_are_merged_by_time_and_an_instant_counts_once(sampled, edges):
    ring = board(64).rings[0]
    for t in sorted(sampled):
        ring.append(t, float(t), 0)
    found = make_series(CHANNEL, ring, [(t, float(t), 0) for t in edges])
    assert found.t_ns.tolist() == sorted(sampled | edges)
    assert found.raw.tolist() == found.t_ns.tolist()


def test_two_mappings_of_one_memory_see_the_same():
    fd = create_memory_file("test")
    writer, reader = SampleBuffer.map(fd, 1, [8, 8]), SampleBuffer.map(fd, 1, [8, 8])
    writer.rings[1].append(5, 2.5, 1)
    writer.note(7, "warning", "SENSOR_LOST", "gpu:0/power", "gone – weg")
    writer.note(9, "warning", "SENSOR_LOST", "gpu:0/power", "gone again")
    writer.busy(0, 11)
    assert make_series(CHANNEL, reader.rings[1]).raw.tolist() == [2.5]
    (note,) = reader.notes()
    assert (note.first_ns, note.last_ns, note.count, note.message) == (7, 9, 2, "gone – weg")
    assert reader.busy_since(0) == 11
    reader.note(12, "info", "SENSOR_LOST", "gpu:0/power", "counted by the mapping that takes over")
    assert len(writer.notes()) == 1 or writer.word(NOTE_COUNT) == 2
    writer.close()
    reader.close()


def test_notes_are_bounded_and_long_texts_are_cut():
    one = board(4)
    for i in range(MAX_NOTES + 10):
        one.note(i, "info", "CODE", f"subject {i}", "ü" * 1000)
    assert len(one.notes()) == MAX_NOTES
    assert set(one.notes()[0].message) == {"ü"}


@given(st.integers(10, 1000), st.lists(st.integers(0, 5000), min_size=1, max_size=50), st.integers(0, 9))
def test_deadlines_stay_on_their_grid_and_missed_ticks_are_counted(period_ns, delays, seed):
    schedule = ReadSchedule(period_ns, 0, Random(seed).random)
    ticks, missed, now = 1, 0, 0
    for delay in delays:
        now = max(now, schedule.due_ns) + delay
        before = schedule.due_ns
        missed += schedule.advance(now)
        ticks += 1
        assert schedule.due_ns > before
        grid = round(schedule.due_ns / period_ns)
        assert abs(schedule.due_ns - grid * period_ns) <= JITTER * period_ns + 1
        assert schedule.due_ns >= now - 2 * JITTER * period_ns - 1  # not a backlog: at most this window's rest
    assert ticks + missed == round(schedule.due_ns / period_ns) + 1 or period_ns < 12
