"""Checks curves: power is the slope of energy, the last point the device's energy, steps and hours are differences."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import cast

from torchwatt.audit.bundle_limits import MAX_FILE_BYTES, PARQUET_LIMITS, max_rows
from torchwatt.audit.cell_codec import LARGEST_NUMBER
from torchwatt.audit.schema import TABLE_BY_NAME, Value
from torchwatt.audit.verification.bundle_facts import BundleFacts, CurveFact, WindowFact, number, text
from torchwatt.audit.verification.finding import Findings
from torchwatt.audit.verification.table_reader import TableChunk, is_same_number, out_of_bounds, read_chunks
from torchwatt.disk.path_safety import open_untrusted

SAMPLE = TABLE_BY_NAME["sample"]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CURVE_REL = 1e-9
POINTS = 1 << 16


def sample_chunks(path: Path, findings: Findings, *, newer: bool) -> Iterator[TableChunk]:
    """Yield the samples; none, with a note, where they are Parquet and pyarrow is not installed."""
    if path.suffix != ".parquet":
        yield from read_chunks(path, SAMPLE, findings, newer)
        return
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        findings.notes.append(f"{path.name}: only its hash was checked, its contents need pyarrow")
        return
    try:
        with open_untrusted(path, MAX_FILE_BYTES) as opened, pq.ParquetFile(opened, **PARQUET_LIMITS) as file:
            if file.metadata.num_rows > max_rows(os.fstat(opened.fileno()).st_size):
                findings.add("FORM", path.name, "more rows than its bytes can hold", found=file.metadata.num_rows)
                return
            yield from _parquet(file, path.name, findings)
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        findings.add("FORM", path.name, f"cannot be read: {error}")


def _parquet(file: object, name: str, findings: Findings) -> Iterator[TableChunk]:
    import pyarrow.parquet as pq

    from torchwatt.audit.sample_table import arrow_schema

    parquet = cast("pq.ParquetFile", file)
    expected_schema, file_schema = arrow_schema(), parquet.schema_arrow
    if not file_schema.equals(expected_schema):
        findings.add(
            "FORM", name, "other columns or types", expected=_types(expected_schema), found=_types(file_schema)
        )
        return
    first_row = 1
    for batch in parquet.iter_batches(POINTS):
        batch.validate(full=True)  # indices that lead out of their dictionary, text that is no UTF-8
        chunk = TableChunk(list(range(first_row, first_row + batch.num_rows)), batch.to_pydict(), set())
        _check(chunk, name, findings)
        yield chunk
        first_row += batch.num_rows


def _types(schema: object) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in cast("Sequence[object]", schema))  # type: ignore[attr-defined]


EDGE_NS = 1_000_000  # by which a curve may begin before its run and end after it
# A meter that said nothing for so long, or nothing usable and no joules, leaves the power of that time empty; any other
# hole is a cell that is missing.
SILENCE_NS = 500_000_000


def _check(chunk: TableChunk, file: str, findings: Findings) -> None:
    """Check typed values: present, finite, in bounds, a word of the column."""
    for column in SAMPLE.columns:
        values = chunk.columns[column.name]
        wrong: dict[Value, str] = {}
        for value in set(values):
            if value is None and column.required:
                wrong[value] = "is required and empty"
            elif isinstance(value, float) and not abs(value) <= LARGEST_NUMBER:
                wrong[value] = "is not finite, or larger than any quantity of a run"
            elif value is not None and (fault := out_of_bounds(value, str(value), column)) is not None:
                wrong[value] = fault[1]
        for row, value in zip(chunk.rows, values, strict=True) if wrong else ():
            if value in wrong:
                chunk.bad.add(row)
                findings.add("CELL", file, wrong[value], row=row, column=column.name, found=value)


class SampleChecks:
    """Checks the samples chunk by chunk, device after device."""

    def __init__(self, file: str, facts: BundleFacts, findings: Findings) -> None:
        self.file = file
        self.facts = facts
        self.findings = findings
        self.device = ""
        self.last: tuple[int, int, float] | None = None  # row, t_ns, energy_j
        self.first_ns = 0
        self.ends: dict[str, tuple[int, int, int, float]] = {}  # first_ns, last_ns, row, energy_j
        self.silences: dict[str, list[tuple[int, int]]] = {}
        self.steps = _StepEnergies(facts)
        self.spread = _Percentiles(facts, findings)
        facts.sample_file = file

    def check(self, chunk: TableChunk) -> None:
        """Check the slope from point to point."""
        names = ("device_id", "t_ns", "power_w", "energy_j")
        points = zip(chunk.rows, *(chunk.columns[name] for name in names), strict=True)
        self._check_provenance(chunk)
        for row, device, t_ns, power_w, energy_j in points:
            if row in chunk.bad:
                self.facts.broken.add("sample")
                continue
            if device != self.device:
                self._begin(str(device))
                self.facts.curves[self.device] = CurveFact(cast("int", t_ns))
            self._point(row, cast("int", t_ns), cast("float | None", power_w), cast("float", energy_j))

    def _check_provenance(self, chunk: TableChunk) -> None:
        """Check that a curve has its device's provenance."""
        pairs = zip(chunk.columns["device_id"], chunk.columns["provenance"], strict=True)
        wrong = {
            (name, provenance): expected
            for name, provenance in set(pairs)
            if (expected := text(self.facts.devices.get(str(name), {}), "provenance")) and provenance != expected
        }
        if not wrong or "device" in self.facts.broken:
            return
        rows = zip(chunk.rows, chunk.columns["device_id"], chunk.columns["provenance"], strict=True)
        for row, name, provenance in rows:
            if (name, provenance) in wrong and row not in chunk.bad:
                self.findings.add(
                    "KNOWN", self.file, f"is not that of {name} in device.csv", row=row, column="provenance",
                    expected=wrong[name, provenance], found=provenance,
                )  # fmt: skip

    def _begin(self, device: str) -> None:
        self._end()
        self.device, self.last = device, None
        self.steps.begin()

    def _end(self) -> None:
        if self.last is not None:
            row, t_ns, energy_j = self.last
            self.ends[self.device] = (self.first_ns, t_ns, row, energy_j)
            self.steps.end(self.device, energy_j)
            curve = self.facts.curves[self.device]
            curve.last_ns = t_ns
            curve.usual_ns = round((number(self.facts.run, "sample_interval_p99_s") or 0.0) * 1e9)
            if not -EDGE_NS <= curve.first_ns <= t_ns <= self.facts.duration_s() * 1e9 + EDGE_NS:
                run_ns = f"0 to {self.facts.duration_s() * 1e9:.0f}"
                self._report(row, "t_ns", "the curve does not lie in the run", run_ns, f"{curve.first_ns} to {t_ns}")

    def _point(self, row: int, t_ns: int, power_w: float | None, energy_j: float) -> None:
        expected: float | None = None
        if self.last is None:
            self.first_ns = t_ns
            if energy_j != 0:
                self._report(row, "energy_j", "a curve begins at 0", 0.0, energy_j)
        else:
            _, before_ns, before_j = self.last
            if energy_j < before_j:
                self._report(row, "energy_j", "a curve loses no energy", f"at least {before_j!r}", energy_j)
            expected = (energy_j - before_j) / ((t_ns - before_ns) / 1e9) if t_ns > before_ns else None
        step_ns = t_ns - self.last[1] if self.last else 0
        if power_w is None and (step_ns >= SILENCE_NS or expected == 0) and self.last is not None:
            self.silences.setdefault(self.device, []).append((self.last[1], t_ns))
        elif not _agree(expected, power_w, energy_j, step_ns):
            self._report(row, "power_w", "is not the slope of energy_j", expected, power_w)
        if self.last is not None:
            self._remember(row, step_ns, energy_j - self.last[2], silent=power_w is None)
        self.steps.point(self.last, t_ns, energy_j)
        self.last = (row, t_ns, energy_j)

    def _remember(self, row: int, step_ns: int, step_j: float, *, silent: bool) -> None:
        curve = self.facts.curves[self.device]
        self.spread.add(step_ns)
        if silent:
            curve.silent_ns += step_ns
            return
        if step_ns > curve.hole_ns:
            curve.hole_ns, curve.hole_row = step_ns, row
        if step_ns > 0:
            curve.largest_j = max(curve.largest_j, step_j)
            curve.least_w = min(curve.least_w, step_j / step_ns * 1e9)
            curve.most_w = max(curve.most_w, step_j / step_ns * 1e9)

    def _report(self, row: int, column: str, reason: str, expected: object, actual: object) -> None:
        self.findings.add("SAMPLE", self.file, reason, row=row, column=column, expected=expected, found=actual)

    def finish(self) -> None:
        """Compare the ends of the curves with the devices, and the steps with both."""
        self._end()
        if self.facts.broken & {"sample", "device"}:
            return
        self.spread.finish()
        for name, cells in self.facts.devices.items():
            energy_j = number(cells, "energy_j")
            if (
                name in self.ends
                and energy_j is not None
                and not is_same_number(energy_j, self.ends[name][3], rel=CURVE_REL)
            ):
                place = f"device.csv row {self.facts.device_rows[name]} column energy_j"
                self._report(
                    self.ends[name][2], "energy_j", f"the last point is not {place}", energy_j, self.ends[name][3]
                )
            if name not in self.ends and cells["counted"]:
                self.findings.notes.append(f"{self.file} has no curve of {name}")
        if "window" not in self.facts.broken:
            self._steps()

    def _saw(self, device: str, start_ns: int, end_ns: int) -> bool:
        """Return whether a device was metered throughout a stretch."""
        first_ns, last_ns, _, _ = self.ends[device]
        quiet = any(lo < end_ns and hi > start_ns for lo, hi in self.silences.get(device, ()))
        return first_ns <= start_ns and end_ns <= last_ns and not quiet

    def _is_measured(self, device: str, window: WindowFact) -> bool:
        """Return whether a device was metered throughout a step and its meter moved.

        Else the step's joules are unknown.
        """
        modelled = self.facts.devices[device]["provenance"] == "modelled"
        moved = modelled or device not in self.steps.at or self.steps.energy_j(window.row, (device,)) > 0
        return moved and self._saw(device, window.start_ns, window.end_ns)

    def hours(self) -> None:
        """Compare the joules of each hour with the curve, between the full hours of the run's clock."""
        facts = self.facts
        if facts.broken & {"sample", "device", "hourly", "run"} or not self.steps.hours:
            return
        for name, cells in facts.counted.items():
            energy_j = number(cells, "energy_j")
            if (
                name in self.ends
                and energy_j is not None
                and is_same_number(energy_j, self.ends[name][3], rel=CURVE_REL)
            ):
                self._hours_of(name, energy_j)

    def _hours_of(self, name: str, energy_j: float) -> None:
        hourly_j, at = self.facts.hourly_j.get(name, {}), self.steps.at[name]
        for hour, (begin_ns, end_ns) in _spans(self.steps.hours).items():
            # The run began within the microsecond of started_at: so exactly is the full hour known on its clock.
            most_j = at[end_ns] - at[begin_ns - HOUR_SLACK_NS] + CURVE_REL * energy_j
            least_j = at[end_ns - HOUR_SLACK_NS] - at[begin_ns] - CURVE_REL * energy_j
            if not least_j <= hourly_j.get(hour, 0.0) <= most_j:
                self.findings.add(
                    "DERIVED", "hourly.csv", f"is not the part of the curve of {name} in {hour:%Y-%m-%dT%H:00Z}",
                    row=self.facts.hour_rows.get((name, hour)), column="energy_j", expected=(least_j + most_j) / 2,
                    found=hourly_j.get(hour, "no row"),
                )  # fmt: skip

    def _steps(self) -> None:
        counted = self.facts.counted
        if not counted or not set(counted) <= set(self.ends):
            return
        total_j = number(self.facts.run, "energy_it_j") or 0.0
        for window in self.facts.windows.values():
            if window.kind != "step":
                continue
            spans = [self.ends[name] for name in counted]
            in_curves = all(begin_ns < window.end_ns and end_ns > window.start_ns for begin_ns, end_ns, _, _ in spans)
            expected = self.steps.energy_j(window.row, counted) if in_curves else None
            window_j = window.energy_j
            if window_j is None and not all(self._is_measured(name, window) for name in counted):
                continue
            if (expected is None) != (window_j is None) or (
                expected is not None
                and window_j is not None
                and not is_same_number(expected, window_j, rel=CURVE_REL, scale=total_j)
            ):
                self.findings.add(
                    "DERIVED", "window.csv", "is not the step's part of the curves", row=window.row, column="energy_j",
                    expected="nothing" if expected is None else expected, found=window_j,
                )  # fmt: skip


def _agree(expected: float | None, actual: float | None, energy_j: float, step_ns: int) -> bool:
    if expected is None or actual is None:
        return expected is actual
    # The slope of two long sums has the error of the sums.
    rounding_w = 4e-16 * energy_j / (step_ns / 1e9)
    return abs(expected - actual) <= CURVE_REL * abs(expected) + rounding_w


HOUR_SLACK_NS = 1_000  # started_at is cut to microseconds
NS_PER_HOUR = 3_600_000_000_000
MOST_HOURS = 1 << 17  # fifteen years


def _hour_edges(facts: BundleFacts) -> dict[datetime, tuple[int, int]]:
    """Return the full hours around and in the run: where each lies on its clock, as a pair of bounds."""
    begun, seconds = facts.run.get("started_at"), facts.duration_s()
    if not isinstance(begun, datetime) or seconds / 3600 > MOST_HOURS:
        return {}
    start_us = (begun - _EPOCH) // timedelta(microseconds=1)
    first_hour = start_us // (NS_PER_HOUR // 1000)
    last_hour = (start_us + int(seconds * 1e6)) // (NS_PER_HOUR // 1000) + 1
    edges = {}
    for hour in range(first_hour, last_hour + 1):
        at_ns = hour * NS_PER_HOUR - start_us * 1000
        try:
            edges[_EPOCH + timedelta(hours=hour)] = (at_ns - HOUR_SLACK_NS, at_ns)
        except OverflowError:
            return {}
    return edges


def _spans(edges: Mapping[datetime, tuple[int, int]]) -> dict[datetime, tuple[int, int]]:
    """Return each hour's beginning and end."""
    hours = list(edges.items())
    return {hour: (begin[1], end[1]) for (hour, begin), (_, end) in pairwise(hours)}


class _Percentiles:
    """Counts how many intervals are below and at the percentiles that the run says, whatever their number."""

    QUANTILES = (("sample_interval_p50_s", 50), ("sample_interval_p99_s", 99))

    def __init__(self, facts: BundleFacts, findings: Findings) -> None:
        self.facts = facts
        self.findings = findings
        self.stated_s = [number(facts.run, column) for column, _ in self.QUANTILES]
        self.limits = [None if stated_s is None else round(stated_s * 1e9) for stated_s in self.stated_s]
        self.below, self.up_to, self.count = [0, 0], [0, 0], 0

    def add(self, step_ns: int) -> None:
        """Count one interval."""
        self.count += 1
        for i, limit in enumerate(self.limits):
            if limit is not None:
                self.below[i] += step_ns < limit
                self.up_to[i] += step_ns <= limit

    def finish(self) -> None:
        """Check that each percentile is the smallest interval that at least that percentage do not exceed."""
        for i, (column, percent) in enumerate(self.QUANTILES):
            need = -(-percent * self.count // 100)
            stated_s = self.stated_s[i]
            if "run" in self.facts.broken or (stated_s is None and not self.count):
                continue
            if stated_s is None or not self.below[i] < need <= self.up_to[i]:
                self.findings.add(
                    "DERIVED", "run.csv", f"is not the {percent}th percentile of the intervals of the samples", row=1,
                    column=column, found=stated_s,
                )  # fmt: skip


class _StepEnergies:
    """Reads the curves at the edges of all steps and hours, in one pass a device."""

    def __init__(self, facts: BundleFacts) -> None:
        steps = [w for w in facts.windows.values() if w.kind == "step"]
        self.hours = _hour_edges(facts)
        edges = {t for w in steps for t in (w.start_ns, w.end_ns)}
        self.edges = sorted(edges | {t for around in self.hours.values() for t in around})
        self.rows = {w.row: (w.start_ns, w.end_ns) for w in steps}
        self.at: dict[str, dict[int, float]] = {}
        self.now: dict[int, float] = {}
        self.next = 0

    def begin(self) -> None:
        self.now, self.next = {}, 0

    def point(self, previous: tuple[int, int, float] | None, t_ns: int, energy_j: float) -> None:
        """Fill the edges up to this point: flat before the first, linear between two."""
        while self.next < len(self.edges) and self.edges[self.next] <= t_ns:
            edge = self.edges[self.next]
            if previous is None or t_ns <= previous[1]:
                self.now[edge] = energy_j
            else:
                _, before_ns, before_j = previous
                self.now[edge] = before_j + (energy_j - before_j) * ((edge - before_ns) / (t_ns - before_ns))
            self.next += 1

    def end(self, device: str, energy_j: float) -> None:
        """Fill the edges after the last point, and keep the device."""
        for edge in self.edges[self.next :]:
            self.now[edge] = energy_j
        self.at[device] = self.now

    def energy_j(self, row: int, devices: Iterable[str]) -> float:
        start, end = self.rows[row]
        return sum(self.at[name][end] - self.at[name][start] for name in devices)
