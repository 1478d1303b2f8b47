"""Checks conservation: layers and hours add up to their device, counted devices to the run."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta
from typing import cast

from torchwatt.audit.schema import Row
from torchwatt.audit.verification.bundle_facts import BundleFacts, ExactSum, WindowFact, number, rows_of, text
from torchwatt.audit.verification.finding import Findings
from torchwatt.audit.verification.table_reader import DerivedChecks, TableChunk, is_same_number
from torchwatt.core.terms import OTHER_PROCESSES, PROVENANCES, RESERVED, UNATTRIBUTED

# A share of a meter is not measured, whatever the meter is.
BEST_OF_METHOD = {"fit": "apportioned", "time_share": "apportioned", "load_model": "modelled"}
SLACK = 5.0  # standard uncertainties: far beyond any interval, and far below a forged digit
HOUR = timedelta(hours=1)
BLOCKS = 12  # of the run: an interval over repeats is stated for no window shorter than one
EDGE_NS = 1_000  # by which a window may be as long as a block
BOOKS_REL = 1e-9  # how exactly a ledger promises to balance (core.ledger)


class LayerChecks:
    """Checks `layer` chunk by chunk."""

    def __init__(self, file: str, facts: BundleFacts, findings: Findings) -> None:
        self.file = file
        self.facts = facts
        self.findings = findings
        self.derived = DerivedChecks(facts.schema.table("layer"), file, findings)
        self.device_j = {name: number(row, "energy_j") for name, row in facts.devices.items()}
        self.counts = {name: row["counted"] is True for name, row in facts.devices.items()}
        self.with_work: set[str] = set()  # devices that do not count, and did more than others' work
        self.bands = {
            name: tuple(number(row, f"sensor_accuracy_{end}_rel") or 0.0 for end in ("lo", "hi"))
            for name, row in facts.devices.items()
        }
        self.provenances = {name: text(row, "provenance") for name, row in facts.devices.items()}
        self.work_of_call: dict[tuple[object, ...], tuple[int, float]] = {}  # row and value, by slot and column

    def check(self, chunk: TableChunk) -> None:
        """Add one chunk to the sums and check its rows."""
        devices = cast("list[str]", chunk.columns["device_id"])
        self.derived.check(chunk, {"device_energy_j": [self.device_j.get(name) for name in devices]})
        self._add(chunk, devices)
        self._intervals(chunk)
        self._check_provenance(chunk, devices)
        self._check_work(chunk)
        names = cast("list[str]", chunk.columns["fqn"])
        for row, name, reserved in zip(chunk.rows, names, chunk.columns["reserved"], strict=True):
            if reserved != (name in RESERVED) and row not in chunk.bad:
                self.findings.add(
                    "LAW", self.file, "reserved names are " + ", ".join(RESERVED), row=row, column="reserved",
                    expected=str(name in RESERVED).lower(), found=str(reserved).lower(),
                )  # fmt: skip

    def _add(self, chunk: TableChunk, devices: list[str]) -> None:
        by_device: dict[str, list[float]] = defaultdict(list)
        by_name: dict[str, list[float]] = defaultdict(list)
        sums_of_names, unclaimed = self.facts.fqn_j, []
        names = cast("list[str]", chunk.columns["fqn"])
        for device, name, joules in zip(devices, names, chunk.numbers("energy_self_j"), strict=True):
            if joules is None:
                continue
            by_device[device].append(joules)
            if not self.counts.get(device, True):
                if name != OTHER_PROCESSES:
                    self.with_work.add(device)
                continue
            if name == UNATTRIBUTED:
                unclaimed.append(joules)
            if name in sums_of_names:
                by_name[name].append(joules)
        for device, values in by_device.items():
            self.facts.layer_j[device].add(values)
        for name, values in by_name.items():
            sums_of_names[name].add(values)
        if unclaimed:
            self.facts.unattributed_j.add(unclaimed)

    def _intervals(self, chunk: TableChunk) -> None:
        cells = [chunk.numbers(f"energy_self_{end}j") for end in ("lo_", "", "hi_")]
        for row, lo, value, hi in zip(chunk.rows, *cells, strict=True):
            if row not in chunk.bad:
                check_interval(self.findings, self.file, row, "energy_self_j", (lo, value, hi))
        devices = cast("list[str]", chunk.columns["device_id"])
        for index, end in enumerate(("lo", "hi")):
            column, sign = f"energy_systematic_{end}_j", 2 * index - 1
            numbers = zip(chunk.rows, devices, chunk.numbers("energy_self_j"), chunk.numbers(column), strict=True)
            for row, device, value, end_j in numbers:
                if value is None or end_j is None or row in chunk.bad:
                    continue
                least = value + value * self.bands[device][index] if device in self.bands else value
                if sign * (end_j - least) < 0 and not is_same_number(least, end_j):
                    self.findings.add(
                        "LAW", self.file, "is narrower than the meter's band", row=row, column=column, expected=least,
                        found=end_j,
                    )  # fmt: skip

    def _check_provenance(self, chunk: TableChunk, devices: list[str]) -> None:
        provenances, methods = (cast("list[str]", chunk.columns[name]) for name in ("provenance", "method"))
        keys = list(zip(devices, methods, provenances, strict=True))
        limits = {key: limit for key in set(keys) if (limit := self._limit(*key)) is not None}
        for row, key in zip(chunk.rows, keys, strict=True) if limits else ():
            if key in limits and row not in chunk.bad:
                self.findings.add(
                    "KNOWN", self.file, f"better known than {key[1]} on {key[0]} can be", row=row, column="provenance",
                    expected=f"{limits[key]} or weaker", found=key[2],
                )  # fmt: skip

    def _check_work(self, chunk: TableChunk) -> None:
        """Check that operations and bytes are those of known calls of modules, the same a call on every device."""
        columns = ("flops", "bytes_moved")
        cells = [chunk.numbers(name) for name in columns]
        if all(value is None for values in cells for value in values):
            return
        slots = zip(*(chunk.columns[name] for name in ("fqn", "phase", "stage")), strict=True)
        for row, slot, calls, *work in zip(chunk.rows, slots, chunk.numbers("calls"), *cells, strict=True):
            for column, value, other in zip(columns, work, reversed(work), strict=True):
                if value is None or row in chunk.bad:
                    continue
                if not calls or slot[0] in RESERVED or other is None:
                    reason = "is stated without calls of a module, or flops and bytes_moved without each other"
                    self.findings.add("LAW", self.file, reason, row=row, column=column, expected="nothing", found=value)
                    continue
                first_row, each = self.work_of_call.setdefault((*slot, column), (row, value / calls))
                if not is_same_number(each * calls, value, rel=BOOKS_REL):
                    reason = f"is another amount a call than in row {first_row}, of the same calls"
                    self.findings.add(
                        "LAW", self.file, reason, row=row, column=column, expected=each * calls, found=value
                    )

    def _limit(self, device: str, method: str, provenance: str) -> str | None:
        """Return the best provenance that a row may state, if it states a better one."""
        limit = self.provenances.get(device, "")
        return limit if is_better(provenance, limit) else best_provenance(method, provenance)

    def finish(self) -> None:
        """Compare the sums with the devices."""
        if "layer" in self.facts.broken or "device" in self.facts.broken:
            return
        for name, row in self.facts.devices.items():
            if name in self.with_work and not row["parent_device_id"]:
                reason = f"has rows of {name}, which does not count and is inside of no other"
                self.findings.add("SUM", self.file, reason, column="device_id")
            if row["counted"] or name in self.facts.layer_j:
                _add_up(self.facts, self.findings, self.file, "energy_self_j", name, self.facts.layer_j[name].value)


def check_interval(
    findings: Findings, file: str, row: int, column: str, cells: tuple[float | None, float | None, float | None]
) -> None:
    """Check that a number lies in its own interval, where both are stated: (lo, value, hi)."""
    lo, value, hi = cells
    if value is not None and ((lo is not None and lo > value) or (hi is not None and hi < value)):
        findings.add(
            "LAW", file, "lies outside its own interval", row=row, column=column, expected=f"{lo!r} to {hi!r}",
            found=value,
        )  # fmt: skip


def best_provenance(method: str, provenance: str) -> str | None:
    """Return the best provenance of this method, if a better one is stated."""
    limit = BEST_OF_METHOD.get(method, "")
    return limit if is_better(provenance, limit) else None


def weaker_provenance(left_provenance: str, right_provenance: str) -> str:
    """Return the weaker of two provenances; other words are ignored."""
    valid = [provenance for provenance in (left_provenance, right_provenance) if provenance in PROVENANCES]
    return max(valid, key=list[str](PROVENANCES).index, default="")


def is_better(provenance: str, limit: str) -> bool:
    """Return whether a provenance is a better one than another."""
    return (
        provenance in PROVENANCES and limit in PROVENANCES and PROVENANCES.index(provenance) < PROVENANCES.index(limit)
    )


def _add_up(facts: BundleFacts, findings: Findings, file: str, column: str, device: str, found_j: float) -> None:
    energy_j = number(facts.devices[device], "energy_j")
    if energy_j is None or is_same_number(energy_j, found_j, rel=BOOKS_REL):
        return
    place = f"device.csv row {facts.device_rows[device]} column energy_j"
    findings.add(
        "SUM", file, f"rows of {device} do not add up to {place}", column=column, expected=energy_j, found=found_j
    )  # fmt: skip


class HourChecks:
    """Checks `hourly` chunk by chunk."""

    def __init__(self, file: str, facts: BundleFacts, findings: Findings) -> None:
        self.file = file
        self.facts = facts
        self.findings = findings

    def check(self, chunk: TableChunk) -> None:
        """Keep the hours' joules."""
        for row, cells in rows_of(chunk):
            hour, joules = cells["hour_utc"], number(cells, "energy_j")
            if not isinstance(hour, datetime) or joules is None:
                continue
            if (hour.minute, hour.second, hour.microsecond) != (0, 0, 0):
                self.findings.add("LAW", self.file, "is no full hour", row=row, column="hour_utc", found=hour)
            name = text(cells, "device_id")
            self.facts.hourly_j[name][hour] = joules
            self.facts.hour_rows[name, hour] = row
            self._place(row, cells, hour)

    def _place(self, row: int, cells: Row, hour: datetime) -> None:
        """Check that an hour lies in the run and has its device's provenance."""
        begun, ended = self.facts.run.get("started_at"), self.facts.run.get("ended_at")
        in_run = not isinstance(begun, datetime) or not isinstance(ended, datetime) or begun - HOUR < hour <= ended
        if not in_run:
            expected = f"{begun:%Y-%m-%dT%H:%MZ} to {ended:%Y-%m-%dT%H:%MZ}"
            self.findings.add(
                "LAW", self.file, "is no hour of the run", row=row, column="hour_utc", expected=expected, found=hour
            )
        expected = text(self.facts.devices.get(text(cells, "device_id"), {}), "provenance")
        if expected and cells["provenance"] != expected:
            self.findings.add(
                "KNOWN", self.file, "is not that of the device", row=row, column="provenance", expected=expected,
                found=cells["provenance"],
            )  # fmt: skip

    def finish(self) -> None:
        """Compare the sums with the devices."""
        if self.facts.broken & {"hourly", "device"}:
            return
        for name in self.facts.counted:
            if name in self.facts.hourly_j:
                found_j = sum(self.facts.hourly_j[name].values())
                _add_up(self.facts, self.findings, self.file, "energy_j", name, found_j)
            else:
                self.findings.notes.append(f"{self.file} has no hours of {name}: it cannot be repriced by the hour")


class WindowChecks:
    """Checks `window` chunk by chunk."""

    def __init__(self, file: str, facts: BundleFacts, findings: Findings) -> None:
        self.file = file
        self.step_names: dict[str, int] = {}
        self.facts = facts
        self.findings = findings

    def check(self, chunk: TableChunk) -> None:
        """Keep the windows, and check that none exceeds the run in time or joules."""
        end_ns = self.facts.duration_s() * 1e9 + 1e6
        for row, cells in rows_of(chunk):
            start, end, joules = (number(cells, name) for name in ("t_start_ns", "t_end_ns", "energy_j"))
            if start is None or end is None:
                continue
            if not 0 <= start <= end <= end_ns:
                self.findings.add(
                    "LAW", self.file, "does not lie in the run", row=row, column="t_start_ns",
                    expected=f"0 to {end_ns:.0f}", found=f"{start:.0f} to {end:.0f}",
                )  # fmt: skip
            for basis in ("", "systematic_"):
                lo, hi = number(cells, f"energy_{basis}lo_j"), number(cells, f"energy_{basis}hi_j")
                check_interval(self.findings, self.file, row, "energy_j", (lo, joules, hi))
            limit_j = self._limit_j(text(cells, "kind"))
            if joules is not None and limit_j is not None and joules > limit_j:
                self.findings.add(
                    "SUM", self.file, "more joules than the run", row=row, column="energy_j",
                    expected=f"at most {limit_j!r}", found=joules,
                )  # fmt: skip
            self._words(row, cells)
            if joules is not None and not self.facts.old:
                self._repeats(row, cells, joules, end - start)
                self._bands(row, cells, joules)
            self._tokens(row, cells)
            index = int(number(cells, "window_id") or 0)
            if cells["parent_window_id"] is not None and number(cells, "parent_window_id") == index:
                self.findings.add(
                    "LAW", self.file, "is inside of itself", row=row, column="parent_window_id", found=index
                )
            self.facts.windows[index] = WindowFact(
                row, text(cells, "kind"), int(start), int(end), joules, text(cells, "name")
            )

    def _tokens(self, row: int, cells: Row) -> None:
        for unit in ("input_token", "output_token"):
            tokens = number(cells, f"{unit}s")
            if tokens is None:
                continue
            self.facts.window_tokens.setdefault(unit, ExactSum()).add([tokens])
            if text(cells, "kind") not in {"idle", "other"}:
                self.findings.add(
                    "LAW", self.file, "is not between two pages of a server", row=row, column=f"{unit}s", found=tokens
                )

    def _repeats(self, row: int, cells: Row, joules: float, long_ns: float) -> None:
        """Check the interval over repeats: in a long window in proportion to the run's, in a short one empty."""
        total_j, run_ns = number(self.facts.run, "energy_it_j"), self.facts.duration_s() * 1e9
        short = long_ns * BLOCKS < run_ns - EDGE_NS
        if not short and long_ns * BLOCKS < run_ns + EDGE_NS:
            return  # as long as a block, to what duration_s tells
        for end in ("lo", "hi"):
            end_j, window_end_j = number(self.facts.run, f"energy_it_{end}_j"), number(cells, f"energy_{end}_j")
            expected = None if short or end_j is None or not total_j else joules * end_j / total_j
            if expected is None and window_end_j is None:
                continue
            if expected is None or window_end_j is None or not is_same_number(expected, window_end_j, rel=BOOKS_REL):
                self.findings.add(
                    "DERIVED", self.file, "is not the run's interval, in proportion to the window's joules", row=row,
                    column=f"energy_{end}_j", expected="nothing" if expected is None else expected, found=window_end_j,
                )  # fmt: skip

    def _bands(self, row: int, cells: Row, joules: float) -> None:
        """Check that a window's systematic interval lies between the narrowest and the widest band of its meters."""
        counted, total_j = self.facts.counted.values(), number(self.facts.run, "energy_it_j") or 0.0
        for end in ("lo", "hi"):
            column = f"energy_systematic_{end}_j"
            bands = [number(device, f"sensor_accuracy_{end}_rel") for device in counted]
            stated, window_end_j = [band for band in bands if band is not None], number(cells, column)
            slack_j = BOOKS_REL * total_j
            if window_end_j is None or not stated:
                continue
            least_j, most_j = (max(joules * (1 + band), 0.0) for band in (min(stated), max(stated)))
            if len(stated) < len(bands) or not least_j - slack_j <= window_end_j <= most_j + slack_j:
                self.findings.add(
                    "DERIVED", self.file, "is not of the bands of the meters", row=row, column=column,
                    expected=f"{least_j!r} to {most_j!r}" if len(stated) == len(bands) else "nothing",
                    found=window_end_j,
                )  # fmt: skip

    def _words(self, row: int, cells: Row) -> None:
        """Check provenance (derived at best), units (at most the run's) and that step numbers are unique."""
        provenance, best = (
            text(cells, "provenance"),
            weaker_provenance("derived", text(self.facts.run, "energy_it_provenance")),
        )
        if is_better(provenance, best):
            self.findings.add(
                "KNOWN", self.file, "better known than what lies between readings can be", row=row,
                column="provenance", expected=f"{best} or weaker", found=provenance,
            )  # fmt: skip
        units, run_units = number(cells, "units"), number(self.facts.run, "functional_unit_count")
        if units is not None and run_units is not None and units > run_units:
            self.findings.add(
                "LAW", self.file, "more units than the run", row=row, column="units", expected=f"at most {run_units!r}",
                found=units,
            )  # fmt: skip
        if cells["kind"] == "step":
            name = text(cells, "name")
            if name.isdecimal() and name in self.step_names and not self.facts.old:
                reason = f"is the number of the step in row {self.step_names[name]}, too"
                self.findings.add("LAW", self.file, reason, row=row, column="name", found=name)
            self.step_names.setdefault(name, row)

    def _limit_j(self, kind: str) -> float | None:
        """Return the most joules that a window can have; None if the run states no total.

        A nested session was settled when it ended, before slow counters had published: it may be off by their readings.
        """
        total_j, u_j = number(self.facts.run, "energy_it_j"), number(self.facts.run, "energy_it_reading_u_j")
        if kind != "nested":
            return None if total_j is None else total_j * (1 + BOOKS_REL)
        return None if total_j is None or u_j is None else total_j * (1 + BOOKS_REL) + SLACK * u_j
