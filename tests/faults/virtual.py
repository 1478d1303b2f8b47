"""A run in virtual time: real readers, the real loop, the real settling; only the clock is made."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from torchwatt.audit import verify, write_bundle
from torchwatt.core.meter import Event, Recording, SamplerStats
from torchwatt.core.report import Report
from torchwatt.core.trace import EMPTY_TRACE, Span, Trace, trace_from_spans
from torchwatt.core.units import NS_PER_S
from torchwatt.reports.report_builder import RunInterval, RunOutcome, build_report
from torchwatt.reports.run_options import RunOptions
from torchwatt.sensors import recording_builder
from torchwatt.sensors.nvml import appeared_gpu_events
from torchwatt.sensors.protocol import Discovery
from torchwatt.sensors.sample_buffer import SampleBuffer
from torchwatt.sensors.sampler import sampler_config
from torchwatt.sensors.sampler_main import make_loops, ring_capacities
from torchwatt.sensors.source_loop import SourceLoop

START_NS = 1_000 * NS_PER_S
UNIX_NS = 1_800_000_000 * NS_PER_S  # what the wall clock says at START_NS
REST_S = 1.0  # the quiet moment before a run, and the readings after it


@dataclass(slots=True)
class Clock:
    """A clock that moves by waiting and by reading; `hooks` are called with the seconds since START_NS."""

    hooks: Sequence[Callable[[float], None]]
    until_ns: int
    now_ns: int = START_NS
    read_ns: int = 20_000

    def __call__(self) -> int:
        """Return the time; looking takes some."""
        self.now_ns += self.read_ns
        return self.now_ns

    def wait(self, seconds: float) -> bool:
        """Let time pass, as `Event.wait` does."""
        self.now_ns += max(round(seconds * NS_PER_S), 0)
        for hook in self.hooks:
            hook((self.now_ns - START_NS) / NS_PER_S)
        return self.is_set()

    def is_set(self) -> bool:
        """Return whether the run is over."""
        return self.now_ns >= self.until_ns


@dataclass(slots=True)
class Bench:
    """Samples a discovery for some virtual seconds. `jumps` are (at_s, for_s): nobody is there to read."""

    found: Discovery
    seconds: float
    hooks: Sequence[Callable[[float], None]] = ()
    jumps: Sequence[tuple[float, float]] = ()
    capacity: int = 1 << 16
    before: Callable[[], None] = field(default=lambda: None)  # between discovery and the sampler's first look

    @property
    def start_ns(self) -> int:
        """Return when the run begins, after its quiet moment."""
        return START_NS + round(REST_S * NS_PER_S)

    @property
    def end_ns(self) -> int:
        """Return when the run ends."""
        return self.start_ns + round(self.seconds * NS_PER_S)

    def record(self) -> Recording:
        """Run every source's loop to the end; return what a sampler would have gathered."""
        sources = tuple(s for s in self.found.sources if any(m.channels for m in s.meters))
        config = sampler_config(sources, self.capacity)
        sizes = ring_capacities(config)
        board = SampleBuffer(mmap.mmap(-1, SampleBuffer.size(len(sources), sizes)), len(sources), sizes)
        self.before()
        for index, loop in enumerate(make_loops(board, config, threading.Event())):
            _drive(loop, index, Clock(self.hooks, self.end_ns + round(REST_S * NS_PER_S)), self.jumps)
        return self._gather(board, config)

    def _gather(self, board: SampleBuffer, config: dict) -> Recording:
        """Do as `Sampler._gather` does."""
        keys = [tap["key"] for source in config["sources"] for tap in source["taps"]]
        rings, notes = dict(zip(keys, board.rings, strict=False)), board.notes()
        channels = [channel for meter in self.found.meters for channel in meter.channels]
        series = tuple(recording_builder.make_series(c, rings[c.key]) for c in channels)
        late = appeared_gpu_events(self.found.gpus) if self.found.gpus is not None else ()
        # Discovery reads the real clock.
        discovered = (replace(event, t_ns=START_NS) for event in (*self.found.events, *late))
        events = (*discovered, *recording_builder.note_events(notes), *recording_builder.throttling_events(series))
        missing = (*self.found.unavailable, *recording_builder.lost_domains(series, rings, notes))
        return Recording(self.found.meters, series, missing, events, stats=SamplerStats("process"))

    def report(self, trace: Trace = EMPTY_TRACE) -> Report:
        """Settle what was recorded, as a session does."""
        return report_of(self.record(), self.start_ns, self.end_ns, trace)


def report_of(
    recording: Recording, start_ns: int, end_ns: int, trace: Trace = EMPTY_TRACE, events: tuple[Event, ...] = ()
) -> Report:
    """Settle a recording over a window of the virtual clock."""
    bounds = RunInterval(start_ns, end_ns, UNIX_NS + start_ns - START_NS)
    return build_report("virtual", RunOptions(), bounds, recording, trace, RunOutcome("complete", events=events))


def sealed(report: Report, folder: Path) -> Report:
    """Check that a report makes a bundle in which `verify` finds nothing, and return it."""
    found = verify(write_bundle(report, folder / f"bundle{len(list(folder.iterdir()))}"))
    assert found.ok, str(found)
    return report


def layers(start_ns: int, parts: Sequence[tuple[str, float, float]]) -> Trace:
    """Make a trace of layers that run from one second to another after the start."""
    at = [(name, start_ns + round(a * NS_PER_S), start_ns + round(b * NS_PER_S)) for name, a, b in parts]
    return trace_from_spans([Span(name, "forward", a, b) for name, a, b in at], steps=[(a, b) for _, a, b in at])


def _drive(loop: SourceLoop, index: int, clock: Clock, jumps: Sequence[tuple[float, float]]) -> None:
    left = sorted(jumps)

    def skip(at_s: float) -> None:
        if left and at_s >= left[0][0]:
            _, for_s = left.pop(0)
            clock.now_ns += round(for_s * NS_PER_S)

    clock.hooks = (skip, *clock.hooks)
    loop._clock_ns, loop.stop, loop._random = clock, clock, Random(index).random  # the loop's own seams
    for hook in clock.hooks:
        hook(0.0)
    loop.run()
