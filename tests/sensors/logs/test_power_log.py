"""Power logs in the spellings that people have."""

import re
from datetime import UTC, datetime

import pytest

from torchwatt.core.errors import SensorError
from torchwatt.sensors.logs.power_log import read_power_log

NS = 1_700_000_000_250_000_000


def log(folder, text):
    path = folder / "p.csv"
    path.write_text(text)
    return read_power_log(path)


@pytest.mark.parametrize(
    ("header", "times"),
    [
        ("t_ns", ("1700000000250000000", "1700000001250000000")),
        ("t_unix_s", ("1700000000.25", "1700000001.250")),
        ("timestamp", ("1700000000.25", "1700000001.25")),
        ("timestamp", ("1700000000250", "1700000001250")),
        ("time", ("1700000000250000", "1700000001250000")),
        ("t", ("1700000000250000000", "1700000001250000000")),
        ("timestamp", ("2023/11/14 22:13:20.250", "2023/11/14 22:13:21.250")),
        ("timestamp", ("2023-11-14T22:13:20.250Z", "2023-11-14T23:13:21.250+01:00")),
    ],
)
def test_times_are_read_to_the_nanosecond(tmp_path, header, times):
    recording = log(tmp_path, f"{header},power_w\n{times[0]},100\n{times[1]},50.5\n")
    (series,) = recording.series
    assert series.t_ns.tolist() == [NS, NS + 10**9]
    assert (series.raw * series.channel.scale).tolist() == [100.0, 50.5]


def test_stamps_without_a_zone_are_said_to_be_assumed(tmp_path):
    text = "timestamp, power.draw [W]\n2023/11/14 22:13:20.250, 56.1 W\n2023/11/14 22:13:20.350, 57.1 W\n"
    assert [event.code for event in log(tmp_path, text).events] == ["CLOCK_ASSUMED"]
    assert log(tmp_path, "t_ns,power_w\n1,5\n2,6\n").events == ()


def test_nvidia_smis_columns_are_understood_and_the_instant_is_preferred(tmp_path):
    text = (
        "timestamp, index, pstate, power.draw [W], power.draw.instant [W]\n"
        "2023/11/14 22:13:20.250, 1, P0, 56.12 W, 60.00 W\n"
        "2023/11/14 22:13:20.250, 0, P0, [N/A], [N/A]\n"
        "2023/11/14 22:13:20.350, 1, P0, 56.12 W, 61.00 W\n"
    )
    recording = log(tmp_path, text)
    assert [str(meter.domain) for meter in recording.meters] == ["gpu:1"]
    assert recording.series[0].raw.tolist() == [60.0, 61.0]
    assert recording.series[0].channel.sensor == "nvml_power_instant"


def test_a_counter_becomes_the_meters_counter(tmp_path):
    recording = log(tmp_path, "t_ns,device,power_w,energy_mj\n0,0,10,5000\n1000000000,0,10,15000\n")
    counter = recording.get("gpu:0/energy")
    assert (counter.raw * counter.channel.scale).tolist() == [5.0, 15.0]


def test_lines_in_any_order_devices_apart_and_cut_lines_left_out(tmp_path):
    text = "power_w,device,t_ns\n3,1,20\n1,0,10\n2,0,5\n4,1,30\nx,0,12\n9"
    recording = log(tmp_path, text)
    assert {s.channel.key: s.raw.tolist() for s in recording.series} == {
        "gpu:0/power": [2.0, 1.0],
        "gpu:1/power": [3.0, 4.0],
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column of time"),
        ("a,b\n1,2\n", "its columns are: a, b"),
        ("t_ns,volts\n1,2\n", "no column of power"),
        ("t_ns,power_w\n1,2\n", "fewer than two readings"),
        ("t_ns,power_w\nx,y\nz,w\n", "fewer than two readings"),
    ],
)
def test_what_is_no_power_log_gives_one_error_that_names_it(tmp_path, text, words):
    with pytest.raises(SensorError, match=words) as error:
        log(tmp_path, text)
    assert "p.csv" in str(error.value)


NO_NUMBERS = ["np.float64(75.0)", "75.0 V", "75 %", "~75", "1.2.3", "0x4b", "75 W max", "75W/2", "7 5"]


@pytest.mark.parametrize("cell", NO_NUMBERS)
def test_a_cell_that_is_no_power_is_said_with_its_line(tmp_path, cell):
    rows = ["t_s,power_w", "1,10", f"2,{cell}", "3,30", f"4,{cell}", "5,50", ""]
    recording = log(tmp_path, "\n".join(rows))
    assert recording.series[0].raw.tolist() == [10.0, 30.0, 50.0]
    (said,) = (e.message for e in recording.events if e.code == "READINGS_LEFT_OUT")
    assert said.startswith(f"2 cells of p.csv are no power (the first, line 3: {cell!r} in 'power_w')")


@pytest.mark.parametrize("cell", NO_NUMBERS)
def test_a_log_without_any_cell_that_is_a_power_names_the_first(tmp_path, cell):
    with pytest.raises(SensorError, match=re.escape(f"p.csv, line 2: {cell!r} in 'power_w' is no power")):
        log(tmp_path, "\n".join(["t_s,power_w", *(f"{i},{cell}" for i in range(5)), ""]))


@pytest.mark.parametrize(
    "cell", ["", " ", "N/A", "[N/A]", "nan", "NaN", "None", "null", "-", "ERR!", "[Not Supported]"]
)
def test_a_cell_that_says_that_there_is_no_reading_is_no_event(tmp_path, cell):
    recording = log(tmp_path, f"t_s,power_w,name\n1,10,a\n2,{cell},a\n3,30,a\n")
    assert recording.series[0].raw.tolist() == [10.0, 30.0]
    assert not [e for e in recording.events if e.code == "READINGS_LEFT_OUT"]


def test_a_counter_whose_cells_are_no_numbers_is_said(tmp_path):
    recording = log(tmp_path, "t_s,energy_j\n1,10\n2,np.float64(20.0)\n3,30\n")
    (said,) = (e.message for e in recording.events if e.code == "READINGS_LEFT_OUT")
    assert "line 3: 'np.float64(20.0)' in 'energy_j'" in said


def test_a_column_that_is_not_used_says_nothing(tmp_path):
    recording = log(tmp_path, "t_s,power.draw,power_plan\n1,10,balanced\n2,20,balanced\n3,30,balanced\n")
    assert not [e for e in recording.events if e.code == "READINGS_LEFT_OUT"]


def test_a_log_of_nvidia_smi_of_a_minute_gives_every_reading(tmp_path):
    t_ms = [1_700_000_000_000 + 20 * i for i in range(3000)]
    watts = [60 + 0.07 * (i % 3000) for i in range(3000)]
    stamps = [datetime.fromtimestamp(t / 1e3, UTC).strftime("%Y/%m/%d %H:%M:%S.%f")[:-3] for t in t_ms]
    lines = [f"{stamp}, {w:.2f} W" for stamp, w in zip(stamps, watts, strict=True)]
    (series,) = log(tmp_path, "\n".join(["timestamp, power.draw.instant [W]", *lines, ""])).series
    assert series.t_ns.tolist() == [t * 1_000_000 for t in t_ms]
    assert (series.raw * series.channel.scale).tolist() == pytest.approx(watts, abs=0.0051)
