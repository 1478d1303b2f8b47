"""At the end of steps, decide on the next ones, install or remove wrappers, fold logs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch

from torchwatt.core.meter import Severity
from torchwatt.tracing.compile_monitor import CompileMonitor
from torchwatt.tracing.device_profiler import DeviceProfiler
from torchwatt.tracing.fast_path import CallCounter, FastPath
from torchwatt.tracing.log_rows import (
    ALL_CALLS,
    COMPACT_ROWS,
    FORWARD_TASK,
    KEY,
    NODE_COUNT_BASE,
    OFF,
    OUTERMOST,
    START,
    STEP_ENDS,
    TASK,
    UNKNOWN,
    PossibleStepEnd,
    Row,
    SignatureTable,
)
from torchwatt.tracing.module_registry import ModuleRegistry
from torchwatt.tracing.overhead_budget import thread_clock
from torchwatt.tracing.patches import Patches, graph_task_id, sequence_nr
from torchwatt.tracing.thread_log import NEVER_NS, ThreadLog
from torchwatt.tracing.tracing_policy import TracingCosts, TracingPolicy


def outermost_keys(rows: Sequence[Row]) -> set[int]:
    """Return the keys of modules whose calls no other module call encloses, from rows of a log.

    Rows are in order of their ends, so that a call follows all calls that it encloses.
    """
    keys = set()
    covered = 1 << 62
    for row in reversed(rows):
        if row[KEY] > 0 and row[TASK] == FORWARD_TASK and row[START] < covered:
            keys.add(row[KEY])
            covered = row[START]
    return keys


def passing_calls(rows: Sequence[Row], step_calls: int, watched: Callable[[int], bool]) -> int:
    """Return the number of nested calls in a step whose module's class is patched: they pass its wrapper.

    Args:
        rows: The latest of a log; the last ones are those of a traced step.
        step_calls: Number of rows of that step.
        watched: Whether the class of a key's module is patched.
    """
    passing, covered = 0, 1 << 62
    for row in reversed(rows[-step_calls:] if step_calls else ()):
        if row[KEY] <= 0 or row[TASK] != FORWARD_TASK:
            continue
        if row[START] < covered:
            covered = row[START]
        elif watched(row[KEY]):
            passing += 1
    return passing


own_ns = thread_clock()
COLD_STEPS = 4  # discarded at the start of a series recorded by bounds: cold caches make the wrappers slow
FOLD_STEPS = 2_048  # untraced steps between two folds


class StepContext(Protocol):
    """The attributes of the hub that are used here."""

    clock_ns: Callable[[], int]
    costs: TracingCosts
    registry: ModuleRegistry
    signatures: SignatureTable
    patches: Patches
    logs: list[ThreadLog]
    manual_steps: bool
    quiet: FastPath
    devices: DeviceProfiler | None
    compile_watch: CompileMonitor

    def watch_cuda(self) -> None:
        """Start recording devices if CUDA is initialised."""

    def watch(self, key: int) -> None:
        """Patch the class of a module."""

    def watches(self, key: int) -> bool:
        """Return whether the class of a module is patched."""

    def note(self, severity: Severity, code: str, message: str) -> None:
        """Record an event, once per code."""


class StepController:
    """Controls all threads; `conductors` has one per running tracer, and the outermost tracer's decides."""

    def __init__(self, host: StepContext) -> None:
        self._host = host
        self.conductors: list[TracingPolicy] = []
        self._spent_ns = 0  # by tracers that have stopped
        self._tracing: set[ThreadLog] = set()  # threads that trace their current step
        self._arranging = threading.Lock()
        self._counting = CallCounter(host)

    @property
    def conductor(self) -> TracingPolicy | None:
        """The conductor whose budget counts, if any."""
        return self.conductors[0] if self.conductors else None

    def join(self, conductor: TracingPolicy, log: ThreadLog) -> None:
        """Add a tracer's conductor, and decide on the next steps of its thread."""
        self.conductors.append(conductor)
        if len(self.conductors) > 1:
            self.look_closer()
            self.decide(log)
        elif conductor.budget.share <= 0:
            log.mode = log.stride.mode = OUTERMOST
            self._host.quiet.asleep = 0

    def leave(self, conductor: TracingPolicy) -> None:
        """Remove a tracer's conductor."""
        if conductor in self.conductors:
            self._spent_ns += conductor.budget.total_ns
            self.conductors.remove(conductor)

    def spent_ns(self) -> int:
        """Return the cost of tracing since the hub began, of all threads, in ns."""
        booked = self._spent_ns + sum(conductor.budget.total_ns for conductor in self.conductors)
        open_rows = sum(log.total() - log.stride.first_row - log.stride.own_rows for log in list(self._host.logs))
        return booked + round(open_rows * self._host.costs.call_ns)

    def look_closer(self) -> None:
        """Request a full trace of the next step, if the budget allows: new work begins."""
        if self.conductor is not None:
            self.conductor.budget.curious = True
            self.conductor.show_again()
            self._host.quiet.stir()
            for log in list(self._host.logs):
                log.stride.planned = log.answers = 0  # ends the fast path

    def step_ended(self, log: ThreadLog, end_ns: int) -> None:
        """Record the end of a step; decide on the next ones when their planned number has ended."""
        stride, asleep, quiet = log.stride, log.mode == STEP_ENDS, self._host.quiet
        self._rise(log)
        log.read_cpu(end_ns)
        self._record_end(log, end_ns, quiet.take_nodes(sequence_nr()) if quiet.alone else None)
        if self._host.devices is not None:
            self._devices(self._host.devices, log, stamp=True)
        if stride.steps >= stride.planned:
            self.decide(log, None if asleep else end_ns)
        elif not asleep:
            log.add_own(end_ns, self._host.clock_ns(), sequence_nr())
        self._leave_alone(log)

    def earlier_step_ended(self, log: ThreadLog, earlier: PossibleStepEnd) -> None:
        """Record the end of a step that is recognised as one only now, with what had been called until then."""
        quiet = self._host.quiet
        self._rise(log)
        later = quiet.called[earlier.called :]
        del quiet.called[earlier.called :]
        self._record_end(log, earlier.end_ns, earlier.nodes if quiet.alone else None)
        quiet.called += later
        quiet.nodes_before += earlier.nodes

    def _record_end(self, log: ThreadLog, end_ns: int, nodes: int | None) -> None:
        """Record the end of a step; `nodes` is the size of its graph, None if unknown."""
        stride = log.stride
        if log.mode == STEP_ENDS:
            if nodes is not None:
                self._host.quiet.called.append(NODE_COUNT_BASE - nodes)
            log.end_asleep(end_ns, self._ran())
            log.calls_asleep = 0
        elif log.step_end:  # the start of the first step is unknown
            if nodes is not None and (log.mode == ALL_CALLS or stride.skeleton):
                log.nodes[end_ns] = nodes
            if log.mode == ALL_CALLS:
                log.traced.extend((log.step_end, end_ns))
            elif stride.skeleton and stride.steps >= COLD_STEPS:
                log.add_skeleton(log.step_end, end_ns)
        if log.mode != STEP_ENDS:
            log.asleep_since = NEVER_NS
        log.step_end, log.within_step = end_ns, 0
        stride.steps += 1

    def _leave_alone(self, log: ThreadLog) -> None:
        """Allow calls without gradients to be recorded without a decision, up to the next planned one."""
        stride, watched = log.stride, self._host.devices is not None
        log.answers = 0 if log.mode == ALL_CALLS or watched else max(stride.planned - stride.steps - 1, 0)

    def _ran(self, *, is_part: bool = False) -> int:
        """Return the signature of a step of which only the end is recorded, or of its first part."""
        quiet, signatures = self._host.quiet, self._host.signatures
        if not quiet.alone:
            return UNKNOWN
        number = (signatures.number_of_part if is_part else signatures.number)(quiet.called)
        quiet.called.clear()
        return number

    def end_part(self, log: ThreadLog, end_ns: int) -> None:
        """Log the first part of a step during which mode ASLEEP ends."""
        quiet = self._host.quiet
        if log.noted is not quiet.ends or not quiet.called:
            return
        log.settle()
        leads_on = quiet.leads_on()
        log.partial |= leads_on
        number = self._ran(is_part=True)
        if log.step_end < end_ns:
            log.end_asleep(
                max((end for _, end in log.ends if end > log.step_end), default=end_ns), number, goes_on=leads_on
            )

    def _rise(self, log: ThreadLog) -> None:
        """Count the steps of the fast path."""
        log.settle()
        log.stride.steps += log.answered
        log.stride.answered += log.answered
        log.answers = log.answered = 0
        if log.noted is self._host.quiet.ends:
            log.stride.steps += self._host.quiet.rise()
            log.settle()

    def _devices(self, devices: DeviceProfiler, log: ThreadLog, *, stamp: bool) -> None:
        recorded, conductor = devices.records(log), self.conductor
        if conductor is not None and log.mode != OFF:
            devices.step_ended(log, conductor, stamp=stamp)
        if recorded or devices.records(log):
            log.stride.planned = 0
            log.stride.windowed = True

    def backward_ended(self, log: ThreadLog, *, fresh: bool) -> None:
        """Handle the end of a backward call: the end of a step if no optimizer ends steps."""
        if log.stepless:
            log.stepless, log.step_end = False, 0  # the start of the first step is unknown
            log.stride.planned = 0  # it was planned for another loop
        if fresh and log.lead_optimizer is None and not self._host.manual_steps:
            self.step_ended(log, self._host.clock_ns())
            if self._host.quiet.asleep == log.ident and self._host.devices is None:
                self._host.quiet.rest(0, log.stride)

    def outermost_begins(self, log: ThreadLog) -> None:
        """Handle the start of an outermost call: a step where nothing else marks steps, or without gradients."""
        if torch.is_grad_enabled():
            if log.mode == STEP_ENDS:
                log.stride.planned = 0  # the loop of the planned steps is over
            elif not log.stepless:
                return
        stride, began_ns = log.stride, self._host.clock_ns()
        self._rise(log)
        stride.steps += 1
        log.inside = False
        if self._host.devices is not None:
            self._devices(self._host.devices, log, stamp=False)
        if stride.steps >= stride.planned:
            self.decide(log, began_ns)
        self._leave_alone(log)
        log.inside = True

    def outermost_ended(self, log: ThreadLog) -> None:
        """Handle the end of an outermost call that may be a step."""
        if not (log.within_step or torch.is_grad_enabled()):
            log.step_end, log.asleep_since = self._host.clock_ns(), NEVER_NS  # it is not part of the following step
        if self._host.devices is not None and self.conductor is not None and log.mode != OFF:
            self._host.devices.call_ended(log, self.conductor)

    def decide_if_due(self, log: ThreadLog) -> None:
        """Decide on the next steps of a thread, if that was postponed to the end of a call."""
        if log.stride.steps >= log.stride.planned:
            self.decide(log)

    def decide(self, log: ThreadLog, began_ns: int | None = None) -> None:
        """Book the steps that have ended and decide what the next ones record.

        Args:
            log: Of the thread.
            began_ns: Start of the profiler's own work, if earlier than this call.
        """
        conductor = self.conductor
        if conductor is None or log.mode == OFF or log.inside or self._host.quiet.inside == log.ident:
            return
        began = self._host.clock_ns() if began_ns is None else began_ns
        own_began, before = own_ns(), log.mode
        self._rise(log)
        self._host.compile_watch.look()
        self._host.watch_cuda()
        if self._host.registry.dirty:
            self._host.registry.refresh()
        recent = log.recent() if before == ALL_CALLS else ()
        kept_rows = sum(each.kept() for each in list(self._host.logs))
        if before == ALL_CALLS:
            self._study(log, recent, conductor)
        else:
            conductor.unwrapped = not self._host.patches.module_is_on
        # Without an optimizer only the main thread may use mode ASLEEP: modules of other threads' steps are unknown.
        by_hand = self._host.quiet.alone and not (self._host.manual_steps or log.deaf)
        can_sleep = not log.stepless and (log.lead_optimizer is not None or by_hand)
        if before != STEP_ENDS and sequence_nr() > log.stride.seq:
            can_sleep = False  # logged calls lead to a backward call that would not be logged
        cpu_ns = own_began if log.ident == threading.get_ident() else None
        log.mode = conductor.decide(log.stride, began, log.total(), kept_rows, can_sleep=can_sleep, cpu_ns=cpu_ns)
        if self._host.devices is not None and self._host.devices.records(log):
            log.mode, log.stride.mode, log.stride.planned = ALL_CALLS, ALL_CALLS, 1
        self._mode_changed(log, before, recent, began)
        log.call_ns = conductor.call_ns(log.stride)
        margins = log.in_place.margins(conductor.costs.margins) or conductor.margins(log.stride)
        before_ns, after_ns = log.in_place.around_answer_ns
        log.margins = replace(margins, answer_before_ns=before_ns, answer_after_ns=after_ns)
        if conductor.limited:
            self._host.note("info", "SPANS_SAMPLED", conductor.limit.message)
        self._arrange(log, conductor)
        self._log_own(log, began)
        if len(log.rows) > COMPACT_ROWS:
            log.compact()
        if log.stride.light_steps >= FOLD_STEPS and graph_task_id() < 0:
            self._fold(log, self._host.clock_ns())
        took_ns = own_ns() - own_began
        conductor.decided(took_ns, traced=ALL_CALLS in {before, log.mode})
        log.stride.leave_out(self._host.clock_ns() - began, took_ns)

    def _mode_changed(self, log: ThreadLog, before: int, recent: Sequence[Row], now_ns: int) -> None:
        log.calls_asleep = 0
        if before == STEP_ENDS != log.mode:
            self.end_part(log, now_ns)  # profiler work begins
        quiet = self._host.quiet
        quiet.asleep = log.ident if quiet.alone and log.mode == STEP_ENDS else 0
        quiet.by_hand = log.lead_optimizer is None
        if before == ALL_CALLS != log.mode:
            for key in outermost_keys(recent):
                self._host.watch(key)
            log.stride.passing = passing_calls(recent, log.stride.rows, self._host.watches)
        if before == STEP_ENDS != log.mode:
            log.stride.seq = sequence_nr()

    def _log_own(self, log: ThreadLog, began_ns: int) -> None:
        """Log the decision as profiler work; it is not part of a forward pass."""
        total = log.total()
        log.add_own(began_ns, self._host.clock_ns(), sequence_nr())
        if log.since == total:
            log.since += 1

    def _study(self, log: ThreadLog, recent: Sequence[Row], conductor: TracingPolicy) -> None:
        """Determine, from the traced steps that have ended, which modules to count in untraced ones."""
        if self._host.quiet.alone:
            self._counting.study(recent, log.stride.steps, partial(conductor.most_counted, log.stride))

    def _fold(self, log: ThreadLog, began_ns: int) -> None:
        log.stride.light_steps = 0
        if log.fold(began_ns) > 1:
            text = "of steps that were not traced only sums over neighbouring steps are kept"
            self._host.note("info", "STEPS_FOLDED", text)
        self._log_own(log, began_ns)  # it begins where the folded rows end

    def _arrange(self, log: ThreadLog, conductor: TracingPolicy) -> None:
        """Install the wrapper of all modules if and only if a thread needs it."""
        (self._tracing.add if log.mode == ALL_CALLS else self._tracing.discard)(log)
        is_needed = bool(self._tracing) or not (conductor.narrow or log.mode == STEP_ENDS or log.stride.skeleton)
        if is_needed == self._host.patches.module_is_on or not (is_needed or conductor.can_narrow):
            return
        with self._arranging:
            began = own_ns()
            if is_needed:
                self._host.patches.put_module()
            elif not self._host.patches.take_module():
                conductor.can_narrow = False
            conductor.costs.swap_ns = 2.0 * (own_ns() - began)
