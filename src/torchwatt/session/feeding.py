"""Opens the parts of a session: its meters, with an idle baseline, and its tracing.

Meters that cannot be opened or started are replaced by none, so that the program still runs.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from torchwatt.core.errors import ConfigError
from torchwatt.core.meter import Event, Meter
from torchwatt.core.trace import EMPTY_TRACE, Trace
from torchwatt.core.warn import warn
from torchwatt.sensors import Feed, Sampler, discover
from torchwatt.sensors.silent import Silent
from torchwatt.session.jobs.member import Member
from torchwatt.session.options import Options
from torchwatt.tracing import Tracer
from torchwatt.tracing.dither import Dither
from torchwatt.tracing.import_hook import ImportHook
from torchwatt.tracing.marks import Marks
from torchwatt.tracing.steps import steps_between

NO_STARTS = np.zeros(0, dtype=np.int64)
THRIFTY_BUDGET = 0.002  # of a core: about what reading the process's clocks ten times a second costs


def found_feed(options: Options, member: Member | None) -> Feed:
    """Return the feed given by the user, else a sampler of the meters found here; in a job, of this rank's meters."""
    if options.feed is not None:
        return options.feed
    try:
        # In a job, all processes of the launcher count as ours.
        discovery = discover(powercap_root=options.powercap_root, family=None if member is None else os.getppid())
        thrifty = options.overhead_budget <= THRIFTY_BUDGET
        return Sampler(discovery if member is None else member.discovered(discovery), thrifty=thrifty)
    except ConfigError:
        raise
    except Exception as error:  # out of descriptors, memory or threads, or a broken binding: the program must still run
        return _silent(error)


def started(feed: Feed, *, is_user_feed: bool) -> Feed:
    """Start the meters; if that fails, return a feed without meters, or raise the error if the user gave the feed."""
    try:
        feed.start()
    except Exception as error:
        if is_user_feed:
            raise
        with contextlib.suppress(Exception):
            feed.stop()
        return _silent(error)
    return feed


def rest(feed: Feed, seconds: float) -> None:
    """Sample an idle baseline, which gives the static power; slow meters publish at least once in it."""
    if any(channel.quantity != "gauge" for meter in feed.meters for channel in meter.channels):
        time.sleep(seconds)


def _silent(error: BaseException) -> Silent:
    silent = Silent(error)
    warn(f"torchwatt: {silent.reason}")
    return silent


class SessionTracing:
    """Traces the modules and steps of a session; before torch is imported, only steps that the user marks.

    Args:
        options: The session's options.
        models: (name, model) pairs; a name is "" if it is to be taken from the user's variable.
        report_fault: Called with an event's code, the consequence and the error if tracing fails.

    Attributes:
        tracer: None if layers are off, torch is not imported yet, or tracing failed.
    """

    def __init__(
        self, options: Options, models: Sequence[tuple[str, Any]], report_fault: Callable[[str, str, Exception], None]
    ) -> None:
        self.tracer = Tracer(models=models, overhead_budget=options.overhead_budget) if options.layers else None
        self._report_fault = report_fault
        self._jitter = Dither(options.dither_s) if options.dither_s > 0 else None
        self._torch_import: ImportHook | None = None  # starts the tracer when torch is imported
        self._marks = Marks()  # steps marked by the user while there is no tracer

    def start(self, meters: Sequence[Meter], *, is_running: Callable[[], bool]) -> None:
        """Start tracing, or install a hook that starts it when torch is imported; torch then reads its environment."""
        if self.tracer is not None:
            facts = [(dict(meter.facts), meter.domain) for meter in meters]
            self.tracer.know_devices({fact["uuid"]: str(domain) for fact, domain in facts if "uuid" in fact})
            if "torch" in sys.modules:
                self._start_tracer(self.tracer)
            else:
                tracer, self.tracer = self.tracer, None
                self._torch_import = ImportHook("torch", lambda: self._start_tracer(tracer) if is_running() else None)
        if self._jitter is not None:
            self._jitter.start()

    def _start_tracer(self, tracer: Tracer) -> None:
        """Start a tracer; if it fails, the run is metered without layers."""
        try:
            tracer.start(self._marks)
        except Exception as error:
            self._report_fault("TRACE_LOST", "modules are not traced", error)
            self.tracer = None
        else:
            self.tracer = tracer

    def step(self) -> None:
        """Mark the end of a step."""
        if self.tracer is not None:
            self.tracer.step()
        else:
            self._marks.add(time.monotonic_ns())
        if self._jitter is not None:
            self._jitter.shake()

    def resume(self) -> None:
        """Exclude the time since the last step from the next step."""
        if self.tracer is not None:
            self.tracer.resume()
        else:
            self._marks.resume(time.monotonic_ns())

    def snapshot(self, start_ns: int) -> Trace:
        """Return the trace so far of a run that began at `start_ns`."""
        return self.tracer.snapshot() if self.tracer is not None else self._marked_trace(start_ns)

    def end_jitter(self) -> Event | None:
        """Stop waiting for torch's import and delaying steps; return the event that describes the delays."""
        self._remove_hook()
        if self._jitter is None:
            return None
        self._jitter.stop()
        return Event(time.monotonic_ns(), "info", "DITHERED", "run", self._jitter.told())

    def stop(self, start_ns: int, end_ns: int) -> Trace:
        """Stop tracing and return the trace of a run from `start_ns` to `end_ns`; an empty one if the tracer fails."""
        if self.tracer is None:
            return self._marked_trace(start_ns)
        try:
            return self.tracer.stop(end_ns)
        except Exception as error:
            self._report_fault("TRACE_LOST", "the trace was lost", error)
            with contextlib.suppress(Exception):
                self.tracer.stop()  # remove the wrappers in any case
            return EMPTY_TRACE

    def undo(self) -> None:
        """Stop everything after a failed start of the session."""
        self._remove_hook()
        if self._jitter is not None:
            self._jitter.stop()
        if self.tracer is not None:
            self.tracer.stop()

    def _remove_hook(self) -> None:
        if self._torch_import is not None:
            self._torch_import.remove()

    def _marked_trace(self, start_ns: int) -> Trace:
        """Return a trace with only the steps that the user marked."""
        steps = steps_between(self._marks.entries(), NO_STARTS, start_ns, self._marks.resumed())
        counts = tuple(step.count for step in steps)
        bounds = tuple((step.start_ns, step.end_ns) for step in steps)
        return replace(EMPTY_TRACE, steps=bounds, step_counts=counts if any(n > 1 for n in counts) else ())
