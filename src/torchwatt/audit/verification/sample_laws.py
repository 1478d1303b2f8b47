"""The curve: power is the slope of energy, the last point is the device's energy, steps are differences on it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

from torchwatt.audit.inside import MAX_FILE_BYTES, PARQUET_LIMITS, most_rows
from torchwatt.audit.lexical import LARGEST_NUMBER
from torchwatt.audit.schema import TABLE_BY_NAME, Value
from torchwatt.audit.verification.cells import Piece, out_of_bounds, pieces
from torchwatt.audit.verification.derived import same
from torchwatt.audit.verification.facts import Facts, WindowFact, number
from torchwatt.audit.verification.finding import Findings
from torchwatt.disk.path_safety import open_own

SAMPLE = TABLE_BY_NAME["sample"]
CURVE_REL = 1e-9
POINTS = 1 << 16


def sample_pieces(path: Path, findings: Findings, *, newer: bool) -> Iterator[Piece]:
    """Yield the samples; none, with a note, where they are Parquet and pyarrow is not installed."""
    if path.suffix != ".parquet":
        yield from pieces(path, SAMPLE, findings, newer)
        return
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        findings.notes.append(f"{path.name}: only its hash was checked, its contents need pyarrow")
        return
    try:
        with open_own(path, MAX_FILE_BYTES) as opened, pq.ParquetFile(opened, **PARQUET_LIMITS) as file:
            if file.metadata.num_rows > most_rows(os.fstat(opened.fileno()).st_size):
                findings.add("FORM", path.name, "more rows than its bytes can hold", found=file.metadata.num_rows)
                return
            yield from _parquet(file, path.name, findings)
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        findings.add("FORM", path.name, f"cannot be read: {error}")


def _parquet(file: object, name: str, findings: Findings) -> Iterator[Piece]:
    import pyarrow.parquet as pq

    from torchwatt.audit.samples import arrow_schema

    parquet = cast("pq.ParquetFile", file)
    wanted, found = arrow_schema(), parquet.schema_arrow
    if not found.equals(wanted):
        findings.add("FORM", name, "other columns or types", expected=_types(wanted), found=_types(found))
        return
    first = 1
    for batch in parquet.iter_batches(POINTS):
        batch.validate(full=True)  # indices that lead out of their dictionary, text that is no UTF-8
        piece = Piece(list(range(first, first + batch.num_rows)), batch.to_pydict(), set())
        _check(piece, name, findings)
        yield piece
        first += batch.num_rows


def _types(schema: object) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in cast("Sequence[object]", schema))  # type: ignore[attr-defined]


# A meter that said nothing for so long, or nothing usable and no joules, leaves the power of that time empty; any other
# hole is a cell that is missing.
SILENCE_NS = 500_000_000


def _check(piece: Piece, file: str, findings: Findings) -> None:
    """Check values that are typed already: there, finite, in bounds, a word of the column."""
    for column in SAMPLE.columns:
        values = piece.columns[column.name]
        wrong: dict[Value, str] = {}
        for value in set(values):
            if value is None and column.required:
                wrong[value] = "is required and empty"
            elif isinstance(value, float) and not abs(value) <= LARGEST_NUMBER:
                wrong[value] = "is not finite, or larger than any quantity of a run"
            elif value is not None and (found := out_of_bounds(value, str(value), column)) is not None:
                wrong[value] = found[1]
        for row, value in zip(piece.rows, values, strict=True) if wrong else ():
            if value in wrong:
                piece.bad.add(row)
                findings.add("CELL", file, wrong[value], row=row, column=column.name, found=value)


class SampleLaws:
    """Looks at the samples as they pass by, device after device."""

    def __init__(self, file: str, facts: Facts, findings: Findings) -> None:
        self.file = file
        self.facts = facts
        self.findings = findings
        self.device = ""
        self.last: tuple[int, int, float] | None = None  # row, t_ns, energy_j
        self.first_ns = 0
        self.ends: dict[str, tuple[int, int, int, float]] = {}  # first_ns, last_ns, row, energy_j
        self.silences: dict[str, list[tuple[int, int]]] = {}
        self.steps = _Steps(facts)

    def look(self, piece: Piece) -> None:
        """Check the slope from point to point."""
        names = ("device_id", "t_ns", "power_w", "energy_j")
        points = zip(piece.rows, *(piece.columns[name] for name in names), strict=True)
        for row, device, t_ns, power_w, energy_j in points:
            if row in piece.bad:
                self.facts.broken.add("sample")
                continue
            if device != self.device:
                self._begin(str(device))
            self._point(row, cast("int", t_ns), cast("float | None", power_w), cast("float", energy_j))

    def _begin(self, device: str) -> None:
        self._end()
        self.device, self.last = device, None
        self.steps.begin()

    def _end(self) -> None:
        if self.last is not None:
            row, t_ns, energy_j = self.last
            self.ends[self.device] = (self.first_ns, t_ns, row, energy_j)
            self.steps.end(self.device, energy_j)

    def _point(self, row: int, t_ns: int, power_w: float | None, energy_j: float) -> None:
        expected: float | None = None
        if self.last is None:
            self.first_ns = t_ns
            if energy_j != 0:
                self._tell(row, "energy_j", "a curve begins at 0", 0.0, energy_j)
        else:
            _, before_ns, before_j = self.last
            if energy_j < before_j:
                self._tell(row, "energy_j", "a curve loses no energy", f"at least {before_j!r}", energy_j)
            expected = (energy_j - before_j) / ((t_ns - before_ns) / 1e9) if t_ns > before_ns else None
        step_ns = t_ns - self.last[1] if self.last else 0
        if power_w is None and (step_ns >= SILENCE_NS or expected == 0) and self.last is not None:
            self.silences.setdefault(self.device, []).append((self.last[1], t_ns))
        elif not _agree(expected, power_w, energy_j, step_ns):
            self._tell(row, "power_w", "is not the slope of energy_j", expected, power_w)
        self.steps.point(self.last, t_ns, energy_j)
        self.last = (row, t_ns, energy_j)

    def _tell(self, row: int, column: str, reason: str, expected: object, found: object) -> None:
        self.findings.add("SAMPLE", self.file, reason, row=row, column=column, expected=expected, found=found)

    def finish(self) -> None:
        """Compare the ends of the curves with the devices, and the steps with both."""
        self._end()
        if self.facts.broken & {"sample", "device"}:
            return
        for name, cells in self.facts.devices.items():
            energy_j = number(cells, "energy_j")
            if name in self.ends and energy_j is not None and not same(energy_j, self.ends[name][3], rel=CURVE_REL):
                place = f"device.csv row {self.facts.device_rows[name]} column energy_j"
                self._tell(
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

    def _measured(self, device: str, window: WindowFact) -> bool:
        """Return whether a device says something of a step: it was there throughout, and its meter moved.

        Else the step's joules are unknown.
        """
        modelled = self.facts.devices[device]["provenance"] == "modelled"
        moved = modelled or device not in self.steps.at or self.steps.energy_j(window.row, (device,)) > 0
        return moved and self._saw(device, window.start_ns, window.end_ns)

    def _steps(self) -> None:
        counted = self.facts.counted
        if not counted or not set(counted) <= set(self.ends):
            return
        total_j = number(self.facts.run, "energy_it_j") or 0.0
        for window in self.facts.windows.values():
            if window.kind != "step":
                continue
            spans = [self.ends[name] for name in counted]
            known = all(first < window.end_ns and last > window.start_ns for first, last, _, _ in spans)
            expected = self.steps.energy_j(window.row, counted) if known else None
            found = window.energy_j
            if found is None and not all(self._measured(name, window) for name in counted):
                continue
            if (expected is None) != (found is None) or (
                expected is not None and found is not None and not same(expected, found, rel=CURVE_REL, scale=total_j)
            ):
                self.findings.add(
                    "DERIVED", "window.csv", "is not the step's part of the curves", row=window.row, column="energy_j",
                    expected="nothing" if expected is None else expected, found=found,
                )  # fmt: skip


def _agree(expected: float | None, found: float | None, energy_j: float, step_ns: int) -> bool:
    if expected is None or found is None:
        return expected is found
    # The slope of two long sums has the error of the sums.
    rounding_w = 4e-16 * energy_j / (step_ns / 1e9)
    return abs(expected - found) <= CURVE_REL * abs(expected) + rounding_w


class _Steps:
    """Reads the curves at the edges of all steps, in one pass a device."""

    def __init__(self, facts: Facts) -> None:
        steps = [w for w in facts.windows.values() if w.kind == "step"]
        self.edges = sorted({t for w in steps for t in (w.start_ns, w.end_ns)})
        self.rows = {w.row: (w.start_ns, w.end_ns) for w in steps}
        self.at: dict[str, dict[int, float]] = {}
        self.now: dict[int, float] = {}
        self.next = 0

    def begin(self) -> None:
        self.now, self.next = {}, 0

    def point(self, last: tuple[int, int, float] | None, t_ns: int, energy_j: float) -> None:
        """Fill the edges up to this point: flat before the first, linear between two."""
        while self.next < len(self.edges) and self.edges[self.next] <= t_ns:
            edge = self.edges[self.next]
            if last is None or t_ns <= last[1]:
                self.now[edge] = energy_j
            else:
                _, before_ns, before_j = last
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
