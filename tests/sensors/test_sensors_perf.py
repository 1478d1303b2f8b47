import pytest

from torchwatt.core.errors import SensorError
from torchwatt.sensors.rapl import PERF_ROOT, discover_perf, parse_config, parse_cpus, power_events
from torchwatt.sensors.readers import rapl_reader

SCALE = "2.3283064365386962890625e-10"


def sysfs(root, *, ram=True):
    (root / "events").mkdir(parents=True)
    (root / "type").write_text("21\n")
    (root / "cpumask").write_text("0,18\n")
    for name, event in [("energy-pkg", "0x02"), *([("energy-ram", "0x03")] if ram else [])]:
        (root / "events" / name).write_text(f"event={event}\n")
        (root / "events" / f"{name}.scale").write_text(f"{SCALE}\n")
    return root


def test_one_event_a_socket_with_the_kernels_scale(tmp_path):
    events = power_events(sysfs(tmp_path))
    assert events == {
        "cpu:0": ([21, 2, 0], 2.0**-32),
        "cpu:1": ([21, 2, 18], 2.0**-32),
        "dram:0": ([21, 3, 0], 2.0**-32),
        "dram:1": ([21, 3, 18], 2.0**-32),
    }


@pytest.mark.parametrize(("text", "cpus"), [("0\n", [0]), ("0-2,8", [0, 1, 2, 8]), ("\n", [])])
def test_cpu_lists(text, cpus):
    assert parse_cpus(text) == cpus


def test_event_numbers():
    assert parse_config("event=0x02,umask=0x1") == 2
    with pytest.raises(SensorError, match="no event number"):
        parse_config("config=2")


def test_meters_from_perf_have_no_edges_because_each_opening_counts_from_zero(tmp_path, monkeypatch):
    monkeypatch.setattr(rapl_reader.PerfReader, "read", lambda self, key: 0.0)
    (source,) = discover_perf(sysfs(tmp_path, ram=False)).sources
    assert [m.channels[0].key for m in source.meters] == ["cpu:0/energy", "cpu:1/energy"]
    assert source.meters[0].channels[0].modulus is None
    assert not source.edges


def test_refused_events_name_the_setting(tmp_path, monkeypatch):
    def refuse(*_):
        raise SensorError("perf power event on cpu 0: Permission denied", code="NO_PERMISSION")

    monkeypatch.setattr(rapl_reader, "perf_event_open", refuse)
    (missing,) = discover_perf(sysfs(tmp_path)).unavailable
    assert "perf_event_paranoid" in missing.fix


def test_a_strange_folder_is_not_understood_rather_than_guessed(tmp_path):
    (tmp_path / "type").write_text("x")
    assert "cannot understand" in discover_perf(tmp_path).unavailable[0].reason
    assert "does not exist" in discover_perf(tmp_path / "absent").unavailable[0].reason


def test_a_number_that_is_no_power_event_is_refused_by_the_kernel_with_a_reason():
    with pytest.raises(SensorError, match="perf power event"):
        rapl_reader.perf_event_open(0x7FFFFFF0, 2, 0)


@pytest.mark.hardware
def test_the_package_counter_grows():
    found = discover_perf()
    if not found.sources:
        pytest.skip(found.unavailable[0].reason if found.unavailable else f"no events in {PERF_ROOT}")
    source = found.sources[0]
    channel = source.meters[0].channels[0]
    first = source.read(channel)
    total = sum(i * i for i in range(3_000_000))
    assert total
    assert source.read(channel) > first
    source.close()
