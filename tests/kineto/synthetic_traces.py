"""Synthetic Kineto traces: whole programs as torch's profiler would write them, with every layer's time known.

A program runs on a clock of whole microseconds. Its device works off what is launched in order, stream by stream, so
that kernels lag behind their launches and streams overlap.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

from tests.kineto.trace_files import BACK, BASE_NS, MAIN, event, kernel, launch, module, node, note, op

Layer = tuple[str, str]  # class and name, such as ("Linear", "Linear_3")
COMPUTE, COMMUNICATION = 7, 20  # streams


class SyntheticProgram:
    """Writes down what a host does and what its device works off; `owner_ns` is the truth by (module, phase)."""

    def __init__(self, seed: int = 0) -> None:
        self.events: list[dict[str, Any]] = []
        self.owner_ns: Counter[tuple[str, str]] = Counter()
        self.kernel_ns = 0
        self.captured: list[tuple[str, str]] = []  # (kernel, module) in order
        self._random = Random(seed)
        self._t = 0
        self._free: Counter[int] = Counter()  # until when each stream is busy
        self._correlation = 0
        self._sequence = 0
        self._capturing = False

    def work(self, name: str, owner: str, phase: str, *, tid: int = MAIN, stream: int = COMPUTE) -> None:
        """Launch one kernel and let its owner have its time; while a graph is captured nothing runs."""
        self._t += self._random.randint(2, 9)
        self._correlation += 1
        if self._capturing:
            self.events.append(launch(self._t, self._correlation, tid, kernel=name))
            self.captured.append((name, owner))
            return
        self.events.append(launch(self._t, self._correlation, tid))
        self._run(name, owner, phase, self._t + 3, self._correlation, stream)
        self._t += 2

    def _run(self, name: str, owner: str, phase: str, earliest: int, correlation: int, stream: int) -> None:
        start, dur = max(earliest, self._free[stream]), self._random.randint(5, 80)
        self._free[stream] = start + dur
        self.events.append(kernel(start, dur, correlation, name, stream=stream))
        self.owner_ns[owner, phase] += dur * 1000
        self.kernel_ns += dur * 1000

    def forward(self, layers: Sequence[Layer], *, tid: int = MAIN, phase: str = "forward") -> list[tuple[str, int]]:
        """Call layers inside a `Net_0`; return each layer with the number of the node that its operator made."""
        begun, made = self._t, []
        self._t += 1
        for kind, name in layers:
            start = self._t
            self._t += 2
            for part in range(self._random.randint(1, 3)):
                operator = self._t
                self.work(f"{kind.lower()}_{part}", name, phase, tid=tid)
                self._t += 1
                self.events.append(op(f"aten::{kind.lower()}", operator, self._t - operator, tid, self._sequence))
            made.append((name, self._sequence))
            self._sequence += 1
            self._t += 1
            self.events.append(module(name, start, self._t - start, tid))
            self._t += 1
        self.events.append(module("Net_0", begun, self._t - begun, tid))
        self._t += 5
        return made

    def backward(
        self, made: Sequence[tuple[str, int]], *, recompute: Sequence[Layer] = (), reduce: bool = False
    ) -> None:
        """Run the nodes in the opposite order; layers of `recompute` are called again inside the first of them."""
        for i, (name, sequence) in enumerate(reversed(made)):
            start = self._t
            self._t += 1
            if recompute and i == 0:
                for _, again in recompute:
                    inner = self._t
                    self._t += 1
                    self.work("recomputed", again, "backward", tid=BACK)
                    self._t += 1
                    self.events.append(module(again, inner, self._t - inner, BACK))
                    self._t += 1
            self.work(f"grad_{i % 2}", name, "backward", tid=BACK)
            self._t += 1
            self.events.append(node("Backward0", start, self._t - start, sequence))
            self._t += 1
            if reduce:
                self.work("ncclDevKernel_AllReduce", "(communication)", "communication", stream=COMMUNICATION)
        self._t += 5

    def optimizer_step(self) -> None:
        """Run an optimizer's kernel inside its annotation."""
        start = self._t
        self._t += 1
        self.work("adam", "(optimizer)", "optimizer")
        self.events.append(note("Optimizer.step#Adam.step", start, self._t - start + 1))
        self._t += 10

    def capture(self, layers: Sequence[Layer]) -> None:
        """Capture a forward pass into a CUDA graph: launches without records."""
        self._mark("cudaStreamBeginCapture")
        self._capturing = True
        self.forward(layers)
        self._capturing = False
        self._mark("cudaStreamEndCapture")

    def replay(self, captured: Sequence[tuple[str, str]], times: int, *, owner: str | None = None) -> None:
        """Launch a graph several times inside an annotation `decode`, which owns all where `owner` says so."""
        for _ in range(times):
            start = self._t
            self._t += 1
            self._mark("cudaGraphLaunch")
            for name, layer in captured:
                phase = "other" if owner else "forward"
                self._run(name, owner or layer, phase, self._t + 5, self._correlation, COMPUTE)
            self.events.append(note("decode", start, 6))
            self._t = max(self._t + 10, self._free[COMPUTE])

    def _mark(self, name: str) -> None:
        self._t += 1
        self._correlation += 1
        self.events.append(launch(self._t, self._correlation, name=name))
        self._t += 1

    def save(self, path: Path) -> Path:
        """Write it as Kineto does with `.json.gz`: events in no order of time, calls of Python between them."""
        calls = [event("python_function", f"train.py({i}): step", i * 50, 40) for i in range(self._t // 50)]
        events = [*calls, *self.events]
        self._random.shuffle(events)
        head = {"schemaVersion": 1, "baseTimeNanoseconds": BASE_NS, "traceName": "synthetic"}
        path.write_bytes(gzip.compress(json.dumps({**head, "traceEvents": events}).encode()))
        return path


def layers_of(count: int) -> list[Layer]:
    """Return so many layers of three kinds."""
    kinds = ("Linear", "LayerNorm", "GELU")
    return [(kinds[i % 3], f"{kinds[i % 3]}_{i // 3}") for i in range(count)]


def training(*, steps: int = 3, layers: int = 9, recompute: bool = False, reduce: bool = False) -> SyntheticProgram:
    """Return a training: forward, backward on another thread (with collectives, or recomputed layers), an optimizer."""
    program, net = SyntheticProgram(steps * layers), layers_of(layers)
    for _ in range(steps):
        made = program.forward(net)
        program.backward(made, recompute=net[-3:] if recompute else (), reduce=reduce)
        program.optimizer_step()
    return program


def inference(*, calls: int = 4, layers: int = 12) -> SyntheticProgram:
    """Return forward passes alone."""
    program = SyntheticProgram(calls)
    for _ in range(calls):
        program.forward(layers_of(layers))
    return program


PREFILL, DECODE = "prefill", "decode"
SERVED: dict[str, tuple[Layer, ...]] = {
    PREFILL: (("Attention", "Attention_0"), ("MLP", "MLP_0")) * 4,
    DECODE: (("Attention", "Attention_0"), ("MLP", "MLP_0"), ("Head", "Head_0")),
}
WORKER_TID, WORKER_STREAM = 300, 30  # of the first thread; one more for each other


class ServedKernels(NamedTuple):
    """Columns of the kernels that a server ran: seconds since the trace's base, stage, and stream."""

    start_s: np.ndarray
    end_s: np.ndarray
    stage: np.ndarray
    stream: np.ndarray


class SyntheticServer:
    """Host threads that serve requests, each on a stream of its own: their stages overlap on one device.

    A request is a prefill of 60 to 250 ms and 10 to 50 decode steps of 9 ms, each in an annotation of its own. A
    thread launches a step's kernels at once, and its annotation ends when the step `ahead` of it has ended: with 0
    when its own work has, with 1 its launches run ahead of the device. `windows` are the annotations: stage, start and
    end in seconds.
    """

    def __init__(self, seed: int, seconds: float, *, ahead: int = 0, threads: int = 2, first_s: float = 4.0) -> None:
        self._random = Random(seed)
        self.events: list[dict[str, Any]] = []
        self.windows: list[tuple[str, float, float]] = []
        self._kernels: list[tuple[int, int, str, int]] = []
        self._correlation = 0
        for thread in range(threads):
            t_us, until_us = round(first_s * 1e6), round((first_s + seconds) * 1e6)
            while t_us < until_us:
                t_us += round(self._random.expovariate(1 / 120_000))
                t_us = self._request(t_us, thread, ahead)

    def _request(self, t_us: int, thread: int, ahead: int) -> int:
        """Serve one request; return when its last step has ended."""
        steps = [(PREFILL, self._random.randint(60_000, 250_000)), *[(DECODE, 9_000)] * self._random.randint(10, 50)]
        ends_us = [t_us] * ahead  # of the steps so far; before the first, nothing is waited for
        for stage, work_us in steps:
            t_us += self._random.randint(20, 300)
            launched_us = self._launch(stage, t_us, max(t_us, ends_us[-1] if ends_us else 0), work_us, thread, ends_us)
            done_us = max(launched_us, ends_us[-1 - ahead]) + 5
            self.events.append(note(f"stage: {stage}", t_us, done_us - t_us, WORKER_TID + thread))
            self.windows.append((stage, t_us / 1e6, done_us / 1e6))
            t_us = done_us
        return max(t_us, ends_us[-1])

    def _launch(self, stage: str, host_us: int, free_us: int, work_us: int, thread: int, ends_us: list[int]) -> int:
        """Launch a step's kernels, which run from `free_us` on; note their end, and return that of the launches."""
        layers, tid, stream, began_us = SERVED[stage], WORKER_TID + thread, WORKER_STREAM + thread, host_us
        parts = [self._random.uniform(0.8, 1.2) * (0.1 if kind == "Head" else 1.0) for kind, _ in layers]
        grid = {"grid": [8 if stage == DECODE else 512, 1, 1], "block": [128, 1, 1]}
        for (kind, name), part in zip(layers, parts, strict=True):
            self._correlation += 1
            self.events += [module(name, host_us + 1, 8, tid), launch(host_us + 3, self._correlation, tid)]
            start_us, long_us = max(host_us + 6, free_us), round(work_us * part / sum(parts))
            free_us = start_us + long_us
            name_of_kernel = f"{kind.lower()}_fwd"
            self.events.append(kernel(start_us, long_us, self._correlation, name_of_kernel, stream=stream, **grid))
            self._kernels.append((start_us, free_us, stage, stream))
            host_us += 12
        self.events.append(module("Net_0", began_us, host_us - began_us, tid))
        ends_us.append(free_us)
        return host_us

    def kernels(self) -> ServedKernels:
        """Return what ran on the device."""
        start, end, stage, stream = zip(*sorted(self._kernels), strict=True)
        return ServedKernels(np.array(start) / 1e6, np.array(end) / 1e6, np.array(stage), np.array(stream))

    def save(self, path: Path) -> Path:
        """Write it as Kineto does, in no order of time."""
        events = list(self.events)
        self._random.shuffle(events)
        head = {"schemaVersion": 1, "baseTimeNanoseconds": BASE_NS, "traceName": "synthetic"}
        path.write_bytes(gzip.compress(json.dumps({**head, "traceEvents": events}).encode(), 1))
        return path
