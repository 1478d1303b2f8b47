import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.core.errors import BundleError
from torchwatt.core.meter import (
    Channel,
    Event,
    Meter,
    Recording,
    SamplerStats,
    Series,
    Unavailable,
    series_from_readings,
)
from torchwatt.core.terms import Domain
from torchwatt.sensors import Replay, load_recording, save_recording

GPU = Domain("gpu", 0)
ENERGY = Channel(GPU, "energy", "counter", "J", 1e-3, 20_000_000, "nvml_energy_counter", 2**40)
UTIL = Channel(GPU, "utilization", "gauge", "1", 0.01, 1_000_000_000, "nvml_utilization")
METER = Meter(
    GPU,
    (ENERGY, UTIL),
    "measured",
    "device",
    "H",
    "NVIDIA",
    (-0.05, 0.05),
    "source",
    shared=True,
    notes=("note",),
    facts=(("uuid", "u"),),
)


def recording(readings, gauges=()):
    return Recording(
        (METER,),
        (series_from_readings(ENERGY, readings), series_from_readings(UTIL, list(gauges))),
        (Unavailable("dram", "none", "fix"),),
        (Event(5, "warning", "SENSOR_LOST", "gpu:0", "gone – weg"),),
        ((1, 1_700_000_000_000_000_001), (2**40, 1_700_000_000_000_000_003)),
        SamplerStats("process", 0.5, 10.0, {"gpu:0/energy": 3}, {"gpu:0/energy": 0}, {"gpu:0/energy": 1e-6}),
        {"host": "a"},
    )


def same(a: Series, b: Series) -> bool:
    pairs = ((a.t_ns, b.t_ns), (a.raw, b.raw), (a.late_ns, b.late_ns))
    return a.channel == b.channel and all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in pairs)


@given(
    st.lists(st.tuples(st.integers(0, 2**62), st.floats(-1e90, 1e90)), max_size=30).map(sorted),
    st.sampled_from(["r.jsonl", "r.jsonl.gz"]),
)
def test_what_is_saved_is_loaded_to_the_last_bit(tmp_path_factory, readings, name):
    path = tmp_path_factory.mktemp("replay") / name
    saved = recording(sorted(readings), [(3, 50.0)])
    save_recording(saved, path)
    loaded = load_recording(path)
    assert all(same(a, b) for a, b in zip(saved.series, loaded.series, strict=True))
    assert loaded.meters == saved.meters
    assert (loaded.unavailable, loaded.events, loaded.anchors) == (saved.unavailable, saved.events, saved.anchors)
    assert (loaded.stats, loaded.meta) == (saved.stats, saved.meta)


def test_long_series_take_several_lines(tmp_path):
    long = recording([(i, float(i)) for i in range(10_000)])
    save_recording(long, tmp_path / "long.jsonl")
    assert len((tmp_path / "long.jsonl").read_text().splitlines()) == 1 + 3
    assert same(load_recording(tmp_path / "long.jsonl").series[0], long.series[0])


def test_a_recording_is_written_once_and_strange_files_are_refused(tmp_path):
    save_recording(recording([(1, 1.0)]), tmp_path / "r.jsonl")
    with pytest.raises(BundleError, match="cannot save"):
        save_recording(recording([(1, 1.0)]), tmp_path / "r.jsonl")
    for name, content in [("a", b""), ("b", b"[1]\n"), ("c", b'{"format": "x"}\n'), ("d.gz", b"no gzip")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BundleError):
            load_recording(tmp_path / name)
    cut = gzip.compress((tmp_path / "r.jsonl").read_bytes())[:-9]
    (tmp_path / "cut.gz").write_bytes(cut)
    with pytest.raises(BundleError):
        load_recording(tmp_path / "cut.gz")


def test_a_replay_shows_what_a_meter_would_have_shown_by_now():
    now = [1000]
    feed = Replay(recording([(500, 1.0), (510, 2.0), (530, 4.0)]), clock_ns=lambda: now[0])
    assert feed.snapshot().series == ()
    feed.start()
    assert feed.snapshot().series[0].t_ns.tolist() == [1000]
    now[0] += 10
    feed.read_now()
    assert feed.snapshot().series[0].t_ns.tolist() == [1000, 1010]
    assert feed.snapshot(since_ns=1005).series[0].raw.tolist() == [2.0]
    result = feed.stop()
    now[0] += 100
    assert result is feed.stop()
    assert result.series[0].raw.tolist() == [1.0, 2.0]
    assert result.stats.mode == "replay"
    assert feed.snapshot().series[0].raw.tolist() == [1.0, 2.0]


def test_a_replay_at_its_own_times_is_there_at_once():
    feed = Replay(recording([(500, 1.0), (530, 4.0)]), shift="none")
    feed.start()
    assert feed.meters == (METER,)
    assert feed.unavailable[0].domain == "dram"
    assert feed.snapshot().series[0].t_ns.tolist() == [500, 530]
    assert feed.stop().anchors[0] == (1, 1_700_000_000_000_000_001)
