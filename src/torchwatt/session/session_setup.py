"""Opens the parts of a session: its meters, with an idle baseline, and its tracing; and keeps a Ctrl-C for its end.

Meters that cannot be opened or started are replaced by none, so that the program still runs.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from torchwatt.attribution.sensor_response import SensorModel
from torchwatt.audit.store import default_store
from torchwatt.core.errors import ConfigError, warn
from torchwatt.core.meter import Event, Meter
from torchwatt.core.trace import EMPTY_TRACE, Trace
from torchwatt.disk.descriptors import descriptors_are_scarce
from torchwatt.distributed.rank_session import RankSession
from torchwatt.journal.journal_directory import JournalDirectory, journal_path
from torchwatt.journal.journal_reader import prune_journals
from torchwatt.journal.journal_records import JournalHead
from torchwatt.journal.journal_writer import JournalWriter
from torchwatt.reports.process_identity import current_process, software_versions
from torchwatt.reports.run_options import RunOptions
from torchwatt.sensors import Feed, Sampler, discover
from torchwatt.sensors.protocol import NullFeed
from torchwatt.tracing import Tracer
from torchwatt.tracing.loop_steps import steps_between
from torchwatt.tracing.scope import StepMarks
from torchwatt.tracing.user_process import ImportHook, StepJitter

NO_STARTS = np.zeros(0, dtype=np.int64)
LOW_OVERHEAD_BUDGET = 0.002  # of a core: about what reading the process's clocks ten times a second costs


def open_feed(options: RunOptions, member: RankSession | None) -> Feed:
    """Return the feed given by the user, else a sampler of the meters found here; in a job, of this rank's meters."""
    if options.feed is not None:
        return options.feed
    try:
        # In a job, all processes of the launcher count as ours.
        discovery = discover(powercap_root=options.powercap_root, family=None if member is None else os.getppid())
        thrifty = options.overhead_budget <= LOW_OVERHEAD_BUDGET
        return Sampler(discovery if member is None else member.assign_meters_here(discovery), thrifty=thrifty)
    except ConfigError:
        raise
    except Exception as error:  # out of descriptors, memory or threads, or a broken binding: the program must still run
        return _null_feed(error)


def start_feed(feed: Feed, *, is_user_feed: bool) -> Feed:
    """Start the meters; if that fails, return a feed without meters, or raise the error if the user gave the feed."""
    try:
        feed.start()
    except Exception as error:
        if is_user_feed:
            raise
        with contextlib.suppress(Exception):
            feed.stop()
        return _null_feed(error)
    return feed


def sample_baseline(feed: Feed, seconds: float) -> None:
    """Sample an idle baseline, which gives the static power; slow meters publish at least once in it."""
    if any(channel.quantity != "gauge" for meter in feed.meters for channel in meter.channels):
        time.sleep(seconds)


def _null_feed(error: BaseException) -> NullFeed:
    silent = NullFeed(error)
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
        self,
        options: RunOptions,
        models: Sequence[tuple[str, Any]],
        report_fault: Callable[[str, str, Exception], None],
    ) -> None:
        self.tracer = Tracer(models=models, overhead_budget=options.overhead_budget) if options.layers else None
        self._report_fault = report_fault
        self._jitter = StepJitter(options.dither_s) if options.dither_s > 0 else None
        self._torch_import: ImportHook | None = None  # starts the tracer when torch is imported
        self._marks = StepMarks()  # steps marked by the user while there is no tracer

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
            self._jitter.delay_randomly()

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


MAX_LOST_S = 1.0  # guaranteed bound on the readings that a kill or a loss of power can lose; see docs/journal.md


def open_journal(
    options: RunOptions, run_id: str, feed: Feed, sensors: Mapping[str, SensorModel], events: list[Event]
) -> JournalWriter | None:
    """Create the journal's files and write their heads before the first reading.

    Raises:
        ConfigError: The folder that the user named cannot be used. In the store that is only an event.
    """
    if options.journal is False:
        return None
    user_named = options.journal is not True
    if not user_named and descriptors_are_scarce():
        events.append(_no_journal_event("the process may open few more files"))
        return None
    path = (
        options.journal
        if not isinstance(options.journal, bool)
        else journal_path(options.keep or default_store(), run_id)
    )
    if not user_named:
        prune_journals(path.parent.parent)
    try:
        place = JournalDirectory(path)
    except ConfigError as error:
        if user_named:
            raise
        events.append(_no_journal_event(str(error)))
        return None
    return JournalWriter(place, _journal_head(options, run_id, feed, sensors), user_named=user_named)


def _no_journal_event(why: str) -> Event:
    return Event(
        time.monotonic_ns(),
        "warning",
        "NO_JOURNAL",
        "run",
        f"there is no journal, so a killed run would be lost: {why}",
    )


def _journal_head(options: RunOptions, run_id: str, feed: Feed, sensors: Mapping[str, SensorModel]) -> JournalHead:
    return JournalHead(
        run_id=run_id,
        name=options.name,
        owner=current_process(),
        mono_ns=time.monotonic_ns(),
        unix_ns=time.time_ns(),
        meters=feed.meters,
        lost_s=MAX_LOST_S,
        unavailable=feed.unavailable,
        software=software_versions(),
        carbon=options.carbon,
        layers=options.layers,
        project=options.project,
        sensors=sensors,
        replays=options.replays,
        work=tuple(options.work.items()),
    )


StepResult = TypeVar("StepResult")


class DeferredInterrupt:
    """Runs the steps that close a session; a step interrupted by Ctrl-C runs once more, and the interrupt is kept.

    A second Ctrl-C in one step is raised at once.
    """

    def __init__(self) -> None:
        self._interrupt: KeyboardInterrupt | None = None

    def run(self, step: Callable[[], StepResult]) -> StepResult:
        """Return the result of a step, which must be safe to run again."""
        try:
            return step()
        except KeyboardInterrupt as interrupt:
            self._interrupt = interrupt
            return step()

    def raise_it(self) -> None:
        """Raise the interrupt that was kept, if any."""
        if self._interrupt is not None:
            raise self._interrupt
