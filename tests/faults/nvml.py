"""Faults of GPUs and their driver, injected into the simulated NVML that the real pynvml loads.

Runs in a process of its own, in which the simulator is the library that pynvml finds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pynvml

from tests.faults.registry import Seen, fault
from tests.faults.virtual import UNIX_NS, Bench, layers
from tests.support.chosen import chosen
from tests.support.nvml_simulator import SCENARIO, Scenario
from torchwatt.core.report import Report
from torchwatt.core.units import NS_PER_S
from torchwatt.sensors.nvml import discover_nvml

GROUP = "GPUs and their driver"
WATTS = (250.0, 400.0)
EVERY_CODE = sorted(value for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_"))
COUNTER, POWER = "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage"
INSTANT, FIELDS = "field:186", "field:*"
GAUGES = (
    "nvmlDeviceGetUtilizationRates,nvmlDeviceGetMemoryInfo,nvmlDeviceGetTemperature,nvmlDeviceGetClockInfo,"
    "nvmlDeviceGetCurrentClocksEventReasons"
)
SECONDS = 4.0
# Of all codes the values are looked at; of these, which end in different words, also every file and view.
SHOWN = {1, 3, 4, 15, 999}
# Beside those, some that the commit chooses: few codes have a path of their own. All with TORCHWATT_CASES=all.
_CHOSEN = chosen(map(str, EVERY_CODE), 2)
CODES = [code for code in EVERY_CODE if code in SHOWN or str(code) in _CHOSEN]


def _scenario(
    folder: Path,
    statements: Sequence[str],
    first: Mapping[str, object],
    model: str,
    users: Sequence[int | str],
) -> None:
    """Write two GPUs and who uses them; `statements` are those of a scenario, `first` settings of the first GPU."""
    scenario = Scenario(clock=folder / "clock", origin_ns=UNIX_NS)
    for index, watts in enumerate(WATTS):
        settings = {"power": watts, "noise_w": 2.0, **(first if index == 0 else {})}
        scenario.gpu(model, **settings).process(users[index])
    os.environ[SCENARIO] = str(scenario.add_lines(*statements).write(folder / "scenario"))


def _clock(folder: Path) -> Callable[[float], None]:
    path = folder / "clock"
    path.write_bytes(UNIX_NS.to_bytes(8, "little"))
    fd = os.open(path, os.O_RDWR)

    def at(seconds: float) -> None:
        os.pwrite(fd, (UNIX_NS + round(seconds * NS_PER_S)).to_bytes(8, "little"), 0)

    return at


def gpus(
    folder: Path,
    *statements: str,
    first: Mapping[str, object] | None = None,
    later: Sequence[str] | None = None,
    seconds: float = SECONDS,
    model: str = "ideal",
    parts: Sequence[tuple[str, float, float]] = (),
    users: Sequence[int | str] = ("self", "self"),
) -> Report:
    """Meter two GPUs of 250 and 400 W for some virtual seconds; `later` replaces the statements after discovery."""
    clock = _clock(folder)
    _scenario(folder, statements, first or {}, model, users)
    found = discover_nvml({})
    bench = Bench(found, seconds, (clock,))
    if later is not None:
        bench.before = partial(_scenario, folder, later, first or {}, model, users)
    report = bench.report(*([layers(bench.start_ns, parts)] if parts else []))
    assert _closed(), "a reference on NVML was not given back"
    return report


def _closed() -> bool:
    try:
        pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError_Uninitialized:
        return True
    return False


def energy_j(report: Report, domain: str) -> float | None:
    """Return a domain's joules, None where it has none."""
    return next((led.energy_j for led in report.ledgers if str(led.domain) == domain), None)


def holds(report: Report, domain: str, watts: float, rel: float = 0.02) -> None:
    """Check that a domain's joules are those of the time for which it was known, or that it has none and says why."""
    ledger = next((led for led in report.ledgers if str(led.domain) == domain), None)
    if ledger is None:
        assert any(item.domain in {domain, "gpu"} and item.reason for item in report.unavailable), domain
        return
    truth_j = watts * ledger.known_s
    assert abs(ledger.energy_j - truth_j) <= rel * truth_j + watts * 0.03, (domain, ledger.energy_j, truth_j)


def both(report: Report, code: int = 999) -> Seen:
    """Check both: the one that failed and the one beside it, which stays whole."""
    holds(report, "gpu:0", WATTS[0])
    other = energy_j(report, "gpu:1")
    assert other is not None, report.unavailable
    holds(report, "gpu:1", WATTS[1])
    assert all(led.is_whole for led in report.ledgers if str(led.domain) == "gpu:1")
    return Seen.of(report, files=code in SHOWN)


@fault(
    GROUP,
    "each of NVML's error codes at `nvmlInit`",
    sees="`unavailable` with NVML's own words and the fix; every other meter as ever",
    keeps="the run, and all other meters",
    proofs=["tests/sensors/test_sensors_nvml.py::test_a_driver_that_does_not_start_is_said_not_raised"],
)
def at_init(folder: Path) -> Iterator[Seen]:
    for code in CODES:
        report = gpus(folder, f"fault call=nvmlInit code={code}", seconds=0.5)
        assert report.ledgers == ()
        (gone,) = report.unavailable
        assert gone.domain == "gpu"
        assert f"NVML {code}" in gone.reason
        yield Seen.of(report, files=code in SHOWN)


@fault(
    GROUP,
    "each error code when the sampler opens NVML, although discovery could",
    sees="`unavailable` and an event with the code",
    keeps="the run, and all other meters",
)
def at_second_init(folder: Path) -> Iterator[Seen]:
    for code in CODES:
        report = gpus(folder, later=[f"fault call=nvmlInit code={code}"], seconds=2)
        assert report.ledgers == ()
        assert {item.domain for item in report.unavailable} == {"gpu:0", "gpu:1"}
        assert any(f"NVML {code}" in event.message for event in report.events), report.events
        yield Seen.of(report, files=code in SHOWN)


@fault(
    GROUP,
    "each error code at the number of devices, at a device's handle, name and UUID",
    sees="`unavailable` for that GPU, with the code; its neighbour as ever",
    keeps="the neighbour, whole",
)
def at_handles(folder: Path) -> Iterator[Seen]:
    for code in CODES:
        report = gpus(folder, f"fault call=nvmlDeviceGetCount code={code}", seconds=0.5)
        assert report.ledgers == ()
        yield Seen.of(report, files=code in SHOWN)
        assert gpus(folder, f"fault call=nvmlDeviceGetHandleByUUID code={code}", seconds=0.5).ledgers == ()
        for call in ("nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID", "nvmlDeviceGetName"):
            yield both(gpus(folder, f"fault call={call} device=0 code={code}", seconds=0.5), code)


@fault(
    GROUP,
    "each error code at each read, from the start",
    sees="the next best sensor, named, or `unavailable` with the code",
    keeps="the joules from whatever still answers; the neighbour, whole",
)
def at_reads(folder: Path) -> Iterator[Seen]:
    for code in CODES:
        for calls in (COUNTER, INSTANT, FIELDS, f"{COUNTER},{FIELDS},{POWER}", GAUGES):
            report = gpus(folder, f"fault call={calls} device=0 code={code}", seconds=1)
            if calls == COUNTER:
                assert report.ledgers[0].method == "power_integral"
            if POWER in calls:
                assert energy_j(report, "gpu:0") is None
            yield both(report, code)


@fault(
    GROUP,
    "each error code at each read, from the middle of the run on",
    sees="`partial`; the code's event (`SENSOR_LOST`, `NO_PERMISSION`, `SENSOR_ERROR`, …), `unavailable` from then on",
    keeps="the joules up to then, with the time that they cover",
)
def from_the_middle(folder: Path) -> Iterator[Seen]:
    for code in CODES:
        for calls in ("*", COUNTER, INSTANT):
            report = gpus(folder, f"fault call={calls} device=0 code={code} from_s=3")
            assert any(event.subject == "gpu:0" for event in report.events), (code, calls)
            assert "CROSS_CHECK" not in {e.code for e in report.events}
            ledger = report.ledgers[0]
            if calls == "*":
                assert report.status == "partial"
                assert 1.9 < ledger.known_s < 2.1
                assert "lost during the run" in next(u.reason for u in report.unavailable if u.domain == "gpu:0")
            yield both(report, code)


@fault(
    GROUP,
    "each error code at every read for two seconds, then all is well",
    sees="the code's event and `SENSOR_BACK`",
    keeps="the counter's joules of the whole run: it counted on",
)
def for_a_while(folder: Path) -> Iterator[Seen]:
    for code in CODES:
        report = gpus(folder, f"fault call=* device=0 code={code} from_s=2.5 until_s=4.5", seconds=6)
        assert "CROSS_CHECK" not in {e.code for e in report.events}
        assert report.ledgers[0].is_whole
        yield both(report, code)


@fault(
    GROUP,
    "a card whose processes cannot be seen from here, as in a container",
    sees="`DEVICE_USER_UNKNOWN`, and the head of the report says that the card may be others'",
    keeps="its joules, in the total",
    proofs=["tests/sensors/test_gpu_users.py::test_a_card_whose_processes_cannot_be_seen_counts_and_the_head_says_so"],
)
def hidden_users(folder: Path) -> Iterator[Seen]:
    report = gpus(folder, users=(4194303, "self"), seconds=2)
    assert [str(led.domain) for led in report.counted] == ["gpu:0", "gpu:1"]
    assert [e.subject for e in report.events if e.code == "DEVICE_USER_UNKNOWN"] == ["gpu:0"]
    yield both(report)


@fault(
    GROUP,
    "a card that only others use",
    sees="its joules in `(other processes)`, and in the head of the report that they are not in the total",
    keeps="its books beside the total",
    proofs=["tests/sensors/test_gpu_users.py::test_a_card_of_others_keeps_its_joules_outside_of_the_total"],
)
def users_are_others(folder: Path) -> Iterator[Seen]:
    report = gpus(folder, users=(1, "self"), seconds=2)  # process 1 is there, and no child of this one
    assert [str(led.domain) for led in report.counted] == ["gpu:1"]
    assert {entry.fqn for led in report.ledgers for entry in led.entries if not led.counted} == {"(other processes)"}
    yield both(report)
