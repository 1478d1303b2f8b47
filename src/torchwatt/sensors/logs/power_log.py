"""Reads power logs of other programs: nvidia-smi, DCGM, Prometheus, amd-smi, xpu-smi, or a script."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from errno import EFBIG
from math import isnan
from pathlib import Path

import numpy as np

from torchwatt.core.errors import SensorError
from torchwatt.core.meter import Channel, Event, FloatArray, IntArray, Meter, Recording, Series
from torchwatt.core.terms import Domain
from torchwatt.sensors.logs.log_cards import (
    LogCard,
    check_single_series,
    count_lines_per_tick,
    parse_card,
    positions_in_tick,
    spread_over_second,
)
from torchwatt.sensors.logs.log_clock import LogClock, parse_zone
from torchwatt.sensors.logs.log_columns import (
    MAX_CARD_W,
    MAX_CELL_CHARS,
    Amount,
    CardReadings,
    LogColumns,
    LogQuantity,
    UnreadCells,
    is_no_reading,
    number_form,
    parse_amount,
    parse_counter,
    parse_series,
    power_scale,
)
from torchwatt.sensors.logs.log_layouts import LOG_A_CARD, LogRow, open_log, read_log_lines, read_log_rows
from torchwatt.sensors.nvml import ACCURACY, ACCURACY_SOURCE

MAX_DEVICE = 2**16
LARGEST_RAW = 1e18  # a counter of 64 bits in millijoules
MAX_LOG_CARDS = 4096
DATELESS = "dateless"  # key of a recording's `meta`: its times are times of day
ZONELESS = "zoneless"  # key of `meta`: its times are text without a zone, read as UTC
MAX_SURPLUS_SHARE = 0.02  # tolerated share of lines with too many cells, as two writers produce
_ELIGIBLE_SHARE = 0.9  # a power column with this share of the longest one's readings is eligible
# A last line without a line end may be incomplete.
_INCOMPLETE_LINE = "the last line was cut while it was written"


@dataclass(slots=True)
class _LogState:
    """State of reading one log file."""

    name: str
    clock: LogClock
    cards: dict[LogCard, CardReadings] = field(default_factory=dict)
    unread: int = 0  # lines with readings but without a valid time
    unread_time: str = ""  # the first of them
    rows: int = 0
    surplus: list[int] = field(default_factory=list)  # numbers of lines with more cells than columns
    left_out: list[str] = field(default_factory=list)
    unread_cells: UnreadCells = field(default_factory=UnreadCells)  # of the columns that are used


def read_power_log(path: str | os.PathLike[str], zone: str | None = None) -> Recording:
    """Read a power log as a recording with one meter for each card; its clock is unix time in nanoseconds.

    docs/power_logs.md lists the layouts, units and times that are read, and those that are refused. Meters are numbered
    by the cards' indices if the log has them, else in order of appearance; a card's fields in the log (index, uuid,
    bus_id, serial, host, name) are in the meter's facts. `meta` records whether times lacked a date or a zone.

    Args:
        path: The file.
        zone: IANA name of the zone of times without one, such as "Europe/Paris"; by default they are read as UTC, with
            an event.

    Raises:
        SensorError: The file cannot be read, is not a supported power log, exceeds 1 GiB, or has fewer than two
            readings of a card or a power outside the physical range.
        ConfigError: The zone is unknown.
    """
    path = Path(path)
    log = _LogState(path.name, LogClock(parse_zone(zone)))
    try:
        with open_log(path) as file:
            _read_rows(log, read_log_rows(read_log_lines(file), path.name))
    except SensorError:
        raise
    except OSError as error:
        fix = ": cut it to the time of the trace" if error.errno == EFBIG else ""
        raise SensorError(f"cannot read {path}: {error.strerror or error}{fix}") from error
    return _build_recording(log)


def _read_rows(log: _LogState, rows: Iterable[LogRow]) -> None:
    columns: LogColumns | None = None
    before: LogRow | None = None
    for row in rows:
        if row.columns is not None:
            columns = row.columns
        elif columns is not None:
            if row.ended or _is_complete(row, before):
                _read_row(log, columns, row)
            else:
                log.left_out.append(_INCOMPLETE_LINE)
            before = row
    if len(log.surplus) > MAX_SURPLUS_SHARE * log.rows:
        raise SensorError(
            f"{log.name}, line {log.surplus[0]}: more cells than columns: numbers with decimal commas need quotes, "
            "another separator than the comma, or a decimal point"
        )
    if log.clock.doubtful:
        raise SensorError(
            f"{log.name}: the date {log.clock.doubtful} may be day and month or month and day: write it as 2026-12-31"
        )


def _is_complete(row: LogRow, before: LogRow | None) -> bool:
    """Return whether a last line without a line end is complete, by comparison with the line before.

    Both must have as many cells, and last cells of one form (`number_form`); one without decimals or unit must also
    be at least as long as the one before.
    """
    if before is None or len(row.cells) != len(before.cells):
        return False
    mine, theirs = row.cells[-1].strip(), before.cells[-1].strip()
    return number_form(mine) == number_form(theirs) and (number_form(mine) != "" or len(mine) >= len(theirs))


def _read_row(log: _LogState, columns: LogColumns, row: LogRow) -> None:
    log.rows += 1
    if len(row.cells) > len(columns.names):
        log.surplus.append(row.number)
        return
    cells = row.cells
    if max(columns.time) >= len(cells):
        return
    time = " ".join(cells[place].strip() for place in columns.time)
    row_amounts = list(_row_amounts(columns, cells))
    if not row_amounts:
        return
    t_ns = log.clock.read(time, columns.time_unit)
    if t_ns is None:
        if any(parse_amount(cell) is not None for _, _, cell in row_amounts):
            log.unread += 1
            log.unread_time = log.unread_time or f"line {row.number} has {time[:MAX_CELL_CHARS]!r}"
        return
    for row_card, quantity, cell in row_amounts:
        readings = log.cards.get(row_card)
        if readings is None:
            if len(log.cards) >= MAX_LOG_CARDS:
                many = f"more than {MAX_LOG_CARDS} cards: the columns that name cards change from line to line"
                raise SensorError(f"{log.name}, line {row.number}: {many}")
            readings = log.cards[row_card] = CardReadings()
        _add_reading(log.name, readings, quantity, t_ns, cell, row.number)


def _row_amounts(columns: LogColumns, cells: Sequence[str]) -> Iterator[tuple[LogCard, LogQuantity, str]]:
    """Yield the card, quantity and cell of each power and energy of a row."""
    named = parse_card(tuple((kind, cells[place]) for kind, place in columns.cards.items() if place < len(cells)))
    if columns.metric is not None and columns.value is not None:
        if max(columns.metric, columns.value) < len(cells):
            metric = cells[columns.metric]
            quantity, labelled = parse_series(metric if "{" in metric else metric + "{}") or (None, LogCard())
            if quantity is not None:
                yield (labelled if labelled != LogCard() else named), quantity, cells[columns.value]
        return
    for place, quantity in columns.quantities:
        if place < len(cells):
            wide = columns.wide.get(place)
            yield (named if wide is None else replace(wide, host=wide.host or named.host)), quantity, cells[place]


def _add_reading(name: str, readings: CardReadings, quantity: LogQuantity, t_ns: int, cell: str, number: int) -> None:
    if quantity.kind == "counter":
        value = parse_counter(cell)
        if quantity.scale is not None and abs(value) < LARGEST_RAW:
            readings.values[quantity].append((t_ns, value))
        elif isnan(value):
            _add_unread(readings, quantity, cell, number)
        return
    reading = parse_amount(cell)
    if reading is None:
        _add_unread(readings, quantity, cell, number)
        return
    power_w = _read_power_w(name, quantity, reading, cell, number)
    if power_w is None:
        if quantity.scale is not None:  # else it may be a column of temperatures or shares
            _add_unread(readings, quantity, cell, number)
        return
    if not 0 <= power_w <= MAX_CARD_W:
        readings.absurd.setdefault(quantity, f"{_cell_location(quantity, cell, number)} is {power_w:.6g} W")
        return
    if reading.doubtful and power_w * 1000 <= MAX_CARD_W:
        readings.doubtful.setdefault(quantity, _cell_location(quantity, cell, number))
    elif "," in cell:
        readings.commas.add(quantity)
    readings.values[quantity].append((t_ns, power_w))


def _read_power_w(name: str, quantity: LogQuantity, reading: Amount, cell: str, number: int) -> float | None:
    """Return the power of a cell in watts; None if its unit is not one of power."""
    scale = power_scale(reading.unit) if reading.unit else quantity.scale
    if scale is None and not reading.unit:
        where = _cell_location(quantity, cell, number)
        raise SensorError(f"{name}, {where} names no unit: write it into the column's name, such as [W]")
    return None if scale is None else reading.value * scale


def _add_unread(readings: CardReadings, quantity: LogQuantity, cell: str, number: int) -> None:
    if not is_no_reading(cell):
        readings.unread[quantity].add(1, _cell_location(quantity, cell, number))


def _cell_location(quantity: LogQuantity, cell: str, number: int) -> str:
    return f"line {number}: {cell.strip()[:MAX_CELL_CHARS]!r} in {quantity.name[:MAX_CELL_CHARS]!r}"


# From readings to meters


@dataclass(frozen=True, slots=True)
class _CardSeries:
    card: LogCard
    power: tuple[LogQuantity, IntArray, FloatArray] | None
    counter: tuple[LogQuantity, IntArray, FloatArray] | None
    ordered: bool = False  # identified only by the position of its lines in a tick


def _build_recording(log: _LogState) -> Recording:
    merged = _merge_by_uuid(log.cards).items()
    cards = [card_series for key, readings in merged for card_series in _card_series(log, key, readings)]
    cards = [card_series for card_series in cards if card_series.power is not None or card_series.counter is not None]
    if not cards:
        raise SensorError(_no_readings_message(log))
    meters, series = [], []
    for number, card_series in _number_cards(cards):
        meter, meter_series = _build_meter(number, card_series)
        meters.append(meter)
        series += meter_series
    start_ns = min(int(channel_series.t_ns[0]) for channel_series in series)
    meta = {DATELESS: log.clock.dateless, ZONELESS: log.clock.zoneless}
    events = tuple(_log_events(start_ns, log, cards))
    return Recording(tuple(meters), tuple(series), events=events, anchors=((start_ns, start_ns),), meta=meta)


def _no_readings_message(log: _LogState) -> str:
    if log.unread:
        return f"{log.name}: no time can be read: {log.unread_time}: write times as 2026-12-31T23:59:59.500Z"
    if log.unread_cells.count:
        return f"{log.name}, {log.unread_cells.first} is no power: write a number such as 75.0, or 75.0 W"
    return f"{log.name} has fewer than two readings with a time and a power: {LOG_A_CARD}"


def _merge_by_uuid(cards: Mapping[LogCard, CardReadings]) -> Mapping[LogCard, CardReadings]:
    """Merge the readings of cards with equal uuids, whatever their other fields."""
    by_uuid: dict[str, LogCard] = {}
    merged: dict[LogCard, CardReadings] = {}
    for key, readings in cards.items():
        first_key = by_uuid.setdefault(key.uuid, key) if key.uuid else key
        if first_key in merged:
            for quantity, values in readings.values.items():
                merged[first_key].values[quantity] += values
            merged[first_key].absurd |= readings.absurd
            for quantity, cells in readings.unread.items():
                merged[first_key].unread[quantity].add(cells.count, cells.first)
        else:
            merged[first_key] = readings
    return merged


def _card_series(log: _LogState, key: LogCard, readings: CardReadings) -> Iterator[_CardSeries]:
    """Yield each card's power and counter; unnamed cards are separated by the position of their lines in a tick."""
    power = _best_power(log, readings)
    counted = ((q, values) for q, values in readings.values.items() if q.kind == "counter" and len(values) > 1)
    counters = [(q, *_arrays(values)) for q, values in counted]
    counter = counters[0] if counters else None
    used = {each[0] for each in (power, counter) if each is not None}
    for quantity, cells in readings.unread.items():
        if quantity in used or not used:
            log.unread_cells.add(cells.count, cells.first)
    if power is None:
        yield _CardSeries(key, None, counter and _sort_by_time(counter))
        return
    quantity, t_ns, power_w = power
    count = 1 if key.named else count_lines_per_tick(t_ns, power_w)
    if count > 1:
        place = positions_in_tick(t_ns, count)
        if np.bincount(place[place >= 0], minlength=count).min() < 2:
            raise SensorError(f"{log.name} has fewer than two readings of one of its {count} cards: {LOG_A_CARD}")
        for number in range(count):
            part = _sort_by_time((quantity, t_ns[place == number], power_w[place == number]))
            yield _CardSeries(replace(key, index=str(number)), part, None, ordered=True)
        return
    check_single_series(log.name, key, t_ns, power_w)
    if log.clock.whole_seconds:
        t_ns = spread_over_second(t_ns)
    yield _CardSeries(key, _sort_by_time((quantity, t_ns, power_w)), counter and _sort_by_time(counter))


def _best_power(log: _LogState, readings: CardReadings) -> tuple[LogQuantity, IntArray, FloatArray] | None:
    """Return a card's best power series: the lowest rank among columns with 90 % of the longest one's readings.

    Raises:
        SensorError: A cell of that column is outside the physical range or ambiguous.
    """
    counts = {q: len(readings.values.get(q, ())) for q in {*readings.values, *readings.absurd} if q.kind == "power"}
    if not counts:
        return None
    counts |= {q: counts[q] + 1 for q in readings.absurd}
    longest = max(counts.values())
    best = min((q for q, count in counts.items() if count >= _ELIGIBLE_SHARE * longest), key=lambda q: (q.rank, q.name))
    if best in readings.absurd:
        raise SensorError(
            f"{log.name}, {readings.absurd[best]}, and no card draws less than 0 or more than {MAX_CARD_W:.0f} W: "
            "name its unit in the header or the cell (W, mW, kW), or remove the line"
        )
    if best in readings.doubtful and best not in readings.commas:
        raise SensorError(f"{log.name}, {readings.doubtful[best]} may be thousands or decimals: write a decimal point")
    values = readings.values[best]
    return (best, *_arrays(values)) if len(values) > 1 else None


def _arrays(values: Sequence[tuple[int, float]]) -> tuple[IntArray, FloatArray]:
    t_ns, numbers = zip(*values, strict=True)
    return np.array(t_ns, dtype=np.int64), np.array(numbers, dtype=np.float64)


def _sort_by_time(readings: tuple[LogQuantity, IntArray, FloatArray]) -> tuple[LogQuantity, IntArray, FloatArray]:
    quantity, t_ns, values = readings
    order = np.argsort(t_ns, kind="stable")
    return quantity, t_ns[order], values[order]


def _number_cards(cards: Sequence[_CardSeries]) -> Iterator[tuple[int, _CardSeries]]:
    """Number cards by their indices if all have different ones, else in order of appearance."""
    indices = [card_series.card.index for card_series in cards]
    if len(set(indices)) == len(cards) and all(index and int(index) < MAX_DEVICE for index in indices):
        yield from sorted(zip(map(int, indices), cards, strict=True), key=lambda pair: pair[0])
    else:
        yield from enumerate(cards)


def _build_meter(number: int, card_series: _CardSeries) -> tuple[Meter, list[Series]]:
    domain = Domain("gpu", number)
    series = []
    if card_series.counter is not None:
        quantity, t_ns, raw = card_series.counter
        scale = quantity.scale or 1.0
        channel = Channel(domain, "energy", "counter", "J", scale, _period(t_ns), quantity.sensor)
        series.append(_series(channel, t_ns, raw))
    if card_series.power is not None:
        quantity, t_ns, power_w = card_series.power
        channel = Channel(domain, "power", "power", "W", 1.0, _period(t_ns), quantity.sensor)
        series.append(_series(channel, t_ns, power_w))
    facts = tuple((item.name, value) for item in fields(LogCard) if (value := getattr(card_series.card, item.name)))
    model = card_series.card.name or f"GPU {card_series.card.index or number}"
    meter = Meter(domain, tuple(s.channel for s in series), "measured", "device", model, facts=facts)
    if all(s.channel.sensor.startswith("nvml") for s in series):
        meter = replace(meter, vendor="NVIDIA", accuracy_rel=ACCURACY, accuracy_source=ACCURACY_SOURCE)
    return meter, series


def _period(t_ns: IntArray) -> int:
    return max(int(np.median(np.diff(t_ns))), 1)


def _series(channel: Channel, t_ns: IntArray, raw: FloatArray) -> Series:
    return Series(channel, t_ns, raw, np.zeros(len(t_ns), dtype=np.int64))


def _log_events(t_ns: int, log: _LogState, cards: Sequence[_CardSeries]) -> Iterator[Event]:
    if log.clock.zoneless:
        message = (
            f"times in {log.name} have no zone and are read as UTC; if the log was written elsewhere, give its zone"
        )
        yield Event(t_ns, "info", "CLOCK_ASSUMED", "run", message)
    if log.clock.set_back:
        message = f"the clock of {log.name} went back by an hour, as summer time ends: times are read as continuous"
        yield Event(t_ns, "info", "CLOCK_SET_BACK", "run", message)
    if log.unread:
        message = f"{log.unread} lines of {log.name} have no readable time ({log.unread_time}): discarded"
        yield Event(t_ns, "warning", "READINGS_LEFT_OUT", "run", message)
    if log.unread_cells.count:
        unread = f"{log.unread_cells.count} cells of {log.name} are no power (the first, {log.unread_cells.first})"
        yield Event(t_ns, "warning", "READINGS_LEFT_OUT", "run", f"{unread}: discarded")
    if log.surplus:
        surplus = f"{len(log.surplus)} lines of {log.name} (the first: {log.surplus[0]})"
        message = f"{surplus} have more cells than columns: discarded"
        yield Event(t_ns, "warning", "READINGS_LEFT_OUT", "run", message)
    for reason in log.left_out:
        yield Event(t_ns, "info", "READINGS_LEFT_OUT", "run", f"{log.name}: {reason}: discarded")
    if any(card_series.ordered for card_series in cards):
        message = f"no column of {log.name} identifies its {len(cards)} cards: taken by their order in each tick"
        yield Event(t_ns, "info", "CARDS_BY_ORDER", "run", message)
