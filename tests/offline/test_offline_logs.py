"""A short trace with logs of all kinds: the right joules, from the right card, or a refusal that says what to do."""

import csv
import subprocess
import sys
from datetime import UTC, datetime

import pytest

import torchwatt
from tests.kineto.trace_files import BASE_NS, module, pair, save
from torchwatt.audit import verify
from torchwatt.audit.exports import export
from torchwatt.core.errors import ConfigError, SensorError
from torchwatt.reports.dataframes import layer_frame
from torchwatt.reports.output_files import write_csv
from torchwatt.views import to_html_fragment, to_payload, to_text

RUN_S = 0.4
NVIDIA = "timestamp, power.draw [W]"


def trace(folder, device=0, name="t.json", **head):
    """Two layers whose kernels take turns for 0.4 s, from the first to the last nanosecond of it."""
    events = [module("Net_0", 0, 400_000)]
    for n in range(8):
        at = n * 50_000
        events += [module(f"A_{n % 2}", at, 40_000), *pair(at + 1, at, 50_000, n + 1, device=device)]
    return save(folder, events, name, **head)


def stamp(t_s, shift_h=0):
    at = datetime.fromtimestamp(BASE_NS / 1e9 + t_s + 3600 * shift_h, UTC)
    return at.strftime("%Y/%m/%d %H:%M:%S.%f")[:-3]


def log(folder, *rows, name="p.csv"):
    path = folder / name
    path.write_text("\n".join(rows) + "\n")
    return path


def once_a_second(watts=lambda i: 200 + (i % 3) / 10, first_s=-4.7, count=11):
    return [f"{stamp(first_s + i)}, {watts(i):.2f} W" for i in range(count)]


def four_cards(columns="timestamp, index, power.draw [W]", card=str):
    rows = (f"{stamp(-1 + i / 10 + g / 250)}, {card(g)}, {(20, 20, 20, 300)[g]} W" for i in range(25) for g in range(4))
    return [columns, *rows]


def test_a_log_of_one_reading_a_second_gives_a_short_run_its_joules(tmp_path):
    report = torchwatt.attribute(trace(tmp_path), log(tmp_path, NVIDIA, *once_a_second()))
    assert report.energy_j == pytest.approx(200.1 * RUN_S, rel=2e-3)
    assert report.status == "complete"
    assert not [event for event in report.events if event.code == "SAMPLE_GAP"]
    rows = layer_frame(report).set_index("fqn")
    for name in ("Net_0.A_0", "Net_0.A_1"):
        assert rows["energy_self_j"][name] == pytest.approx(200.1 * RUN_S / 2, rel=2e-3)
        assert rows["energy_systematic_lo_j"][name] < 200 * RUN_S / 2 < rows["energy_systematic_hi_j"][name]


def test_a_run_between_two_readings_is_as_uncertain_as_they_differ(tmp_path):
    """300 W in the run, 50 W beside it; one reading falls into the run."""
    read = log(tmp_path, NVIDIA, *once_a_second(lambda i: 300 if i == 5 else 50))
    report = torchwatt.attribute(trace(tmp_path), read)
    lo_j, hi_j = report.systematic_j
    assert lo_j < 300 * RUN_S < hi_j
    rows = layer_frame(report).set_index("fqn")
    for name in ("Net_0.A_0", "Net_0.A_1"):
        assert rows["energy_systematic_lo_j"][name] < 300 * RUN_S / 2 < rows["energy_systematic_hi_j"][name]


@pytest.mark.parametrize("columns", [NVIDIA, "timestamp, board_power_w"])
def test_a_log_that_is_read_once_a_minute_says_so_and_how_little_that_is(tmp_path, columns):
    """20 W a quarter of a minute before the run, 200 W after it."""
    read = log(tmp_path, columns, *(f"{stamp(-195 + 60 * i)}, {20 if i < 4 else 200}" for i in range(7)))
    report = torchwatt.attribute(trace(tmp_path), read)
    assert report.status == "complete"
    assert "power was read every 60 s" in report.ledgers[0].sentence
    (told,) = [event for event in report.events if event.code == "READ_SELDOM"]
    assert "changed by up to 180 W" in told.message
    assert "READ_SELDOM" in to_text(report)
    assert "READ_SELDOM" in to_html_fragment(report)
    if columns == NVIDIA:
        lo_j, hi_j = report.systematic_j
        assert lo_j <= 20 * RUN_S < 200 * RUN_S <= hi_j


def test_rows_have_the_uncertainty_of_reading_that_their_total_has(tmp_path):
    """A steady run of 10 min whose readings, once a minute, go from 20 to 200 W and back: rows as uncertain as it."""
    events = [module("Net_0", 0, 600_000_000)]
    for n in range(120):
        at = n * 5_000_000
        events += [module(f"A_{n % 2}", at, 4_000_000), *pair(at + 1, at, 5_000_000, n + 1)]
    read = log(tmp_path, NVIDIA, *(f"{stamp(-70 + 60 * i)}, {(20, 200)[i % 2]}" for i in range(14)))
    report = torchwatt.attribute(save(tmp_path, events), read)
    total = (report.interval_j[1] - report.interval_j[0]) / report.energy_j
    for entry in report.ledgers[0].entries:
        own = (entry.energy_self_hi_j - entry.energy_self_lo_j) / entry.energy_self_j
        assert own > 0.9 * total


def test_power_is_interpolated_at_the_runs_ends(tmp_path):
    """A ramp of 100 W a second from 0 W at -1 s: 100 to 140 W in the run."""
    read = log(tmp_path, NVIDIA, *(f"{stamp(t)}, {100 * (t + 1):.3f} W" for t in (-0.9, -0.3, 0.25, 1.5)))
    assert torchwatt.attribute(trace(tmp_path), read).energy_j == pytest.approx(120 * RUN_S, rel=1e-6)


@pytest.fixture
def partial(tmp_path):
    """200 W, read ten times a second until 0.1 s before the run's end is a quarter through."""
    read = log(tmp_path, NVIDIA, *(f"{stamp(-1 + i / 10)}, 200.{i % 2}0 W" for i in range(12)))
    return torchwatt.attribute(trace(tmp_path), read)


def test_a_run_that_was_metered_in_part_says_so_in_every_headline(partial):
    assert partial.status == "partial"
    assert partial.energy_j == pytest.approx(20.0, rel=2e-3)
    assert partial.systematic_j is None
    words = "metered for 25.0 % of the run"
    assert words in to_text(partial).splitlines()[1]
    assert words in to_html_fragment(partial).replace("\xa0", " ")
    assert words in to_payload(partial)["energy"]["text"]
    assert "25.0%" in repr(partial)


def test_mean_power_is_that_of_the_metered_time_in_every_view(partial, tmp_path):
    assert partial.mean_power_w == pytest.approx(200.05, abs=0.1)
    assert "200 W mean" in to_text(partial)
    assert ">200 W<" in to_html_fragment(partial)
    assert to_payload(partial)["power_w"] == pytest.approx(200.05, abs=0.1)
    bundle = write_csv(partial, tmp_path / "audit")
    assert not verify(bundle).findings
    with export([bundle], "codecarbon", tmp_path / "e.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["gpu_power"]) == pytest.approx(200.05, abs=0.1)
    assert row["cpu_power"] == ""


def test_gaps_are_those_of_the_run(tmp_path):
    times = [t / 10 for t in range(-100, -80)] + [t / 10 for t in range(-5, 10)] + [t / 10 for t in range(90, 100)]
    report = torchwatt.attribute(trace(tmp_path), log(tmp_path, NVIDIA, *(f"{stamp(t)}, 200 W" for t in times)))
    assert report.status == "complete"
    assert not {event.code for event in report.events} & {"SAMPLE_GAP", "POWER_FROZEN"}


def test_a_gap_inside_the_run_is_of_unknown_joules(tmp_path):
    path = save(tmp_path, [module("A_0", 0, 8_000_000), *pair(1, 0, 8_000_000, 1)])
    times = [t / 10 for t in range(-10, 20)] + [t / 10 for t in range(60, 100)]
    report = torchwatt.attribute(path, log(tmp_path, NVIDIA, *(f"{stamp(t)}, 200.{int(t * 10) % 2} W" for t in times)))
    assert [event.message.split(":")[0] for event in report.events if event.code == "SAMPLE_GAP"] == [
        "no power reading for 4.10 s"
    ]
    assert report.status == "partial"
    assert report.energy_j == pytest.approx(200 * 3.9, rel=0.01)
    assert report.mean_power_w == pytest.approx(200, rel=1e-3)


def test_a_log_that_is_slow_by_its_nature_has_no_gaps(tmp_path):
    read = log(tmp_path, "t_unix_s,power_w", *(f"{BASE_NS // 10**9 - 60 + 15 * i},{200 + i % 2}" for i in range(9)))
    report = torchwatt.attribute(trace(tmp_path), read)
    assert report.status == "complete"
    assert report.energy_j == pytest.approx(200.5 * RUN_S, rel=5e-3)


def test_one_of_several_cards_cannot_be_told_by_index_and_is_refused_with_the_list(tmp_path):
    with pytest.raises(ConfigError, match=r"4 cards.*--device.*index 0 \(20 W\); .*index 3 \(300 W\)") as error:
        torchwatt.attribute(trace(tmp_path), log(tmp_path, *four_cards()))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("columns", "card", "named"),
    [
        ("timestamp, index, power.draw [W]", str, 3),
        ("timestamp, uuid, power.draw [W]", "GPU-{0}{0}ab".format, "GPU-33"),
        ("timestamp, pci.bus_id, power.draw [W]", "00000000:{0}B:00.0".format, "0000:3b:00.0"),
        ("timestamp, serial, power.draw [W]", "130000{0}".format, "1300003"),
        ("timestamp, name, power.draw [W]", "NVIDIA A{0}0".format, "NVIDIA A30"),
        ("timestamp, hostname, power.draw [W]", "node{0}".format, "node3"),
        ("timestamp, name, power.draw [W]", lambda _: "NVIDIA A100", 3),
        ("timestamp, pstate, power.draw [W]", lambda _: "P0", "3"),
    ],
)
def test_the_card_that_is_named_has_the_layers_and_the_others_are_not_in_the_total(tmp_path, columns, card, named):
    read = log(tmp_path, *four_cards(columns, card))
    with pytest.raises(ConfigError, match=r"4 cards.*--device"):
        torchwatt.attribute(trace(tmp_path), read)
    report = torchwatt.attribute(trace(tmp_path), read, device=named)
    assert report.energy_j == pytest.approx(300 * RUN_S, rel=1e-6)
    assert [str(ledger.domain) for ledger in report.ledgers] == ["gpu:0"]
    rows = layer_frame(report).set_index("fqn")["energy_self_j"]
    assert rows["Net_0.A_0"] == pytest.approx(150 * RUN_S, rel=1e-6)
    assert "3 other cards of the power log are not in the total" in " ".join(to_text(report).split())


def test_a_card_of_one_node_is_named_with_it(tmp_path):
    rows = (
        f"node{n},{stamp(-1 + i / 10)},{g},{100 * n + 10 * g + 10} W" for i in range(25) for n in (0, 1) for g in (0, 1)
    )
    read = log(tmp_path, "hostname,timestamp,index,power.draw [W]", *rows)
    assert torchwatt.attribute(trace(tmp_path), read, device="node1/1").energy_j == pytest.approx(120 * RUN_S)
    with pytest.raises(
        ConfigError, match=r"--device 1 is more than one of the log's cards: node0 index 1; node1 index 1"
    ):
        torchwatt.attribute(trace(tmp_path), read, device=1)


def test_a_model_that_one_card_alone_has_tells_the_card(tmp_path):
    path = trace(tmp_path, deviceProperties=[{"id": 0, "name": "NVIDIA A30"}])
    read = log(tmp_path, *four_cards("timestamp, name, power.draw [W]", "NVIDIA A{0}0".format))
    assert torchwatt.attribute(path, read).energy_j == pytest.approx(300 * RUN_S, rel=1e-6)


def test_two_devices_are_given_their_cards_in_the_order_of_cuda_visible_devices(tmp_path):
    traces = [trace(tmp_path), trace(tmp_path, device=1, name="u.json")]
    report = torchwatt.attribute(traces, log(tmp_path, *four_cards()), device=(3, 1))
    assert {str(x.domain): x.energy_j for x in report.ledgers} == pytest.approx(
        {"gpu:0": 300 * RUN_S, "gpu:1": 20 * RUN_S}
    )
    with pytest.raises(ConfigError, match="one card twice"):
        torchwatt.attribute(traces, log(tmp_path, *four_cards()), device=(3, 3))
    with pytest.raises(ConfigError, match=r"--device 7 is none of the log's cards"):
        torchwatt.attribute(traces, log(tmp_path, *four_cards()), device=(3, 7))


def test_a_log_without_a_date_is_of_the_traces_day(tmp_path):
    rows = (f"{stamp(-1 + i / 10).partition(' ')[2]}, 0, 200 W" for i in range(25))
    report = torchwatt.attribute(trace(tmp_path), log(tmp_path, "Timestamp, DeviceId, GPU Power (W)", *rows))
    assert report.energy_j == pytest.approx(200 * RUN_S, rel=1e-6)
    assert "DATE_ASSUMED" in {event.code for event in report.events}


def test_local_times_are_read_in_their_zone(tmp_path):
    """Berlin is one hour ahead of UTC in November."""
    read = log(tmp_path, NVIDIA, *(f"{stamp(-1 + i / 10, shift_h=1)}, 200 W" for i in range(25)))
    with pytest.raises(ConfigError, match=r"do not overlap.*--zone"):
        torchwatt.attribute(trace(tmp_path), read)
    assert torchwatt.attribute(trace(tmp_path), read, zone="Europe/Berlin").energy_j == pytest.approx(200 * RUN_S)
    with pytest.raises(ConfigError, match="no time zone 'Berlin'"):
        torchwatt.attribute(trace(tmp_path), read, zone="Berlin")


def test_power_at_rest_is_that_of_the_same_card(tmp_path):
    read = log(tmp_path, *four_cards())
    rest = log(tmp_path, *four_cards(), name="idle.csv")
    report = torchwatt.attribute(trace(tmp_path), read, device=3, idle=rest)
    assert report.energy_j == pytest.approx(300 * RUN_S)
    other = log(tmp_path, "timestamp, index, power.draw [W]", f"{stamp(0)}, 1, 9 W", f"{stamp(1)}, 1, 9 W",
                f"{stamp(0)}, 2, 9 W", f"{stamp(1)}, 2, 9 W", name="other.csv")  # fmt: skip
    with pytest.raises(ConfigError, match="does not have card index 3"):
        torchwatt.attribute(trace(tmp_path), read, device=3, idle=other)


def test_an_absurd_power_names_line_and_cell(tmp_path):
    with pytest.raises(SensorError, match=r"p\.csv, line 3: '9000 W' in 'power.draw \[W\]' is 9000 W"):
        torchwatt.attribute(trace(tmp_path), log(tmp_path, NVIDIA, f"{stamp(0)}, 200 W", f"{stamp(1)}, 9000 W"))


def test_the_command_takes_the_cards_as_cuda_visible_devices_has_them(tmp_path):
    line = [sys.executable, "-m", "torchwatt", "attribute", "--trace", trace(tmp_path)]
    line += ["--power", log(tmp_path, *four_cards())]
    refused = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "--device" in refused.stderr
    done = subprocess.run([*line, "--device", "3"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "energy     120 J" in done.stdout


@pytest.mark.parametrize("seconds", [0.4, 2.5])
def test_a_counter_that_is_read_once_a_second_is_interpolated_at_the_runs_ends(tmp_path, seconds):
    path = save(tmp_path, [module("A_0", 0, int(seconds * 1e6)), *pair(1, 0, int(seconds * 1e6), 1)])
    rows = (f"{BASE_NS / 1e9 - 4.7 + i:.3f},{150_000 * i}" for i in range(12))
    report = torchwatt.attribute(path, log(tmp_path, "t_unix_s,energy_mj", *rows))
    assert report.status == "complete"
    assert report.energy_j == pytest.approx(150 * seconds, rel=1e-3)
    assert not verify(write_csv(report, tmp_path / "audit")).findings


def test_joules_per_counted_thing_are_unknown_where_a_part_of_the_run_was_not_metered(partial):
    assert partial.energy_per(10) is None
