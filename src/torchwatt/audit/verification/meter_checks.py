"""Checks what a device row states of its meter against the sensor's kind, its raw readings and the curve."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import sqrt

from torchwatt.audit.schema import Row
from torchwatt.audit.verification.bundle_facts import BundleFacts, number, text
from torchwatt.audit.verification.finding import Findings
from torchwatt.audit.verification.table_reader import is_same_number
from torchwatt.core.ledger import is_fully_covered
from torchwatt.core.terms import METER_LOSSES, domain_kind
from torchwatt.core.units import Z90

FILE = "device.csv"
# Models of load: nothing that they say is measured.
MODELS = frozenset({"tdp_model", "ram_model"})
# Which kinds of devices a sensor can be of, by the beginning of its name.
KINDS: Mapping[str, frozenset[str]] = {
    "nvml": frozenset({"gpu", "module"}),
    "rapl": frozenset({"cpu", "dram", "psys"}),
    "tdp_model": frozenset({"cpu", "ram"}),
    "ram_model": frozenset({"ram"}),
}
COUNTERS = frozenset({"rapl", "nvml_energy_counter"})
RAPL_UNIT_J = 1e-6  # the Linux kernel's ABI: energy_uj
METHOD_OF_MODEL = "load_model"
# A slow counter is booked beyond its two readings by what it publishes at a time, at each end of the run; five of
# these leave room for bursts. reading_u_j is one of them over the root of 6.
PUBLICATIONS = 5.0
MOST_OFF_LIMIT = 1.2  # a power limit is held on average, within this
MOST_OFF_STATIC = 1.5  # a quiet moment before the run is known so well
# The writer adds an event for two routes that are 5 % apart over 5 s; the limit
# here is five times that. Over shorter times slow sensors may differ by more, but by no factor of 3.
CROSS_CHECK_S, CROSS_CHECK_REL = 5.0, 0.25
SHORT_S, SHORT_FACTOR = 0.5, 3.0
# What says that two routes to the same joules are apart.
APART = METER_LOSSES | {"CROSS_CHECK", "SCOPE_UNKNOWN", "MODULE_COUNTER"}
OVER_LIMIT = frozenset({"OVER_LIMIT"})  # says that a meter claims more than its limit
HOLE_NS, HOLE_REL = 2_000_000_000, 10.0
EDGE_NS = 1_000_000
METERS_OF_DEVICES = ("rapl", "nvml")  # beginnings of sensors that count what everybody uses
_KEY = re.compile(r"[0-9a-f]{64}")
# How the source of a band begins: ±5 %, assumed -50/+100 %.
_BAND = re.compile(r"(?:assumed )?(?:±([0-9.]{1,6})|-([0-9.]{1,6})/\+([0-9.]{1,6})) %")
COUNTER_CELLS = ("start_raw", "end_raw", "unit_j", "wraps", "modulus_raw", "difference_j", "gap_j")


class MeterChecks:
    """Checks `device` once the curves and the events are known."""

    def __init__(self, facts: BundleFacts, findings: Findings) -> None:
        self.facts = facts
        self.findings = findings

    def finish(self) -> None:
        """Check every device."""
        if self.facts.broken & {"run", "device"}:
            return
        hashes: dict[tuple[str, str], str] = {}
        machines: set[object] = set()
        for name, row in self.facts.devices.items():
            self._kind(name, row)
            self._sensor(name, row)
            self._band(name, row)
            self._readings(name, row)
            self._power(name, row)
            self._repeats(name, row)
            if "event" not in self.facts.broken:
                self._coverage(name, row)
            self._identity(name, row, machines)
            self._parents(name, row)
            for column in ("device_hash", "device_key"):
                # A superchip and its GPU may be named alike by their driver; a key is of one meter.
                key = text(row, "kind") if column == "device_hash" else column, text(row, column)
                if key[1] and row["counted"] and hashes.setdefault(key, name) != name:
                    self._report(name, "LAW", column, f"is that of {hashes[key]}, too: its joules count twice")
        self._boundary()

    def _report(  # a finding about one device
        self, name: str, code: str, column: str, reason: str, expected: object = "", actual: object = ""
    ) -> None:
        self.findings.add(
            code, FILE, reason, row=self.facts.device_rows[name], column=column, expected=expected, found=actual  # type: ignore[arg-type]
        )  # fmt: skip

    def _identity(self, name: str, row: Row, machines: set[object]) -> None:
        """Check keys: SHA-256, one machine a run; a recording has no machine, as it may be from elsewhere."""
        for column in ("device_key", "machine_key", "device_hash"):
            if row[column] is not None and not _KEY.fullmatch(text(row, column)):
                self._report(name, "LAW", column, "is no SHA-256", "64 digits", row[column])
        machine = row["machine_key"]
        if machine is None:
            return
        if self.facts.run["sampler_mode"] in {"replay", "none"} and not self.facts.merged:
            self._report(name, "LAW", "machine_key", "no sampler ran on a machine", "nothing", machine)
        if machines - {machine} and not self.facts.merged:
            self._report(name, "LAW", "machine_key", "is of another machine than a device before", "", machine)
        machines.add(machine)

    def _parents(self, name: str, row: Row) -> None:
        """Check that no device contains itself, and that nothing inside of a counted device counts."""
        ancestors, parent = [name], text(row, "parent_device_id")
        while parent and parent not in ancestors:
            if row["counted"] and self.facts.devices.get(parent, {}).get("counted"):
                self._report(name, "LAW", "counted", f"is inside of {parent}: its joules count twice", "false", "true")
                return
            ancestors.append(parent)
            parent = text(self.facts.devices.get(parent, {}), "parent_device_id")
        if parent:
            self._report(name, "LAW", "parent_device_id", "is inside of itself", "", " > ".join([*ancestors, parent]))

    def _kind(self, name: str, row: Row) -> None:
        kind = domain_kind(name)
        if row["kind"] != kind:
            self._report(name, "LAW", "kind", "is not that of device_id", kind, row["kind"])
        if row["scope"] == "process" and text(row, "sensor").startswith(METERS_OF_DEVICES):
            self._report(name, "LAW", "scope", f"{row['sensor']} counts everybody's joules", "device", "process")
        for sensor in text(row, "sensor").split(";"):
            allowed = next((kinds for start, kinds in KINDS.items() if sensor.startswith(start)), None)
            if allowed is not None and kind not in allowed:
                expected = " or ".join(sorted(allowed))
                self._report(name, "LAW", "sensor", f"{sensor} is no sensor of a {kind}", f"a {expected}", kind)

    def _sensor(self, name: str, row: Row) -> None:
        """Check that method, sensor and provenance agree on whether the device is modelled or measured."""
        method, provenance = text(row, "method"), text(row, "provenance")
        sensors = frozenset(text(row, "sensor").split(";"))
        if not method or not provenance:
            return
        if sensors & MODELS and provenance == "measured":
            self._report(name, "KNOWN", "provenance", f"{';'.join(sensors)} measures nothing", "modelled", provenance)
        if sensors & MODELS and method != METHOD_OF_MODEL:
            self._report(name, "LAW", "method", f"{';'.join(sensors)} is a model of load", METHOD_OF_MODEL, method)
        if provenance == "modelled" and method != METHOD_OF_MODEL:
            self._report(name, "LAW", "method", "what is modelled has no readings", METHOD_OF_MODEL, method)
        if method == METHOD_OF_MODEL and sensors & COUNTERS:
            self._report(
                name, "LAW", "sensor", "is a counter, and the joules are a model's", "tdp_model", ";".join(sensors)
            )

    def _band(self, name: str, row: Row) -> None:
        """Check that a band is no narrower than the numbers with which its source begins; measurements may widen it."""
        source = _BAND.match(text(row, "sensor_accuracy_source"))
        if source is None or self.facts.old:
            return
        lo, hi = -float(source[1] or source[2]) / 100, float(source[1] or source[3]) / 100
        for column, sign, least in (("sensor_accuracy_lo_rel", -1, lo), ("sensor_accuracy_hi_rel", 1, hi)):
            stated = number(row, column)
            if stated is not None and sign * (stated - least) < -1e-9:
                self._report(name, "LAW", column, "is narrower than sensor_accuracy_source says", least, stated)

    # The counter's own readings

    def _readings(self, name: str, row: Row) -> None:
        cells = [number(row, f"counter_{cell}") for cell in COUNTER_CELLS]
        filled = [cell is not None for cell in cells]
        if any(filled) and not all(filled):
            missing = f"counter_{COUNTER_CELLS[filled.index(False)]}"
            self._report(name, "LAW", missing, "is empty, and other cells of the counter are not")
            return
        if not any(filled):
            self._without_readings(name, row)
            return
        if row["method"] != "counter":
            self._report(
                name, "LAW", "method", "is not that of a counter, and the readings are one's", "counter", row["method"]
            )
        start, end, unit_j, wraps, modulus, difference_j, _ = (cell or 0.0 for cell in cells)
        if wraps and not modulus:
            self._report(name, "LAW", "counter_modulus_raw", "wraps, and does not say where", "more than 0", modulus)
        for cell, value in (("start_raw", start), ("end_raw", end)):
            if modulus and value >= modulus:
                self._report(
                    name, "LAW", f"counter_{cell}", "is beyond counter_modulus_raw", f"below {modulus:.0f}", value
                )
        self._unit(name, row, unit_j)
        self._gap(name, row, unit_j, difference_j)
        self._wraps(name, int(wraps))

    def _without_readings(self, name: str, row: Row) -> None:
        """Report a counter without readings that is fast enough to have had some in the run."""
        coverage, period_s = number(row, "coverage_ratio"), number(row, "sensor_update_s") or 0.0
        seconds = self.facts.duration_s() * (1.0 if coverage is None else coverage)  # for which it is known
        sensors = frozenset(text(row, "sensor").split(";"))
        slow = 2 * period_s >= seconds or self.facts.old or self.facts.merged
        if not row["counted"]:
            return  # a device outside of the total has joules and no readings
        if row["method"] == "counter" and sensors & COUNTERS and not slow and row["energy_j"] is not None:
            reason = f"is empty: {';'.join(sorted(sensors & COUNTERS))} was read every {period_s:g} s"
            self._report(name, "LAW", "counter_start_raw", reason, "the counter's reading")

    def _unit(self, name: str, row: Row, unit_j: float) -> None:
        if row["sensor"] == "rapl" and unit_j != RAPL_UNIT_J:
            self._report(name, "LAW", "counter_unit_j", "rapl counts microjoules", RAPL_UNIT_J, unit_j)
        u_j = number(row, "reading_u_j")
        least_j = unit_j / sqrt(6.0) * (1 - 1e-9)  # two ends, each uniform within a unit
        if row["method"] == "counter" and (number(row, "energy_j") or 0.0) > 0 and u_j is not None and u_j < least_j:
            self._report(
                name, "LAW", "reading_u_j", "is less than one unit of the counter tells", f"at least {least_j!r}", u_j
            )

    def _gap(self, name: str, row: Row, unit_j: float, difference_j: float) -> None:
        """Check that joules beyond the two readings are at most a publication at each end, or explained."""
        energy_j = number(row, "energy_j")
        if energy_j is None:
            return
        allowed_j = PUBLICATIONS * sqrt(6.0) * (number(row, "reading_u_j") or 0.0) + 2 * unit_j + 1e-9 * energy_j
        if self.facts.curves.get(name):
            allowed_j = min(allowed_j, 2 * PUBLICATIONS * self.facts.curves[name].largest_j + 2 * unit_j)
        gap_j = energy_j - difference_j
        if abs(gap_j) > allowed_j and not self.facts.events_of(name, METER_LOSSES):
            reason = "is more than a counter's publications at both ends, and no event says why"
            self._report(name, "LAW", "counter_gap_j", reason, f"at most {allowed_j:.6g}", gap_j)

    def _wraps(self, name: str, wraps: int) -> None:
        curve = self.facts.curves.get(name)
        if curve is None or self.facts.merged or "event" in self.facts.broken:
            return
        events = sum(curve.first_ns < t_ns <= curve.last_ns for t_ns in self.facts.wraps_ns.get(name, ()))
        if events != wraps:
            self._report(
                name, "LAW", "counter_wraps", "is not the number of events COUNTER_WRAP in the run", events, wraps
            )

    # Power

    def _power(self, name: str, row: Row) -> None:
        energy_j = number(row, "energy_j")
        known_s = (number(row, "coverage_ratio") or 0.0) * self.facts.duration_s()
        if energy_j is None or known_s <= 0:
            return
        limit_w, static_w = number(row, "power_limit_w"), number(row, "static_w")
        low = 1 + min(number(row, "sensor_accuracy_lo_rel") or 0.0, 0.0)
        least_w = max(energy_j * low - Z90 * (number(row, "reading_u_j") or 0.0), 0.0) / known_s
        if limit_w and least_w > MOST_OFF_LIMIT * limit_w and not self.facts.events_of(name, OVER_LIMIT):
            self._report(
                name,
                "LAW",
                "power_limit_w",
                "is less than the mean power of the run",
                f"at least {least_w:.6g}",
                limit_w,
            )
        ends_j = [number(row, f"energy_{basis}hi_j") or 0.0 for basis in ("", "systematic_")]
        most_w = max(energy_j + Z90 * (number(row, "reading_u_j") or 0.0), *ends_j) / known_s
        if static_w is not None and static_w > MOST_OFF_STATIC * most_w:
            self._report(
                name, "LAW", "static_w", "is more than the mean power of the run", f"at most {most_w:.6g}", static_w
            )
        difference_rel = number(row, "cross_check_rel_diff")
        explained = self.facts.merged or self.facts.events_of(name, APART)
        if difference_rel is not None and _far(difference_rel, known_s) and not explained:
            reason = "is far from 0, and no event CROSS_CHECK says so"
            self._report(name, "LAW", "cross_check_rel_diff", reason, "", difference_rel)

    def _repeats(self, name: str, row: Row) -> None:
        """Check that the interval over repeats is symmetric; sums over ranks need not be."""
        energy_j, lo_j, hi_j = (number(row, f"energy_{end}j") for end in ("", "lo_", "hi_"))
        if energy_j is None or self.facts.old or self.facts.merged:
            return
        expected = None if hi_j is None else max(2 * energy_j - hi_j, 0.0)
        if (expected is None) != (lo_j is None) or (
            expected is not None and lo_j is not None and not is_same_number(expected, lo_j, rel=1e-9, scale=energy_j)
        ):
            reason = "is not as far from energy_j as energy_hi_j is"
            self._report(name, "DERIVED", "energy_lo_j", reason, "nothing" if expected is None else expected, lo_j)

    # How much of the run is known

    def _coverage(self, name: str, row: Row) -> None:
        coverage, seconds = number(row, "coverage_ratio"), self.facts.duration_s()
        if coverage is None or self.facts.old:
            return
        complete = is_fully_covered(coverage, seconds)
        explained = self.facts.events_of(name, METER_LOSSES) or (
            self.facts.merged and self.facts.has_event(METER_LOSSES)
        )
        if not complete and not explained and self.facts.has_losses:
            self._report(
                name, "LAW", "coverage_ratio", "leaves a part of the run out, and no event says so", 1.0, coverage
            )
        by_merge = self.facts.merged and not self.facts.has_losses
        if not complete and self.facts.run["status"] == "complete" and not by_merge:
            self.findings.add(
                "LAW", "run.csv", f"is complete, and {name} was known for {coverage:.1%} of the run", row=1,
                column="status", expected="partial", found="complete",
            )  # fmt: skip
        gone = row["unavailable_reason"] is not None and row["provenance"] == "measured" and row["counted"]
        if gone and self.facts.run["status"] == "complete" and not self.facts.merged:
            self._report(name, "LAW", "unavailable_reason", "a meter was lost, and the run is complete", "", "complete")
        curve = self.facts.curves.get(name)
        if curve is None or self.facts.merged:
            return
        covered = (curve.last_ns - curve.first_ns - curve.silent_ns) / 1e9 / seconds if seconds > 0 else 1.0
        # A counter that stands still is known until half an interval after its last step.
        between = curve.usual_ns / 1e9 / seconds if seconds > 0 else 0.0
        if coverage > covered + max(1e-3, between):
            self._report(
                name, "LAW", "coverage_ratio", "is more than the curve covers", f"at most {covered:.6g}", coverage
            )
        hole = curve.hole_ns > max(HOLE_NS, HOLE_REL * curve.usual_ns)
        missed = number(self.facts.run, "sampler_missed") or 0
        if hole and not explained and not missed:
            reason = f"{name} has no reading for {curve.hole_ns / 1e9:.3g} s, and no event says so"
            self.findings.add("LAW", self.facts.sample_file, reason, row=curve.hole_row, column="t_ns")

    def _boundary(self) -> None:
        """Check that `boundary_excluded` names the devices with an `unavailable_reason`."""
        if self.facts.old:
            return
        named = {name for name in text(self.facts.run, "boundary_excluded").split(";") if name}
        why = {name for name, row in self.facts.devices.items() if row["unavailable_reason"] is not None}
        if named != why:
            self.findings.add(
                "DERIVED", "run.csv", "is not the devices with an unavailable_reason", row=1,
                column="boundary_excluded", expected=";".join(sorted(why)) or "nothing",
                found=";".join(sorted(named)) or "nothing",
            )  # fmt: skip


def _far(difference_rel: float, known_s: float) -> bool:
    """Return whether two routes to the joules of `known_s` seconds differ by more than sensors do."""
    if known_s >= CROSS_CHECK_S:
        return abs(difference_rel) > CROSS_CHECK_REL
    return known_s >= SHORT_S and not 1 / SHORT_FACTOR <= 1 + difference_rel <= SHORT_FACTOR
