"""Checks rows whose joules follow from time: power of rows shared by time, times, reserved names."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from functools import cache
from math import fsum
from typing import cast

from torchwatt.audit.verification.bundle_facts import BundleFacts, number, text
from torchwatt.audit.verification.finding import Findings
from torchwatt.audit.verification.table_reader import TableChunk, is_same_number
from torchwatt.core.terms import (
    COMMUNICATION,
    COMPILE,
    DATA,
    IDLE,
    NO_RANK,
    OPTIMIZER,
    OTHER_PROCESSES,
    OUTSIDE,
    RESERVED,
    ROOT,
    TRANSFER,
    UNATTRIBUTED,
    domain_kind,
)

# Letters of other alphabets that look like those of reserved names (Unicode TR 39, confusables).
_LIKE = str.maketrans(
    "\u0430\u0441\u0501\u0435\u0456\u043e\u0440\u0455\u0442\u043c\u0445\u0443"
    "\u03b1\u03b5\u03b9\u03bf\u03c1\u03c4\u03bc\u0131\u0261\u217c\u01c0",
    "acdeiopstmxyaeioptmigll",
)
_ASCII_BRACKETS = frozenset("()[]{}")
_BRACKETS = frozenset("()[]{}\u2768\u2769\u207d\u207e\u208d\u208e\u27ee\u27ef\uff5f\uff60")


@cache
def _reserved_names() -> dict[str, str]:
    return {_letters(name): name for name in (*RESERVED, ROOT)}


def similar_reserved_name(name: str) -> str:
    """Return the reserved name that a name resembles; "" if it is reserved itself or resembles none."""
    if name.isascii() and not (_ASCII_BRACKETS & set(name)):
        return ""
    if name in RESERVED or name == ROOT:
        return ""
    plain = unicodedata.normalize("NFKC", name)
    if not (_BRACKETS & {*plain, *name}):
        return ""
    return _reserved_names().get(_letters(plain), "")


def _letters(name: str) -> str:
    """Return the letters alone, small and Latin."""
    small = unicodedata.normalize("NFKD", name).casefold().translate(_LIKE)
    return "".join(char for char in small if char.isalpha())


FILE = "layer.csv"
BY_TIME = frozenset({"time_share", "load_model"})
APART = frozenset({IDLE, OUTSIDE, NO_RANK, OTHER_PROCESSES})
HOST_KINDS = frozenset({"cpu", "dram", "ram"})  # whose rows are by one thread at a time
RUNNING = BY_TIME | {"fit"}
PHASES = {name: name[1:-1] for name in (OPTIMIZER, DATA, TRANSFER, COMMUNICATION, COMPILE)}
FITTED = "fitted to"  # how_known: what the rows were fitted to
TIME_REL, TIME_S = 1 + 1e-6, 2e-3
POWER_REL = 0.01
LEAST_S = 1e-4  # of a row whose power is looked at: shorter ones have the error of the run's edges
_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")
_OF_MODULE = ("module_class", "params", "param_bytes")
MOST_MODULES = 1 << 16  # that are remembered
_Group = tuple[object, ...]
_Cells = tuple[str, str, str, object, object, object, float, float]


class ShareChecks:
    """Checks `layer` chunk by chunk, after the curves."""

    def __init__(self, facts: BundleFacts, findings: Findings) -> None:
        self.facts = facts
        self.findings = findings
        self.time_s: dict[str, float] = defaultdict(float)  # by device
        self.idle: set[str] = set()  # devices with rows in which nothing of the run worked
        self.fitted: dict[str, int] = {}  # the first row of `fit`, by device
        self.by_time: set[str] = set()
        self.shared: dict[str, int] = {}  # the first row with a time_share_j that is its own, by device
        self.alike: dict[tuple[str, _Group], list[float]] = {}  # joules, seconds and first row
        self.longest: dict[str, tuple[int, float]] = {}
        self.modules: dict[str, tuple[object, ...]] = {}
        self.static_parts = {name: number(row, "static_w") for name, row in facts.devices.items()}

    def check(self, chunk: TableChunk) -> None:
        """Check the rows of one chunk."""
        self._names(chunk)
        self._times(chunk)
        self._methods(chunk)
        self._static(chunk)
        self._check_reserved(chunk)
        self._without_time(chunk)
        self._modules(chunk)

    def _report(
        self, row: int | None, code: str, column: str, reason: str, expected: object = "", actual: object = ""
    ) -> None:
        self.findings.add(code, FILE, reason, row=row, column=column, expected=expected, found=actual)  # type: ignore[arg-type]

    def _names(self, chunk: TableChunk) -> None:
        names = cast("list[str]", chunk.columns["fqn"])
        odd = {
            name: reserved_name
            for name in set(names)
            if name and name not in RESERVED and (reserved_name := similar_reserved_name(name))
        }
        for row, name in zip(chunk.rows, names, strict=True) if odd else ():
            if name in odd and row not in chunk.bad:
                self._report(row, "LAW", "fqn", f"looks like {odd[name]}, and is another name", odd[name], name)
        classes = chunk.columns["module_class"]
        if any(chunk.columns["reserved"]):
            for row, reserved, class_name in zip(chunk.rows, chunk.columns["reserved"], classes, strict=True):
                if reserved and class_name is not None and row not in chunk.bad:
                    self._report(row, "LAW", "module_class", "a reserved row is no module", "nothing", class_name)

    def _times(self, chunk: TableChunk) -> None:
        devices = cast("list[str]", chunk.columns["device_id"])
        seconds = chunk.numbers("time_self_s")
        names = set(devices)
        for name in names:
            own = range(len(devices)) if len(names) == 1 else [i for i, device in enumerate(devices) if device == name]
            times = [(seconds[i] or 0.0, i) for i in own]
            self.time_s[name] += fsum(spent_s for spent_s, _ in times)
            longest_s, at = max(times)
            if longest_s > self.longest.get(name, (0, 0.0))[1]:
                self.longest[name] = chunk.rows[at], longest_s

    def _methods(self, chunk: TableChunk) -> None:
        """Check rows of `fit`, and keep those shared by time."""
        methods = cast("list[str]", chunk.columns["method"])
        kinds = set(methods)
        if "fit" in kinds:
            self._fits(chunk, methods)
        if kinds & BY_TIME:
            self._shares(chunk, methods)

    def _fits(self, chunk: TableChunk, methods: list[str]) -> None:
        devices = cast("list[str]", chunk.columns["device_id"])
        his, modelled = (
            chunk.columns["energy_systematic_hi_j"],
            {name for name, row in self.facts.devices.items() if row["method"] == "load_model"},
        )
        for row, device, method, hi in zip(chunk.rows, devices, methods, his, strict=True):
            if method != "fit" or row in chunk.bad:
                continue
            self.fitted.setdefault(device, row)
            if device in modelled:
                self._report(
                    row, "LAW", "method", f"{device} is modelled: there are no readings to fit to", "load_model", "fit"
                )
            if hi is None and not self.facts.old:
                self._report(row, "LAW", "energy_systematic_hi_j", "is empty: a fit says how far off it may be")

    def _shares(self, chunk: TableChunk, methods: list[str]) -> None:
        columns = ("device_id", "fqn", "phase", "module_class", "params", "param_bytes", "time_self_s", "energy_self_j")
        rows = zip(
            chunk.rows, methods, chunk.columns["time_share_j"], *(chunk.columns[c] for c in columns), strict=True
        )
        for row, method, shared_j, *cells in rows:
            if method not in BY_TIME or row in chunk.bad:
                continue
            device, name, phase, class_name, params, size, seconds, joules = cast("_Cells", cells)
            self.by_time.add(device)
            if name in APART:
                if joules or seconds:
                    self.idle.add(device)
                continue
            if shared_j is not None and method == "time_share":
                self.shared.setdefault(device, row)
                scale = number(self.facts.devices.get(device, {}), "energy_j") or 0.0
                if not is_same_number(cast("float", shared_j), joules, rel=1e-6, scale=scale):
                    reason = "is not energy_self_j of a row shared by time"
                    self._report(row, "DERIVED", "time_share_j", reason, joules, shared_j)
            if class_name is not None and (place := _INDEX.sub("*", name)) != name:  # alike modules share what they use
                key = device, (phase, place, class_name, params, size)
                group = self.alike.setdefault(key, [0.0, 0.0, row])
                group[0] += joules
                group[1] += seconds
            else:
                self._power(row, device, joules, seconds)

    def _power(self, row: int, device: str, joules: float, seconds: float) -> None:
        """Compare the power of a row with that of a curve whose power is constant, where nothing was idle.

        Where power changes, or is unknown for a time, what ran for a part of an interval between two readings may have
        any power.
        """
        curve = self.facts.curves.get(device)
        if curve is None or seconds < LEAST_S or self.facts.merged or self.facts.broken & {"sample", "device"}:
            return
        constant = curve.least_w <= curve.most_w <= curve.least_w * (1 + POWER_REL)
        if device in self.idle or curve.silent_ns or not constant:
            return
        power_w, slack = joules / seconds, TIME_S / max(seconds, TIME_S) * 0.1 + POWER_REL
        if not curve.least_w * (1 - slack) <= power_w <= curve.most_w * (1 + slack):
            self._report(
                row, "LAW", "energy_self_j", "is shared by time, and its power is not that of the curve",
                f"{curve.least_w:.6g} to {curve.most_w:.6g} W", f"{power_w:.6g} W",
            )  # fmt: skip

    def _check_reserved(self, chunk: TableChunk) -> None:
        """Check the phase of reserved rows: one each, and `backward` as well for (unattributed)."""
        if not any(chunk.columns["reserved"]):
            return
        for row, name, phase in zip(chunk.rows, chunk.columns["fqn"], chunk.columns["phase"], strict=True):
            if name not in RESERVED or row in chunk.bad:
                continue
            phases = ("other", "backward") if name == UNATTRIBUTED else (PHASES.get(cast("str", name), "other"),)
            if phase not in phases:
                self._report(row, "LAW", "phase", f"{name} is of another phase", " or ".join(phases), phase)

    def _without_time(self, chunk: TableChunk) -> None:
        """Check that rows without time have no joules; work of other processes is not timed."""
        if self.facts.merged or all(chunk.columns["time_self_s"]):  # ranks get joules by CPU time
            return
        columns = ("fqn", "method", "time_self_s", "energy_self_j")
        for row, name, method, seconds, joules in zip(
            chunk.rows, *(chunk.columns[column] for column in columns), strict=True
        ):
            if not seconds and joules and method in RUNNING and name not in APART and row not in chunk.bad:
                self._report(row, "LAW", "energy_self_j", "has joules, and took no time", 0.0, joules)

    def _static(self, chunk: TableChunk) -> None:
        static_parts = chunk.numbers("energy_static_j")
        if not any(static_parts):
            return
        columns = zip(chunk.rows, static_parts, chunk.numbers("energy_self_j"), chunk.numbers("time_self_s"),
                      cast("list[str]", chunk.columns["device_id"]), strict=True)  # fmt: skip
        for row, static_j, joules, seconds, device in columns:
            if static_j is None or joules is None or row in chunk.bad:
                continue
            static_w = self.static_parts.get(device)
            limits = [joules] if static_w is None or seconds is None else [joules, static_w * seconds]
            if static_j > max(min(limits), 0.0) * (1 + 1e-9) + 1e-9:
                self._report(
                    row, "LAW", "energy_static_j", "is more than the row has, or than static_w in its time",
                    f"at most {max(min(limits), 0.0)!r}", static_j,
                )  # fmt: skip

    def _modules(self, chunk: TableChunk) -> None:
        """Check that rows of one module agree on class and parameters, for the first 65,536 modules."""
        classes = chunk.columns["module_class"]
        if not any(classes):
            return
        columns = (chunk.columns[name] for name in ("fqn", *_OF_MODULE))
        for row, name, *cells in zip(chunk.rows, *columns, strict=True):
            if cells[0] is None or row in chunk.bad:
                continue
            earlier = self.modules.get(cast("str", name))
            if earlier is None:
                if len(self.modules) < MOST_MODULES:
                    self.modules[cast("str", name)] = tuple(cells)
            elif earlier != tuple(cells):
                at = next(
                    i for i, (cell, earlier_cell) in enumerate(zip(cells, earlier, strict=True)) if cell != earlier_cell
                )
                self._report(
                    row, "LAW", _OF_MODULE[at], f"is another than in a row before of {name}", earlier[at], cells[at]
                )

    def finish(self) -> None:
        """Check what needs all rows."""
        if self.facts.broken & {"layer", "device", "run"}:
            return
        self._device_times()
        for (device, _), (joules, seconds, row) in self.alike.items():
            self._power(int(row), device, joules, seconds)
        for name, cells in self.facts.devices.items():
            says_fitted = FITTED in text(cells, "how_known")
            if name in self.fitted and not says_fitted and not self.facts.old:
                reason = f"does not say what its rows of fit in {FILE} were fitted to"
                self._of_device(name, reason, f"... {FITTED} ...", cells["how_known"])
            if says_fitted and name not in self.fitted and name in self.by_time and not self.facts.merged:
                self._of_device(
                    name, f"says {FITTED}, and its rows in {FILE} are shared by time", "", cells["how_known"]
                )
        if "event" not in self.facts.broken and not self.facts.merged:
            for device, row in self.shared.items():
                if domain_kind(device) not in HOST_KINDS and ("TIME_SHARE", device) not in self.facts.events:
                    self._report(row, "LAW", "method", f"{device} is shared by time, and no event TIME_SHARE says why")

    def _of_device(self, name: str, reason: str, expected: object, actual: object) -> None:
        self.findings.add(
            "LAW", "device.csv", reason, row=self.facts.device_rows[name], column="how_known", expected=expected,
            found=actual,
        )  # fmt: skip

    def _device_times(self) -> None:
        """Check that host rows together, and each GPU row alone (streams overlap), are no longer than the run."""
        ranks = max(int(number(self.facts.run, "world_size") or 1), 1) if self.facts.merged else 1
        most_s = self.facts.duration_s() * ranks * TIME_REL + TIME_S * ranks
        for device, spent_s in self.time_s.items():
            if domain_kind(device) in HOST_KINDS and spent_s > most_s:
                reason = f"rows of {device} took longer than the run"
                self._report(None, "SUM", "time_self_s", reason, f"at most {most_s!r}", spent_s)
        for row, spent_s in self.longest.values():
            if spent_s > most_s:
                self._report(row, "LAW", "time_self_s", "took longer than the run", f"at most {most_s!r}", spent_s)
