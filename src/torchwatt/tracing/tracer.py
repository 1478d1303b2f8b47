"""The tracer: start, step, stop, and the resulting trace."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torchwatt.core.errors import ConfigError, TraceError
from torchwatt.core.meter import Event
from torchwatt.core.trace import EMPTY_TRACE, Trace

if TYPE_CHECKING:
    from torch import nn

    from torchwatt.tracing.device_profiler import DeviceProfiler
    from torchwatt.tracing.instrumentation import Instrumentation
    from torchwatt.tracing.live_tally import LiveTally
    from torchwatt.tracing.scope import StepMarks
    from torchwatt.tracing.thread_log import ThreadLog
    from torchwatt.tracing.tracing_policy import TracingPolicy

DEFAULT_MAX_SPANS = 50_000  # about 10 MB with what belongs to them; a thousand steps of fifty modules
TOLERATED = 1.2  # multiple of the budget beyond which an event is recorded
EARLY_NS = 2_000_000_000  # tolerated extra run time, which would have paid for the first steps and the first window


class Tracer:
    """Record which module ran when, forward and backward, on the thread that starts it.

    Threads without a tracer of their own are included; a nested tracer's spans belong to the outer one too.

    Args:
        model: Its children are named as in its `state_dict`. Without it, modules that are called outside any
            other module become roots, named by the user's variable.
        models: Several models instead, each with its name, "" for that of the user's variable: they become roots.
        windows: Trace some backward calls node by node; without, backward is one `(unattributed)` span a call.
        overhead_budget: Share of the session's time that tracing may cost the user's threads. Where tracing
            every call costs more, only some steps are traced; what the others did is filled in from them. With 0
            no module is traced below the outermost. The outermost tracer's counts.
        max_spans: With more spans, steps are traced more and more rarely. The outermost tracer's counts.
        clock_ns: A monotonic clock. The outermost tracer's counts.

    Raises:
        ConfigError: An argument is out of range.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        models: Sequence[tuple[str, nn.Module]] = (),
        windows: bool = True,
        overhead_budget: float = 0.01,
        max_spans: int = DEFAULT_MAX_SPANS,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if not 0 <= overhead_budget <= 1:
            raise ConfigError(f"overhead_budget must be from 0 to 1, not {overhead_budget}")
        if max_spans < 1:
            raise ConfigError(f"max_spans must be at least 1, not {max_spans}")
        named_models = models if model is None else (("", model),)
        self._models = tuple((name, weakref.ref(each)) for name, each in named_models)
        self._windows = windows
        self._budget = overhead_budget
        self._max_spans = max_spans
        self._clock_ns = clock_ns
        self._device_meters: Mapping[str, str] = {}
        self._hub: Instrumentation | None = None
        self._conductor: TracingPolicy | None = None
        self._spent_ns = 0  # by others, before the start
        self._given: int | None = None
        self._log: ThreadLog | None = None
        self._pid = 0
        self._start_ns = 0
        self._marks: StepMarks | None = None  # steps that the user marked
        self._trace: Trace | None = None
        self._lock = threading.Lock()

    def know_devices(self, meters: Mapping[str, str]) -> None:
        """Set the domain of each GPU's meter, by UUID ("GPU-..."), before the start; the outermost tracer's counts."""
        self._device_meters = dict(meters)

    def start(self, marks: StepMarks | None = None) -> None:
        """Start tracing, on the calling thread.

        Args:
            marks: Steps that the user has marked before; if there are any, only marks count.

        Raises:
            TraceError: It was started before.
        """
        from torchwatt.tracing.instrumentation import acquire_instrumentation
        from torchwatt.tracing.tracing_policy import TracingPolicy

        if self._hub is not None or self._trace is not None:
            raise TraceError("a tracer can be started once: make a new one")
        self._pid = os.getpid()
        hub = self._hub = acquire_instrumentation(self._clock_ns, self._max_spans)
        self._clock_ns = hub.clock_ns
        try:
            self._log = hub.log()
            self._spent_ns = hub.stepping.spent_ns()
            self._start_ns = self._clock_ns()
            self._log.tracers.append((self, self._start_ns))
            self._conductor = TracingPolicy(
                self._budget,
                windows=self._windows,
                max_spans=self._max_spans,
                start_ns=self._start_ns,
                costs=hub.costs,
            )
            self._add_models(hub)
            if self._windows and self._budget > 0 and hub.users == 1:
                hub.expect_cuda(self._new_watch)
                if hub.devices is not None:
                    hub.devices.warm_up()
            hub.stepping.join(self._conductor, self._log)
            if marks is not None and marks.steps:
                self._marks = marks
                hub.manual_steps, self._log.stepless = True, False
        except BaseException:
            self._leave(hub)
            raise

    def _add_models(self, hub: Instrumentation) -> None:
        """Register the given models as roots; a single one is the main root, and its names have no prefix."""
        from torchwatt.tracing.user_process import variable_name

        alive = [(name, model) for name, ref in self._models if (model := ref()) is not None]
        for name, model in alive:
            alone = len(alive) == 1
            label = None if alone else name or variable_name(model, sys._getframe(1))
            key = hub.registry.add_root(model, label).key
            self._given = key if alone else None
            hub.watch(key)

    def _new_watch(self, hub: Instrumentation) -> DeviceProfiler:
        from torchwatt.tracing.device_profiler import DeviceProfiler

        return DeviceProfiler(self._clock_ns, hub.note, self._device_meters)

    def resume(self) -> None:
        """Exclude the time since the last step, such as an evaluation or a checkpoint, from the next one."""
        if self._hub is not None:
            self._own_marks().resume(self._clock_ns())

    def _own_marks(self) -> StepMarks:
        from torchwatt.tracing.scope import StepMarks

        if self._marks is None:
            self._marks = StepMarks()
        return self._marks

    def step(self) -> None:
        """End a step here. From the first call on, only these count; steps found automatically are dropped."""
        hub = self._hub
        if hub is None:
            if self._trace is not None:
                return  # a loop may outlive its session
            raise TraceError("step() before start()")
        log, end = hub.log(), self._clock_ns()
        self._own_marks().add(end)
        hub.manual_steps, log.stepless = True, False
        hub.quiet.stir()
        hub.step_ended(log, end)

    def snapshot(self, most_filled: int | None = None) -> Trace:
        """Return the trace up to now, from any thread, without stopping; costs time in proportion to its length.

        Args:
            most_filled: Approximate limit of filled spans: with fewer, neighbouring steps are merged.
        """
        with self._lock:
            if self._trace is not None:
                return self._trace
            if self._hub is None:
                raise TraceError("snapshot() before start()")
            return self._assemble(self._hub, most_filled=most_filled)

    def tally(self, start_ns: int) -> LiveTally:
        """Return sums of later work, for a view of the session that began at `start_ns`.

        Raises:
            TraceError: The tracer is not running.
        """
        from torchwatt.tracing.live_tally import LiveTally

        hub, log = self._hub, self._log
        if hub is None or log is None:
            raise TraceError("tally() of a tracer that does not run")
        return LiveTally(
            hub,
            log,
            lambda: self._logs(hub) if self._log is not None else (),
            lambda: self._marks.steps if self._marks is not None else None,
            start_ns=start_ns,
            given_key=self._given,
        )

    def pay(self, cost_ns: int) -> None:
        """Book the cost of a view of the running session to the budget of tracing."""
        if self._conductor is not None:
            self._conductor.budget.pay("fixed", cost_ns)

    def stop(self, done_ns: int | None = None) -> Trace:
        """Stop, remove every wrapper, and return the trace; a second call returns the same trace.

        Args:
            done_ns: When devices had finished the session's work, if they were waited for.
        """
        with self._lock:
            if self._trace is None:
                hub = self._hub
                if hub is None:
                    raise TraceError("stop() before start()")
                try:
                    self._trace = self._assemble(hub, is_last=hub.users == 1, done_ns=done_ns)
                finally:
                    self._leave(hub)
            return self._trace

    def _leave(self, hub: Instrumentation) -> None:
        from torchwatt.tracing.instrumentation import release_instrumentation

        if self._log is not None:
            self._log.tracers = [entry for entry in self._log.tracers if entry[0] is not self]
            self._log.former.append((self._start_ns, self._clock_ns()))
        if self._conductor is not None:
            hub.stepping.leave(self._conductor)
        self._hub = self._log = None
        self._models = ()
        release_instrumentation(hub)

    def _assemble(
        self, hub: Instrumentation, *, is_last: bool = False, most_filled: int | None = None, done_ns: int | None = None
    ) -> Trace:
        from torchwatt.tracing.log_rows import NO_STAGE
        from torchwatt.tracing.trace_builder import build_trace
        from torchwatt.tracing.trace_spans import MAX_FILLED, TraceInputs

        if os.getpid() != self._pid:
            return EMPTY_TRACE  # a forked child: the parent has the trace
        end = self._clock_ns()
        done = end if done_ns is None else min(done_ns, end)
        if is_last and self._log is not None:
            hub.stepping.end_part(self._log, done)  # what ran after the last step ended before the session did
        if is_last and hub.devices is not None:
            hub.devices.abandon()
        events = [event for event in list(hub.events) if event.t_ns >= self._start_ns or event.severity == "warning"]
        events += self._overspent(end)
        view = TraceInputs(
            logs=self._logs(hub),
            start_ns=self._start_ns,
            end_ns=end,
            done_ns=done,
            registry=hub.registry,
            scopes=dict(hub.scopes),
            stages={NO_STAGE: ""} | {number: name for name, number in hub.named.stages.items()},
            stage_rows={key: row for row, key in hub.named.stage_rows.items()},
            functions=dict(hub.compiled_calls.named),
            signatures=tuple(hub.signatures.of),
            given=self._given,
            steps=tuple(self._marks.entries()) if self._marks is not None else (),
            resumed=self._marks.resumed() if self._marks is not None else {},
            devices=hub.devices,
            most_filled=most_filled or MAX_FILLED,
            is_last=is_last,
            cost_ns=hub.stepping.spent_ns() - self._spent_ns,
        )
        try:
            return build_trace(view, events)
        except Exception as error:
            # The user's run must not fail on our bug: return an empty trace with the reason.
            message = f"spans were lost: {type(error).__name__}: {error}"
            lost = Event(end, "error", "TRACE_FAILED", "run", message)
            return replace(EMPTY_TRACE, events=(*events, lost))

    def _overspent(self, end_ns: int) -> list[Event]:
        """Return an event if tracing exceeded its budget: steps so short that recording their ends costs too much."""
        books = self._conductor
        if books is None or books.budget.share <= 0:
            return []
        budget = books.budget
        cost_s, most_s = budget.total_ns / 1e9, budget.share * (end_ns - budget.start_ns + EARLY_NS) / 1e9
        if cost_s <= TOLERATED * most_s:
            return []
        text = (
            f"tracing cost {cost_s:.3g} s where the budget allows {most_s:.3g} s: steps are short; "
            "trace with layers='off'"
        )
        return [Event(end_ns, "info", "BUDGET_EXCEEDED", "run", text)]

    def _logs(self, hub: Instrumentation) -> tuple[ThreadLog, ...]:
        own = self._log
        assert own is not None  # noqa: S101 - set by start()
        return (own, *(log for log in list(hub.logs) if log is not own and not log.claimed(self._start_ns)))
