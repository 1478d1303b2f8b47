"""However long the machine has been up, a run is the same run: views, files and verify agree to the last byte."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import torchwatt
from tests.support.examples import examples
from tests.support.worlds import MS, counter_channel, power_channel, readings
from torchwatt.audit import verify, write_bundle
from torchwatt.audit.bundle_writer import table_files
from torchwatt.core.energy_curve import interpolate, spaced_instants
from torchwatt.core.job import ClockOffset
from torchwatt.core.meter import Channel, Event, Meter, Recording
from torchwatt.core.report import Window
from torchwatt.core.terms import Domain, Slot
from torchwatt.core.trace import Activity, Span, trace_from_spans
from torchwatt.distributed.rank_records import MachineClock
from torchwatt.reports import dataframes
from torchwatt.reports.report_builder import RunInterval, RunOutcome, build_report
from torchwatt.reports.run_options import RunOptions
from torchwatt.tracing.call_template import net_clock
from torchwatt.views import to_html_page, to_text
from torchwatt.views.report_payload import to_payload

YEARS_NS = 10 * 366 * 86_400 * 10**9
GPU, CPU, RAM = Domain("gpu", 0), Domain("cpu", 0), Domain("ram")
UNIX_NS = 1_800_000_000_123_456_789
offsets = st.integers(0, YEARS_NS)


def recording() -> Recording:
    """A GPU with counter and power (frozen and reset on the way), a CPU whose counter wraps, memory by a model."""
    rng = np.random.default_rng(3)
    t_ns = (np.arange(700) * 10 * MS + rng.integers(-3 * MS, 3 * MS, 700)).astype(np.int64)
    watts = 90.0 + 60.0 * np.sin(np.arange(700) / 9.0)
    joules = np.concatenate(([0.0], np.cumsum(watts[1:] * np.diff(t_ns) / 1e9)))
    counted = np.floor(joules * 1e3)
    counted[500:560] = counted[500]
    gpu_energy = Channel(GPU, "energy", "counter", "J", 1e-3, 10 * MS, "nvml_energy_counter")
    gpu_power = power_channel(domain=GPU)
    cpu_energy = counter_channel(modulus=90_000_000)
    ram = Channel(RAM, "power", "power", "W", 1.0, 50 * MS, "ram_model")
    busy = Channel(Domain("process"), "process_cpu", "gauge", "s", 1.0, 50 * MS, "proc")
    series = (
        readings(gpu_energy, t_ns, counted),
        readings(gpu_power, t_ns + 1, np.round(watts * 1e3)),
        readings(cpu_energy, t_ns + 2, np.floor(joules * 0.4e6) % 90_000_000),
        readings(ram, t_ns[::5], np.full(140, 3.0)),
        readings(busy, t_ns[::5] + 3, t_ns[::5] / 1.3e9),
    )
    meters = (
        Meter(GPU, (gpu_energy, gpu_power), "measured", "device", "GPU", accuracy_rel=(-0.05, 0.05)),
        Meter(CPU, (cpu_energy,), "measured", "device", "CPU", accuracy_rel=(-0.05, 0.05)),
        Meter(RAM, (ram,), "modelled", "process", "RAM", accuracy_rel=(-0.5, 1.0)),
        Meter(Domain("process"), (busy,), "measured", "process", "process"),
    )
    return Recording(meters, series)


def settled(offset_ns: int, *, device: bool = False):
    found = recording()
    found = replace(found, series=tuple(replace(s, t_ns=s.t_ns + offset_ns) for s in found.series))
    begin = 1_000 * MS + offset_ns
    steps = [(begin + n * 71_234_567, begin + (n + 1) * 71_234_567) for n in range(60)]
    spans = [
        Span(name, "forward", start + at * MS, start + (at + long) * MS)
        for start, _ in steps
        for name, at, long in (("a", 3, 20), ("b", 24, 9), ("c", 34, 30))
    ]
    trace = trace_from_spans(spans, steps=steps)
    begins = np.array([span.start_ns for span in spans], dtype=np.int64) + MS
    work = Activity(
        "gpu:0",
        (Slot("a", "forward"), Slot("b", "forward"), Slot("c", "forward")),
        np.tile(np.arange(3), 60),
        begins,
        begins + 8 * MS,
        np.zeros(180, dtype=np.int64),
        np.zeros(180, dtype=np.bool_),
        ("",),
        np.zeros(180, dtype=np.int64),
        steps=tuple(steps),
    )
    trace = replace(trace, activities=(work,) if device else ())
    bounds = RunInterval(begin, begin + 5_000 * MS + 1, UNIX_NS)
    events = (Event(begin + 77, "warning", "TEST", "run", "now"),)
    outcome = RunOutcome(
        "complete", windows=(Window("w", begin + 5, begin + 900 * MS, None),), events=events, software={}
    )
    return build_report("0193f2c1-7a55-7c11-9d2e-3f1a5b6c7d8e", RunOptions(), bounds, found, trace, outcome)


def told(report) -> dict[str, object]:
    shown: dict[str, object] = dict(table_files(report, "csv.gz"))
    shown |= {"text": to_text(report), "page": to_html_page(report), "payload": to_payload(report)}
    for name in ("layer", "sample", "step", "event"):
        shown[f"{name}s"] = getattr(dataframes, f"{name}_frame")(report).to_csv()
    return shown


BEFORE = told(settled(0))


@examples(10)
@given(offsets)
@example(2**53 + 1)
@example(YEARS_NS)
def test_every_view_and_file_is_the_same_however_long_the_machine_is_up(offset_ns):
    now = told(settled(offset_ns))
    assert now.keys() == BEFORE.keys()
    assert [name for name in now if now[name] != BEFORE[name]] == []


@pytest.mark.slow
def test_so_are_the_layers_that_are_fitted_to_a_devices_readings():
    before, now = (settled(offset_ns, device=True).ledgers[0] for offset_ns in (0, 2**58 + 7))
    assert now == before


def test_a_bundle_of_a_machine_up_for_ten_years_is_verified(tmp_path):
    for name, offset_ns in (("none", 0), ("decade", YEARS_NS - 1)):
        write_bundle(settled(offset_ns), tmp_path / name)
        result = verify(tmp_path / name)
        assert result.ok, result.findings[:3]
    assert [path.name for path in sorted((tmp_path / "none").iterdir())] == [
        path.name for path in sorted((tmp_path / "decade").iterdir())
    ]


def numbers_of(value: object):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers_of(item)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


def test_no_number_that_javascript_cannot_hold_goes_to_a_front_end():
    payload = to_payload(settled(YEARS_NS))
    assert max(map(abs, numbers_of(json.loads(json.dumps(payload))))) < 2**53


@given(offsets, st.lists(st.integers(1, 10**12), min_size=1, max_size=20), st.integers(0, 10**12))
def test_interpolation_counts_from_its_first_instant(offset_ns, apart, at):
    t_ns = np.cumsum([0, *apart])
    values = np.sqrt(np.arange(len(t_ns)) + 0.3)
    expected = interpolate([at, 0, int(t_ns[-1])], t_ns, values)
    assert interpolate(np.array([at, 0, int(t_ns[-1])]) + offset_ns, t_ns + offset_ns, values).tolist() == (
        expected.tolist()
    )
    assert expected[1:].tolist() == [values[0], values[-1]]


@given(offsets, st.integers(1, 10**12), st.integers(2, 30))
def test_equal_parts_are_the_same_wherever_the_clock_began(offset_ns, length_ns, count):
    there = spaced_instants(offset_ns, offset_ns + length_ns, count) - offset_ns
    assert there.tolist() == spaced_instants(0, length_ns, count).tolist()
    assert (there[0], there[-1]) == (0, length_ns)


@given(offsets)
def test_clocks_of_a_job_and_of_tracing_count_in_integers(offset_ns):
    looks = (ClockOffset(offset_ns, -offset_ns, 5), ClockOffset(offset_ns + 10**9, -offset_ns + 1000, 5))
    shifted = MachineClock(looks, "store").shift(np.array([offset_ns, offset_ns + 10**9 // 2, offset_ns + 10**9]))
    assert shifted.tolist() == [0, 500_000_500, 1_000_001_000]
    frame = (offset_ns, offset_ns + 1_000_003)
    net = net_clock(frame, np.array([offset_ns + 101, offset_ns + 5_007]), np.array([offset_ns + 907, frame[1]]), 11.0)
    plain = net_clock((0, 1_000_003), np.array([101, 5_007]), np.array([907, 1_000_003]), 11.0)
    at = np.arange(0, 1_000_003, 997)
    assert net.at(at + offset_ns).tolist() == plain.at(at).tolist()


SOURCES = Path(torchwatt.__file__).parent
RELATIVE = {
    "core/energy_curve.py", "attribution/estimator.py", "tracing/step_templates.py", "kineto/trace_offset.py",
    "tracing/device_windows.py", "tracing/step_events.py", "tracing/call_template.py", "tracing/shape_samples.py",
}  # fmt: skip


def test_nothing_else_interpolates_over_instants():
    """`np.interp` makes floats of its instants: where it is used, they are counted from a near origin."""
    found = {
        path.relative_to(SOURCES).as_posix()
        for path in SOURCES.rglob("*.py")
        if "np.interp(" in path.read_text(encoding="utf-8")
    }
    assert found == RELATIVE
