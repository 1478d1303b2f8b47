"""The layouts of power logs: tables with any separator, samples of Prometheus, nvidia-smi's reports."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

from torchwatt.core.errors import SensorError
from torchwatt.disk.path_safety import bounded_lines, open_user_path
from torchwatt.sensors.logs.log_clock import LogClock
from torchwatt.sensors.logs.log_columns import MAX_CELL_CHARS, LogColumns, classify_columns, parse_amount, power_scale

_DETECTION_BYTES = 1 << 16  # bytes
MAX_LOG_BYTES = 1 << 30  # a month at ten readings a second
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MAX_STRANGE_SHARE = 0.1  # a file with a larger share of characters that do not occur in text is refused
_SPACES = "\t\n\r\f\v\x1b"  # and the escape sequences of terminals


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line without its end: `number` counts from 1, `ended` is False where the file stops before a line end."""

    number: int
    text: str
    ended: bool


def open_log(path: Path) -> TextIO:
    """Open a log as text, with the encoding detected from its first bytes; invalid bytes become `\ufffd`.

    Raises:
        SensorError: The file is not text.
        OSError: The file is not a regular file, exceeds 1 GiB, or cannot be read.
    """
    file = open_user_path(path, MAX_LOG_BYTES)
    try:
        start = file.read(_DETECTION_BYTES)
        encoding = _detect_encoding(start)
        _check_text(start.decode(encoding, "replace"), path.name)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return TextIOWrapper(file, encoding=encoding, errors="replace")


def read_log_lines(file: TextIO) -> Iterator[LogLine]:
    """Yield the lines of a log without NUL bytes, which a crash may leave in it.

    Raises:
        OSError: A line is too long.
    """
    for number, line in enumerate(bounded_lines(file), 1):
        yield LogLine(number, line.rstrip("\n").replace("\0", ""), line.endswith("\n"))


def _detect_encoding(start: bytes) -> str:
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    # In UTF-16 every second byte of digits and names is NUL.
    even, odd = start[0::2].count(0), start[1::2].count(0)
    if len(start) >= 4 and max(even, odd) > 0.4 * (len(start) // 2) and min(even, odd) < 0.1 * max(even, odd):
        return "utf-16-be" if even > odd else "utf-16-le"
    return "utf-8"


def _check_text(text: str, name: str) -> None:
    text = text.replace("\0", "")
    strange = sum(char == "�" or (char < " " and char not in _SPACES) for char in text)
    if strange > max(_MAX_STRANGE_SHARE * len(text), 1):
        raise SensorError(f"{name} is not text: give a power log as CSV, as nvidia-smi --format=csv writes it")


LOG_A_CARD = "log the cards with nvidia-smi --query-gpu=timestamp,index,uuid,power.draw --format=csv -lms 100"
LOG_AMD = "log the cards with amd-smi monitor --power-usage --watch 1 --csv"
_MAX_COLUMNS = 1000  # rows without a header and with more columns are not logs
_LAYOUT_LINES = 60  # lines from which the layout is detected
_SHOWN_NAMES = 20  # names of columns in an error
_MAX_JSON_CHARS = 1 << 26  # characters
_REPORT = (
    "timestamp",
    "name",
    "uuid",
    "serial",
    "pci.bus_id",
    "power.draw.instant",
    "power.draw",
    "power.draw.average",
)
_REPORT_NAMES = {
    "product name": "name", "gpu uuid": "uuid", "serial number": "serial", "power draw": "power.draw",
    "average power draw": "power.draw.average", "instantaneous power draw": "power.draw.instant",
    "product_name": "name", "uuid": "uuid", "serial": "serial", "power_draw": "power.draw",
    "average_power_draw": "power.draw.average", "instant_power_draw": "power.draw.instant",
}  # fmt: skip
_SAMPLE = re.compile(
    r"([A-Za-z_:][\w:]*(?:\{.*\})?)\s+([-+\w.]+)(?:\s+(-?[\d.]+(?:e[-+]?\d+)?))?\s*(?:#.*)?", re.IGNORECASE
)
# Outputs that are not power logs of cards: pattern of the first lines, cause and remedy for the message.
_REFUSED: tuple[tuple[str, str, str], ...] = (
    (r"\|\s*NVIDIA-SMI\s", "is the screen of nvidia-smi, which has no columns", LOG_A_CARD),
    (r"^#.*\bgpu\s+pid\b", "is of nvidia-smi pmon, which lists processes and no power", LOG_A_CARD),
    (r"^#\s*gpu\s.*\bpwr\b", "is of nvidia-smi dmon without times", "add -o DT"),
    (r"^#\s*gpu\s", "is of nvidia-smi dmon without power", "add -s p -o DT"),
    (r"^#\s*Entity\b", "is of dcgmi dmon, which writes no times", LOG_A_CARD),
    (r"^GPU\[\d+\]\s*:|ROCm System Management", "is the screen of rocm-smi, which has no times", LOG_AMD),
    (r"\b(PkgWatt|CorWatt|Busy%|Bzy_MHz)\b", "is of turbostat, which meters the CPU and not the cards", LOG_A_CARD),
    (r"\bUser\s+Nice\s+Sys\s+Idle\b", "is of powerstat, which meters the whole machine", LOG_A_CARD),
    (r"\b(energy_consumed|emissions_rate)\b", "is codecarbon's: totals, one row a run, and no readings", LOG_A_CARD),
    (r"\bConsumedEnergy(Raw)?\b", "is Slurm's accounting: one total a job, and no readings", LOG_A_CARD),
    (r"Instantaneous power reading|DCMI", "is of ipmitool, which meters the node and not the cards", LOG_A_CARD),
    (r"power/energy-\w+/", "is of perf stat, which meters the CPU and not the cards", LOG_A_CARD),
    (r"\*\*\* Sampled system activity", "is of powermetrics, which meters the whole chip", LOG_A_CARD),
)


@dataclass(frozen=True, slots=True)
class LogRow:
    """Cells of one line; a header line has `columns`, which apply to the following rows."""

    number: int
    cells: Sequence[str]
    columns: LogColumns | None = None
    ended: bool = True


def read_log_rows(lines: Iterator[LogLine], name: str) -> Iterator[LogRow]:
    """Yield the header and the rows of a log in any supported layout.

    Raises:
        SensorError: The layout is not supported; the message names it and the remedy.
    """
    beginning = list(islice(lines, _LAYOUT_LINES))
    text = "\n".join(line.text for line in beginning)
    lines = chain(beginning, lines)
    if re.search(r"^\s*<(\?xml|nvidia_smi_log|!DOCTYPE)", text):
        return _xml_rows(lines)
    if "NVSMI LOG" in text:
        return _report_rows(lines)
    for pattern, cause, fix in _REFUSED:
        if re.search(pattern, text, re.MULTILINE):
            raise SensorError(f"{name} {cause}: {fix}")
    if re.search(r"^# (HELP|TYPE) |^[A-Za-z_:][\w:]*\{.*\} ", text, re.MULTILINE):
        return _sample_rows(lines, name)
    if text.lstrip().startswith(("{", "[")):
        return _json_rows(lines, name)
    return _table_rows(lines, beginning, name)


# Tables


def _splitter(delimiter: str) -> Callable[[str], list[str]]:
    if delimiter == " ":
        return str.split
    if delimiter == ", ":
        return lambda text: re.split(r",\s+", text)

    def split(text: str) -> list[str]:
        if '"' not in text:
            return text.split(delimiter)
        try:
            return next(csv.reader([text], delimiter=delimiter, skipinitialspace=True), [])
        except csv.Error:  # a cell of more than 128 KiB, which no log has
            return [text]

    return split


_DELIMITERS = (",", ";", "\t", "|", " ")


def _table_rows(lines: Iterator[LogLine], beginning: Sequence[LogLine], name: str) -> Iterator[LogRow]:
    """Read a table; the header may follow other lines, and later headers may change the columns."""
    header = next((header for line in beginning if (header := _parse_header(line.text)) is not None), None)
    columns, delimiter = header or _infer_header(beginning, name)
    started = header is None
    if started:
        yield LogRow(0, (), columns)
    split = _splitter(delimiter)
    for line in lines:
        cells = split(line.text.strip().strip("|") if delimiter == "|" else line.text)
        renewed = _repeated_header(cells)
        if renewed is not None:
            columns, started = renewed, True
            yield LogRow(line.number, cells, renewed)
        elif started and line.text.strip():
            yield LogRow(line.number, _fit_cells(line.text, cells, columns, delimiter), ended=line.ended)


def _repeated_header(cells: Sequence[str]) -> LogColumns | None:
    """Return the columns of a header line (its first cell has no digit); None for other lines."""
    if len(cells) < 2 or any(char.isdigit() for char in cells[0]):
        return None
    return classify_columns([cell.lstrip("# ") for cell in cells])


def _fit_cells(text: str, cells: list[str], columns: LogColumns, delimiter: str) -> list[str]:
    """Split a line with decimal commas, or with a time of two words, into as many cells as the header has."""
    column_count = len(columns.names)
    while len(cells) > column_count and not cells[-1].strip():
        cells.pop()
    if len(cells) > column_count and delimiter == ",":
        resplit = _splitter(", ")(text)
        return resplit if len(resplit) == column_count else cells
    if len(cells) == column_count + 1 and delimiter == " " and len(columns.time) == 1:
        place = columns.time[0]
        return [*cells[:place], f"{cells[place]} {cells[place + 1]}", *cells[place + 2 :]]
    return cells


def _parse_header(text: str) -> tuple[LogColumns, str] | None:
    plain = text.strip().lstrip("#").strip().strip("|")
    if not plain or len(plain) > 1 << 20:
        return None
    for delimiter in _DELIMITERS:
        if delimiter in plain:
            columns = classify_columns(_splitter(delimiter)(plain))
            if columns is not None:
                return columns, delimiter
    return None


def _infer_header(beginning: Sequence[LogLine], name: str) -> tuple[LogColumns, str]:
    """Infer the columns of a log without a header: a time, and one cell with a unit of power."""
    rows = [line for line in beginning if line.text.strip()]
    for line in rows[:1]:
        for delimiter in _DELIMITERS[:4]:
            table = [_splitter(delimiter)(row.text) for row in rows]
            names = _infer_names([cells for cells in table if len(cells) == len(table[0])])
            columns = classify_columns(names) if names else None
            if columns is not None:
                return columns, delimiter
        shown = ", ".join(cell.strip()[:MAX_CELL_CHARS] for cell in _splitter(",")(line.text)[:_SHOWN_NAMES])
        raise SensorError(_missing_column_message(name, line.text, shown))
    raise SensorError(f"{name} has no column of time (t_ns, t_unix_s, timestamp); its columns are: none")


def _missing_column_message(name: str, text: str, shown: str) -> str:
    begins = (
        LogClock().read(text.split(",", maxsplit=1)[0].split(";", maxsplit=1)[0].split("\t", maxsplit=1)[0], "")
        is not None
    )
    if begins and any(char in text for char in ",;\t"):
        return (
            f"{name} has no header line, and no cell has a unit of power: put a header on top, "
            "such as timestamp,index,power.draw [W]"
        )
    cells = [part for delimiter in ",;\t" if delimiter in text for part in text.split(delimiter)] or [text]
    has_time = any(classify_columns([cell, "power_w"]) is not None for cell in cells[:_MAX_COLUMNS])
    lacking = "power (power_w, power.draw [W])" if has_time else "time (t_ns, t_unix_s, timestamp)"
    return f"{name} has no column of {lacking}; its columns are: {shown or 'none'}"


def _infer_names(table: Sequence[Sequence[str]]) -> list[str]:
    """Infer column names of rows without a header from their cells; [] without a time or exactly one power column."""
    if not table or len(table[0]) > _MAX_COLUMNS:
        return []
    names = [""] * len(table[0])
    for place in range(len(names)):
        cells = [row[place].strip() for row in table]
        if (
            "timestamp" not in names
            and LogClock().read(cells[0], "") is not None
            and re.search(r"\d{2}:\d{2}|\d{10}", cells[0])
        ):
            names[place] = "timestamp"
        elif any(re.fullmatch(r"(GPU|MIG)-[0-9A-Za-z-]+", cell) for cell in cells):
            names[place] = "uuid"
        elif any(re.fullmatch(r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9]", cell) for cell in cells):
            names[place] = "pci.bus_id"
        elif any(
            (quantity := parse_amount(cell)) is not None and quantity.unit and power_scale(quantity.unit)
            for cell in cells
        ):
            names[place] = "power"
        elif _counts_cards(cells):
            names[place] = "index"
    return names if names.count("power") == 1 and "timestamp" in names else []


def _counts_cards(cells: Sequence[str]) -> bool:
    """Return whether the cells cycle through indices of several cards: 0, 1, 2, 0, 1, 2."""
    count = len(set(cells))
    return 2 <= count < len(cells) and all(cell == str(place % count) for place, cell in enumerate(cells))


# Prometheus


def _sample_rows(lines: Iterator[LogLine], name: str) -> Iterator[LogRow]:
    """Read samples in the text format of Prometheus (times in ms) or OpenMetrics (times in s)."""
    yield LogRow(0, (), classify_columns(("timestamp", "metric", "value")))
    for line in lines:
        match = _SAMPLE.fullmatch(line.text.strip())
        if match is None or line.text.startswith("#") or "power" not in match.group(1).lower():
            continue
        if match.group(3) is None:
            raise SensorError(
                f"{name}, line {line.number}: samples of Prometheus without times are one instant: export the series "
                "over the run's time (query_range, or Grafana's CSV)"
            )
        yield LogRow(line.number, (match.group(3), match.group(1), match.group(2)))


def _json_rows(lines: Iterator[LogLine], name: str) -> Iterator[LogRow]:
    """Read a response of Prometheus's query_range."""
    yield LogRow(0, (), classify_columns(("timestamp", "metric", "value")))
    text, size = [], 0
    for line in lines:
        size += len(line.text)
        if size > _MAX_JSON_CHARS:
            raise SensorError(f"{name} has more than {_MAX_JSON_CHARS} characters of JSON: export it as CSV")
        text.append(line.text)
    try:
        series = json.loads("\n".join(text))["data"]["result"]
        for sampled in series:
            labels = ",".join(f'{key}="{value}"' for key, value in sampled["metric"].items())
            for t_s, value in sampled["values"]:
                yield LogRow(1, (str(t_s), f"{{{labels}}}", str(value)))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SensorError(f"{name} is JSON, but not a response of Prometheus's query_range: {LOG_A_CARD}") from error


# nvidia-smi -q


def _report_rows(lines: Iterator[LogLine]) -> Iterator[LogRow]:
    """Read reports of nvidia-smi -q, repeated with -l."""
    yield LogRow(0, (), classify_columns(_REPORT))
    stamp, section, number = "", "", 0
    values: dict[str, str] = {}
    for line in lines:
        number = line.number
        key, colon, value = line.text.partition(" : ")
        plain = key.strip().lower()
        if re.match(r"GPU [0-9A-Fa-f]{4,8}:", line.text) or plain == "timestamp":
            yield from _report_row(number, stamp, values)
            values = {"pci.bus_id": line.text.split()[1]} if plain != "timestamp" else {}
            stamp = value.strip() if plain == "timestamp" else stamp
        elif not colon:
            section = plain
        elif plain in _REPORT_NAMES and "module" not in section and "limit" not in plain:
            values.setdefault(_REPORT_NAMES[plain], value.strip())
    yield from _report_row(number, stamp, values)


def _xml_rows(lines: Iterator[LogLine]) -> Iterator[LogRow]:
    """Read reports of nvidia-smi -q -x, which have one element per line."""
    yield LogRow(0, (), classify_columns(_REPORT))
    stamp, section = "", ""
    values: dict[str, str] = {}
    for line in lines:
        for tag, value in re.findall(r"<(/?[\w]+)[^>]*>([^<]*)", line.text[: 1 << 14]):
            if tag == "timestamp":
                stamp = value.strip()
            elif tag == "gpu":
                bus = re.search(r'id="([^"]*)"', line.text)
                values = {"pci.bus_id": bus.group(1)} if bus else {}
            elif tag == "/gpu":
                yield from _report_row(line.number, stamp, values)
                values = {}
            elif tag.endswith("power_readings"):
                section = "" if tag.startswith("/") else tag
            elif tag in _REPORT_NAMES and "module" not in section:
                values.setdefault(_REPORT_NAMES[tag], value.strip())


def _report_row(number: int, stamp: str, values: dict[str, str]) -> Iterator[LogRow]:
    if any(name.startswith("power") for name in values):
        yield LogRow(number, tuple(stamp if name == "timestamp" else values.get(name, "") for name in _REPORT))
