"""Scenarios: which GPUs there are, what they draw, how their sensors sample that, and what goes wrong when."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self
from urllib.parse import quote_from_bytes

from tests.support.nvml_simulator.build_library import SCENARIO, library_folder
from tests.support.nvml_simulator.power_trace import PowerFile, PowerTrace

GIB = 1 << 30
# How often power is published and over which window before it is averaged: by the instant field, and by
# nvmlDeviceGetPowerUsage and the average field. Windows of 25 in 100 ms (A100, H100) and 10 in 20 ms: Yang, Adamek,
# Armour, arXiv 2312.02741. Averages of 1 s from Ampere on, but not on GA100: NVML's reference, nvmlDeviceGetPowerUsage.
# Counters and Blackwell are guesses. `instant_ms=-1`: no power by fields.
MODELS: dict[str, dict[str, object]] = {
    "ideal": {"name": "NVIDIA Ideal GPU", "update_ms": 0, "instant_ms": 0, "average_ms": 0, "counter_update_ms": 0},
    "pascal": {"name": "Tesla P100", "update_ms": 20, "instant_ms": -1, "average_ms": 10, "counter": "none"},
    "volta": {"name": "Tesla V100", "update_ms": 20, "instant_ms": -1, "average_ms": 10, "counter_update_ms": 20},
    "ga100": {
        "name": "NVIDIA A100-SXM4-80GB", "update_ms": 100, "instant_ms": 25, "average_ms": 25,
        "counter_update_ms": 100,
    },
    "ampere": {
        "name": "NVIDIA GeForce RTX 3090", "update_ms": 100, "instant_ms": 100, "average_ms": 1000,
        "counter_update_ms": 100,
    },
    "hopper": {
        "name": "NVIDIA H100 80GB HBM3", "update_ms": 100, "instant_ms": 25, "average_ms": 1000,
        "counter_update_ms": 100,
    },
    "blackwell": {
        "name": "NVIDIA B200", "update_ms": 100, "instant_ms": 25, "average_ms": 1000, "counter_update_ms": 100,
    },
}  # fmt: skip
_ALL_MODELS: dict[str, object] = {
    "memory": 80 * GIB, "used_memory": GIB // 2, "temperature": 45, "clock_mhz": 1980, "utilization": 90,
    "counter_start_mj": 1_000_000_000, "ring_update_ms": 20, "ring_window_ms": 20, "ring_length": 120,
}  # fmt: skip


def gpu_uuid(gpu: int) -> str:
    """Return the UUID of a GPU that was given none."""
    return f"GPU-7e570000-0000-4000-8000-{gpu:012x}"


def slice_uuid(uuid: str, place: int) -> str:
    """Return the UUID of a slice (MIG device) of a GPU."""
    return f"MIG-{place:08x}{uuid[12:]}"


class Scenario:
    """A machine with simulated GPUs. Methods add to it and return it, so that calls can follow each other.

    Times are seconds from the origin, which is the moment when the scenario is written, or `origin_ns` of `clock`: a
    file with the time in nanoseconds (int64), by default the wall clock. Where a method takes a GPU and is given none,
    it is the one that was added last.
    """

    def __init__(self, *, origin_ns: int | None = None, clock: Path | None = None, call_delay_us: int = 0) -> None:
        self.origin_ns = origin_ns
        self.clock = clock
        self._call_delay_us = call_delay_us
        self._powers: list[PowerTrace | PowerFile] = []
        self._modules: list[float] = []
        self._faults_s: list[float] = []
        self._statements: list[str] = []

    @property
    def first_fault_s(self) -> float | None:
        """When the first fault begins that was given a time."""
        return min(self._faults_s, default=None)

    def gpu(
        self,
        model: str = "hopper",
        power: PowerTrace | PowerFile | float = 100.0,
        *,
        limit_w: float = 700.0,
        default_limit_w: float = 700.0,
        **settings: object,
    ) -> Self:
        """Add a GPU.

        Args:
            model: A key of MODELS: how it samples.
            power: What it truly draws.
            limit_w: Its enforced power limit.
            default_limit_w: Its default power limit.
            settings: Keys of the statement `device` in README.md, such as `name`, `uuid`, `noise_w`, `mig`,
                `counter="none"`, `counter_gain`, `module` (of `module()`).
        """
        device = len(self._powers)
        given = {
            "uuid": gpu_uuid(device),
            "limit_mw": round(limit_w * 1e3),
            "default_limit_mw": round(default_limit_w * 1e3),
            **_ALL_MODELS,
            **MODELS[model],
            **settings,
        }
        self._powers.append(power if isinstance(power, PowerTrace | PowerFile) else PowerTrace.constant(power))
        return self.add("device", **given).add_lines(*self._powers[-1].statements(device))

    def module(self, extra_w: float) -> Self:
        """Add a superchip module, which draws so much beside its GPUs; modules count from 0."""
        self._modules.append(extra_w)
        return self.add("module", extra_w=extra_w)

    def process(
        self, pid: int | str = "self", *, memory: int = 4 * GIB, kind: str = "C", gpu: int | None = None
    ) -> Self:
        """Add a process to a GPU's list: "self" is whoever reads it; kind is C(ompute), G(raphics) or M(PS)."""
        return self.add("process", device=self._index(gpu), pid=pid, memory=memory, kind=kind)

    def fault(
        self,
        call: str,
        code: int = 0,
        *,
        gpu: int | None = None,
        from_s: float | None = None,
        until_s: float | None = None,
        count: int = 0,
        hang_ms: int = 0,
    ) -> Self:
        """Let calls fail, or hang and go on.

        Args:
            call: Names of functions without their version, or "field:186", with wildcards, separated by commas.
            code: NVML's number, 0 for a call that only hangs.
            gpu: Calls about this GPU only; by default all calls.
            from_s: Not before.
            until_s: Not from then on.
            count: At most so many calls of a process; 0 for all.
            hang_ms: How long each such call hangs.
        """
        if from_s is not None:
            self._faults_s.append(from_s)
        device = -1 if gpu is None else gpu
        return self.add(
            "fault", call=call, code=code, device=device, from_s=from_s, until_s=until_s, count=count, hang_ms=hang_ms
        )

    def freeze_counter(self, from_s: float, until_s: float, gpu: int | None = None) -> Self:
        """Let the energy counter stand still for a while; then it shows all joules again."""
        return self.add("hold", sensor="counter", device=self._index(gpu), from_s=from_s, until_s=until_s)

    def freeze_power(self, from_s: float, until_s: float, gpu: int | None = None) -> Self:
        """Let all power sensors repeat one value for a while."""
        return self.add("hold", sensor="power", device=self._index(gpu), from_s=from_s, until_s=until_s)

    def force_power(self, watts: float, from_s: float, until_s: float, gpu: int | None = None) -> Self:
        """Let all power sensors say so many watts for a while, whatever is drawn."""
        return self.add("force", device=self._index(gpu), watts=watts, from_s=from_s, until_s=until_s)

    def reset_counter(self, at_s: float, to_mj: int = 0, gpu: int | None = None) -> Self:
        """Let the energy counter begin again."""
        return self.add("jump", device=self._index(gpu), at_s=at_s, set_mj=to_mj)

    def add_to_counter(self, at_s: float, mj: int, gpu: int | None = None) -> Self:
        """Let the energy counter jump by so much, modulo 2^64."""
        return self.add("jump", device=self._index(gpu), at_s=at_s, add_mj=mj)

    def add(self, statement: str, **keys: object) -> Self:
        """Add a statement of README.md; a key that is None is left out."""
        return self.add_lines(_line(statement, keys))

    def add_lines(self, *lines: str) -> Self:
        """Add statements as they stand in the file."""
        self._statements += lines
        return self

    def _index(self, gpu: int | None) -> int:
        return len(self._powers) - 1 if gpu is None else gpu

    def write(self, path: Path) -> Path:
        """Write the scenario; where it has no origin, it begins now."""
        origin_ns = time.time_ns() if self.origin_ns is None else self.origin_ns
        machine = {"origin_ns": origin_ns, "clock": self.clock, "call_delay_us": self._call_delay_us}
        path.write_text("\n".join([_line("machine", machine), *self._statements]) + "\n", encoding="utf-8")
        return path

    def environment(self, path: Path, **more: str) -> dict[str, str]:
        """Write the scenario; return the environment of a process that finds these GPUs."""
        return {**os.environ, SCENARIO: str(self.write(path)), "LD_LIBRARY_PATH": str(library_folder()), **more}

    def true_module_energy_j(self, module: int, gpus: Sequence[int], start_ns: int, end_ns: int) -> float:
        """Return the exact joules of a module with its GPUs between two instants of the scenario's clock."""
        beside_j = self._modules[module] * (end_ns - start_ns) / 1e9
        return beside_j + math.fsum(self.true_energy_j(gpu, start_ns, end_ns) for gpu in gpus)

    def true_energy_j(self, gpu: int, start_ns: int, end_ns: int) -> float:
        """Return the exact joules of a GPU between two instants of the scenario's clock; it has an origin."""
        power = self._powers[gpu]
        if isinstance(power, PowerFile):
            return power.energy_j(start_ns, end_ns)
        assert self.origin_ns is not None, "the scenario has no origin"
        return power.energy_j((start_ns - self.origin_ns) / 1e9, (end_ns - self.origin_ns) / 1e9)


def begin_now() -> None:
    """Let the scenario of this process's environment begin now."""
    path = Path(os.environ[SCENARIO])
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(_origin(text), str(time.time_ns()), 1), encoding="utf-8")


def origin_ns(path: Path) -> int:
    """Return the origin of a written scenario in Unix nanoseconds."""
    return int(_origin(path.read_text(encoding="utf-8")))


def _origin(text: str) -> str:
    return text.partition("origin_ns=")[2].split(maxsplit=1)[0]


def _line(statement: str, keys: dict[str, object]) -> str:
    return " ".join([statement, *(f"{key}={_value(value)}" for key, value in keys.items() if value is not None)])


def _value(value: object) -> str:
    text = value if isinstance(value, bytes) else str(value).encode()
    return quote_from_bytes(text, safe="/,:*?[]-.+")
