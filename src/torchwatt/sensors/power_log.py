"""Power readings that somebody else wrote down: a CSV as `nvidia-smi --format=csv`, a script or a meter leaves it."""

from __future__ import annotations

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TextIO

import numpy as np

from torchwatt.core.errors import SensorError
from torchwatt.core.meter import Channel, Event, FloatArray, IntArray, Meter, Recording, Series
from torchwatt.core.terms import Domain
from torchwatt.core.units import NS_PER_S
from torchwatt.disk.inflate import bounded_lines

TIMES = ("t_ns", "t_unix_ns", "unix_ns", "t_unix_s", "unix_s", "t_us", "t_ms", "t_s", "timestamp", "time", "t")
DEVICES = ("device", "index", "gpu", "gpu_index", "device_id")
COUNTERS = {"energy_mj": 1e-3, "energy_j": 1.0, "total_energy_consumption_mj": 1e-3}
# Column, watts per unit, and the sensor that it names. The value of the instant beats the average of a second.
POWERS: Mapping[str, tuple[float, str]] = {
    "power.draw.instant_w": (1.0, "nvml_power_instant"),
    "power_w": (1.0, "replay"),
    "power.draw_w": (1.0, "nvml_power"),
    "power.draw.average_w": (1.0, "nvml_power"),
    "power_mw": (1e-3, "replay"),
    "power": (1.0, "replay"),
    "watts": (1.0, "replay"),
    "w": (1.0, "replay"),
}
_UNITS_NS = (("_ns", 1), ("_us", 1_000), ("_ms", 1_000_000), ("_s", NS_PER_S))
_STAMPS = ("%Y/%m/%d %H:%M:%S.%f", "%Y/%m/%d %H:%M:%S")
# A log may be anybody's: what no meter says is left out, and counted.
MAX_BYTES = 1 << 30  # a month at ten readings a second
MAX_DEVICE = 2**16
LARGEST_W, LARGEST_RAW = 1e9, 1e18  # a power station; a counter of 64 bits in millijoules
LATEST_NS = 2**62  # the year 2116: differences of times fit 64 bits
LONGEST_CELL = 200  # characters
_SHOWN = 20  # names of columns in an error
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class _Columns:
    time: int
    time_name: str
    power: int
    scale: float
    sensor: str
    device: int | None
    counter: int | None
    counter_scale: float


@dataclass(slots=True)
class _Read:
    """(t_ns, power, counter) by device; whether times were text without a zone; readings that no meter can say."""

    by_device: dict[int, list[tuple[int, float, float]]] = field(default_factory=lambda: defaultdict(list))
    zoneless: bool = False
    impossible: int = 0


def read_power_log(path: str | os.PathLike[str]) -> Recording:
    """Read a power log as a recording; its clock is unix time in nanoseconds.

    Columns, in any order and with or without units in brackets: a time (`t_ns`, `t_unix_s`, `timestamp`, ...; numbers
    in a column without unit are seconds, ms, us or ns by their size), a power (`power_w`, `power.draw [W]`, ...), and
    if present a `device` index and a counter (`energy_mj`). Text stamps without zone, as nvidia-smi writes them, are
    read as UTC and the recording's events say so. Readings that are no number are left out.

    Raises:
        SensorError: The file cannot be read, has no such columns, has fewer than two readings, or more than 1 GiB.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            columns, read = _read(file, path)
    except SensorError:
        raise
    except OSError as error:
        raise SensorError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SensorError(f"{path} is no text: give a CSV with a time and a power column") from error
    except csv.Error as error:
        raise SensorError(f"{path} is no CSV of power readings: {error}") from error
    meters, series = [], []
    for device, readings in sorted(read.by_device.items()):
        if len(readings) > 1:
            meter, found = _metered(device, readings, columns)
            meters.append(meter)
            series += found
    if not meters:
        raise SensorError(f"{path} has fewer than two readings with a time and a power")
    first = min(int(s.t_ns[0]) for s in series)
    return Recording(
        tuple(meters), tuple(series), events=tuple(_events(first, Path(path).name, read)), anchors=((first, first),)
    )


def _read(file: TextIO, path: str | os.PathLike[str]) -> tuple[_Columns, _Read]:
    """Read row by row: a row is kept as three numbers."""
    size = file.seek(0, os.SEEK_END)
    if size > MAX_BYTES:
        raise SensorError(f"{path} has {size} bytes, more than {MAX_BYTES}: cut it to the time of the trace")
    file.seek(0)
    rows = (row for row in csv.reader(bounded_lines(file)) if row)
    columns = _columns(next(rows, []), path)
    return columns, _by_device(rows, columns)


def _columns(header: Sequence[str], path: str | os.PathLike[str]) -> _Columns:
    names = [_plain(name) for name in header]
    time = next((name for name in TIMES if name in names), None)
    power = next((name for name in POWERS if name in names), None)
    if time is None or power is None:
        lacking = "time (t_ns, t_unix_s, timestamp)" if time is None else "power (power_w, power.draw [W])"
        shown = ", ".join(name[:LONGEST_CELL] for name in header[:_SHOWN])
        raise SensorError(f"{path} has no column of {lacking}; its columns are: {shown or 'none'}")
    device = next((names.index(name) for name in DEVICES if name in names), None)
    counter = next((name for name in COUNTERS if name in names), None)
    scale, sensor = POWERS[power]
    return _Columns(
        names.index(time), time, names.index(power), scale, sensor, device,
        names.index(counter) if counter else None, COUNTERS[counter] if counter else 0.0,
    )  # fmt: skip


def _plain(name: str) -> str:
    """Write ` Power.Draw [W]` as `power.draw_w`."""
    name = " ".join(name[:LONGEST_CELL].split())
    return re.sub(r" ?[\[(] ?(\w+) ?[\])]", r"_\1", name).strip().lower().replace(" ", "_")


def _by_device(rows: Iterable[Sequence[str]], columns: _Columns) -> _Read:
    read = _Read()
    for row in rows:
        if len(row) <= max(columns.time, columns.power):
            continue  # the last line of a log that was cut
        t_ns, text = _time_ns(row[columns.time].strip(), columns.time_name)
        power = _number(row[columns.power])
        device = _cell(row, columns.device, 0.0)
        device = 0.0 if np.isnan(device) else device
        if t_ns is None or abs(t_ns) >= LATEST_NS or np.isnan(power):
            continue
        if not (abs(power * columns.scale) < LARGEST_W and 0 <= device < MAX_DEVICE):
            read.impossible += 1
            continue
        read.zoneless |= text
        counter = _cell(row, columns.counter, np.nan)
        read.by_device[int(device)].append((t_ns, power, counter if abs(counter) < LARGEST_RAW else np.nan))
    return read


def _cell(row: Sequence[str], column: int | None, otherwise: float) -> float:
    return _number(row[column]) if column is not None and column < len(row) else otherwise


def _time_ns(cell: str, name: str) -> tuple[int | None, bool]:
    """Return unix nanoseconds, and whether the cell was text without a zone."""
    if len(cell) > LONGEST_CELL:
        return None, False
    if _NUMBER.fullmatch(cell):
        return _from_number(cell, name), False
    for form in _STAMPS:
        try:
            return _unix_ns(datetime.strptime(cell, form).replace(tzinfo=UTC)), True
        except ValueError:
            continue
    try:
        stamp = datetime.fromisoformat(cell)
    except ValueError:
        return None, False
    return _unix_ns(stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)), stamp.tzinfo is None


def _from_number(cell: str, name: str) -> int | None:
    try:
        t_ns = int((Decimal(cell) * _unit_ns(cell, name)).to_integral_value())  # a double would lose digits
    except (ArithmeticError, ValueError):  # an exponent that no number of this world has
        return None
    return t_ns if abs(t_ns) < 2**63 else None


def _unit_ns(cell: str, name: str) -> int:
    unit = next((ns for suffix, ns in _UNITS_NS if name.endswith(suffix)), None)
    if unit is not None:
        return unit
    # A date of this century: seconds have 10 digits, and each unit three more.
    sizes = ((10**11, NS_PER_S), (10**14, 1_000_000), (10**17, 1_000))
    return next((ns for limit, ns in sizes if abs(float(cell)) < limit), 1)


def _unix_ns(stamp: datetime) -> int:
    whole = int(stamp.replace(microsecond=0).timestamp())
    return whole * NS_PER_S + stamp.microsecond * 1000


def _number(cell: str) -> float:
    match = _NUMBER.search(cell[:LONGEST_CELL])
    return float(match.group()) if match is not None else np.nan


def _metered(device: int, readings: list[tuple[int, float, float]], columns: _Columns) -> tuple[Meter, list[Series]]:
    readings.sort(key=lambda reading: reading[0])
    t_ns = np.array([r[0] for r in readings], dtype=np.int64)
    domain = Domain("gpu", device)
    period = int(np.median(np.diff(t_ns)))
    channel = Channel(domain, "power", "power", "W", columns.scale, period, columns.sensor)
    series = [_series(channel, t_ns, np.array([r[1] for r in readings]))]
    counter = np.array([r[2] for r in readings])
    if np.isfinite(counter).sum() > 1:
        energy = Channel(domain, "energy", "counter", "J", columns.counter_scale, period, "nvml_energy_counter")
        series.insert(0, _series(energy, t_ns, counter))
    meter = Meter(domain, tuple(s.channel for s in series), "measured", "device", f"GPU {device}")
    return meter, series


def _series(channel: Channel, t_ns: IntArray, raw: FloatArray) -> Series:
    keep = np.isfinite(raw)
    return Series(channel, t_ns[keep], raw[keep], np.zeros(int(keep.sum()), dtype=np.int64))


def _events(t_ns: int, name: str, read: _Read) -> Iterator[Event]:
    if read.zoneless:
        message = f"times in {name} have no zone and are read as UTC; if the log was written elsewhere, give an offset"
        yield Event(t_ns, "info", "CLOCK_ASSUMED", "run", message)
    if read.impossible:
        message = f"{read.impossible} readings of {name} are left out: no device has such a power or such an index"
        yield Event(t_ns, "warning", "READINGS_LEFT_OUT", "run", message)


def renamed(recording: Recording, index: int) -> Recording:
    """Return a recording of one device as that of another index: a log without a device column is device 0."""
    domain = Domain("gpu", index)
    meter = recording.meters[0]
    channels = {c.key: replace(c, domain=domain) for c in meter.channels}
    return replace(
        recording,
        meters=(replace(meter, domain=domain, channels=tuple(channels.values()), model=f"GPU {index}"),),
        series=tuple(replace(s, channel=channels[s.channel.key]) for s in recording.series),
    )
