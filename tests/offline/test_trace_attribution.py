"""From files to a report: joules are conserved, and what does not fit together is refused."""

from math import fsum, isclose

import numpy as np
import pytest

import torchwatt
from tests.kineto.trace_files import BASE_NS, kernel, module, pair, save
from tests.support import ready
from torchwatt.core.errors import ConfigError
from torchwatt.offline.trace_attribution import RecordedFiles, attribute_files

MS = 1_000_000


def trace(folder, name="t.json", device=0, at_us=0, **head):
    """A quarter of a second of two layers."""
    events = []
    for i in range(50):
        t = at_us + i * 5000
        events += [module("Net_0", t, 4000), module("A_0", t, 1500), module("B_0", t + 2000, 1500)]
        events += pair(t + 1, t + 10, 2000, 2 * i + 1, device=device)
        events += pair(t + 2001, t + 2500, 1000 + 10 * i, 2 * i + 2, device=device)
    return save(folder, events, name, **head)


def power(folder, *, shift_ns=0, device=0, end_ms=1000):
    t = np.arange(-500, end_ms, 10) * MS
    busy = (t > 0) & (t < 250 * MS)
    rows = [f"{BASE_NS + int(a) + shift_ns},{device},{100 + 150 * int(b)}" for a, b in zip(t, busy, strict=True)]
    path = folder / "p.csv"
    path.write_text("t_ns,device,power_w\n" + "\n".join(rows) + "\n")
    return path


def bursts(folder, *, shift_ns=0):
    """A trace of bursts at odd distances, and the power that they drew."""
    rng = np.random.default_rng(5)
    edges = np.cumsum(rng.integers(10, 120, 40)) * MS
    start, end = edges[::2], edges[1::2]
    events = [module("A_0", 0, int(edges[-1] // 1000))]
    for i, (a, b) in enumerate(zip(start, end, strict=True)):
        events += pair(int(a // 1000) - 1, int(a // 1000), int((b - a) // 1000), i + 1)
    t = np.arange(-2000, int(edges[-1] // MS) + 2000, 5) * MS
    at = np.searchsorted(start, t, side="right") - 1
    watts = 100 + 150 * ((at >= 0) & (t < end[np.maximum(at, 0)]))
    rows = [f"{BASE_NS + int(a) + shift_ns},{w}" for a, w in zip(t, watts, strict=True)]
    path = folder / "bursts.csv"
    path.write_text("t_ns,power_w\n" + "\n".join(rows) + "\n")
    return save(folder, events, "bursts.json"), path


def test_the_books_balance_and_the_window_is_the_traces(tmp_path):
    report = torchwatt.attribute(trace(tmp_path), power(tmp_path))
    (ledger,) = report.ledgers
    assert isclose(fsum(e.energy_self_j for e in ledger.entries), ledger.energy_j, rel_tol=1e-9)
    assert ledger.energy_j == pytest.approx(250 * 0.25, rel=0.05)
    assert report.duration_s == pytest.approx(0.249, rel=0.02)
    assert ledger.static_w is None  # what ran before a recorded trace is no baseline
    assert {info.fqn for info in report.modules} == {"Net_0", "Net_0.A_0", "Net_0.B_0"}


def test_a_given_and_a_fitted_offset_lead_to_the_same_joules(tmp_path):
    whole = torchwatt.attribute(*bursts(tmp_path)).energy_j
    path, moved = bursts(tmp_path, shift_ns=3_600 * 10**9)
    assert torchwatt.attribute(path, moved, offset=3600.0).energy_j == pytest.approx(whole, rel=1e-9)
    found = attribute_files(RecordedFiles((path,), moved, offset="fit"))
    assert found.joined[0].offset_ns == pytest.approx(3_600 * 10**9, abs=5 * MS)
    assert found.report.energy_j == pytest.approx(whole, rel=0.02)
    assert [event.code for event in found.events] == ["OFFSET_FITTED"]


def test_a_log_of_another_time_is_refused_with_both_times(tmp_path):
    with pytest.raises(ConfigError, match=r"2023-11-15T.* do not overlap.*--offset"):
        torchwatt.attribute(trace(tmp_path), power(tmp_path, shift_ns=86_400 * 10**9))


def test_a_trace_that_does_not_know_its_clock_needs_an_offset(tmp_path):
    path, log = bursts(tmp_path)
    path.write_text(path.read_text().replace("baseTimeNanoseconds", "other"))
    with pytest.raises(ConfigError, match="clock"):
        torchwatt.attribute(path, log)
    assert torchwatt.attribute(path, log, offset="fit").energy_j > 50


def test_an_offset_that_cannot_be_told_is_refused(tmp_path):
    """Work that is uniform over the whole trace fits anywhere under constant power."""
    with pytest.raises(ConfigError, match="no offset could be found"):
        torchwatt.attribute(trace(tmp_path), power(tmp_path), offset="fit")


def test_one_log_of_one_device_is_that_of_the_traces_one_device(tmp_path):
    report = torchwatt.attribute(trace(tmp_path, device=3), power(tmp_path))
    assert [str(ledger.domain) for ledger in report.ledgers] == ["gpu:3"]


def test_ranks_of_two_devices_add_up_and_of_one_device_are_refused(tmp_path):
    one, two = trace(tmp_path, "a.json"), trace(tmp_path, "b.json", device=1)
    log = power(tmp_path)
    rows = log.read_text().splitlines()
    log.write_text("\n".join([*rows, *(row.replace(",0,", ",1,") for row in rows[1:])]) + "\n")
    report = torchwatt.attribute([one, two], log)
    assert [str(ledger.domain) for ledger in report.ledgers] == ["gpu:0", "gpu:1"]
    with pytest.raises(ConfigError, match=r"a\.json and a\.json both contain records of gpu:0"):
        torchwatt.attribute([one, one], log)


def test_a_trace_without_device_records_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"ProfilerActivity\.CUDA"):
        torchwatt.attribute(save(tmp_path, [module("A_0", 0, 5)]), power(tmp_path))


def command(*args):
    return ready.torchwatt("attribute", *args)


def test_the_command_prints_the_report_and_writes_the_bundle(tmp_path):
    done = command("--trace", trace(tmp_path), "--power", power(tmp_path), "--out", tmp_path / "audit")
    assert done.returncode == 0, done.stderr
    assert "module-forward   100.00%" in done.stdout
    assert (tmp_path / "audit" / "layer.csv").is_file()


def test_without_power_there_are_times_and_no_joules(tmp_path):
    done = command("--trace", trace(tmp_path))
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("Net_0.A_0"))
    assert row.split()[1:4] == ["forward", "100.000", "ms"]
    assert " J" not in done.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--trace", "none.json"), "none.json"),
        (("--trace", "none.json", "--out", "x"), "--power"),
        (("--trace", "none.json", "--offset", "soon"), "--offset soon"),
        (("--trace", "none.json", "--offset", "nan"), "--offset nan"),
        (("--trace", "none.json", "--offset", "inf"), "--offset inf"),
        (("--trace", "none.json", "--offset", "1e300"), "--offset 1e+300"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(args, words):
    done = command(*args)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_two_streams_at_once_are_not_twice_as_long(tmp_path):
    events = [module("A_0", 0, 9), *pair(1, 2, 10, 1, stream=1), *pair(2, 2, 10, 2, stream=2), kernel(20, 5, 99)]
    found = attribute_files(RecordedFiles((save(tmp_path, events),)))
    assert found.report is None
    assert found.joined[0].busy_ns == {"gpu:0": 15_000}
