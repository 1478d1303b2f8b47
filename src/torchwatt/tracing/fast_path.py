"""Fast path of the main thread while only the ends of steps are recorded."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from torchwatt.tracing.call_template import traced_calls
from torchwatt.tracing.device_profiler import DeviceProfiler
from torchwatt.tracing.log_rows import (
    ALL_CALLS,
    BACKWARD,
    FAILED_SIZE,
    FORWARD_TASK,
    KEY,
    NO_STEP_END,
    NODE_COUNT_BASE,
    NOTHING_COUNTED,
    OFF,
    OPTIMIZER_KEY,
    OUTERMOST_TASK,
    STEP_ENDS,
    STEP_KEY,
    TASK,
    UNKNOWN,
    CallPattern,
    PossibleStepEnd,
    Row,
    SignatureTable,
    nearest_called,
)
from torchwatt.tracing.module_registry import ModuleRegistry
from torchwatt.tracing.overhead_budget import affordable_modules
from torchwatt.tracing.patches import (
    Wrapped,
    graph_task_id,
    has_several_steps,
    is_dynamo_compiling,
    is_inner_step,
    sequence_nr,
)
from torchwatt.tracing.thread_log import ThreadLog
from torchwatt.tracing.tracing_policy import StepBatch


class FastPath:
    """State of the calls and steps that bypass their thread's log, whose access costs more than their other work.

    After a step's matrix products the caches are cold: each object that a wrapper touches counts. Only the main thread
    may use the fast path, while no other thread logs anything.
    """

    __slots__ = (
        "alone", "asleep", "by_hand", "called", "calls", "ends", "inside", "most", "nodes_before", "optimizer",
        "scopes", "steps",
    )  # fmt: skip

    def __init__(self) -> None:
        self.alone = False  # the main thread logs, and no other thread has
        self.asleep = 0  # ident of the main thread while it records only ends of steps
        self.inside = 0  # the same, while it is inside an outermost call of such a step
        self.calls = 0  # outermost calls since the end of a step
        self.called: list[int] = []  # ids of outermost or counted modules called since the end of a step
        self.ends: list[Row] = []  # ends of steps, and calls without gradients, to be settled by the thread's log
        self.steps = 0  # number of steps since the thread's log was last updated
        self.most = 0  # maximum of `steps`, with this optimizer
        self.optimizer = 0  # id of the optimizer
        self.nodes_before = 0  # autograd's number at the end of a step, plus the nodes made by backward calls since
        self.by_hand = False  # no optimizer: the first backward call after a module call ends a step
        self.scopes: set[int] = set()  # ids that stand for the user's scopes in `called`

    def rest(self, optimizer: int, stride: StepBatch) -> None:
        """Enter the fast path: record only ends of steps, until the thread's next decision.

        Args:
            optimizer: Id of the optimizer that ends the steps; 0: none.
            stride: Of the thread.
        """
        self.optimizer, self.most = optimizer, stride.planned - stride.steps - 1
        if not stride.planned:  # another thread has just requested a full trace
            self.stir()

    def take_nodes(self, number: int) -> int:
        """Return the number of autograd nodes made by the step that ends, given autograd's next number."""
        nodes, self.nodes_before = number - self.nodes_before, number
        return nodes

    def end_step(self, end_ns: int, signatures: SignatureTable, number: int) -> None:
        """Record the end of a step, the modules called in it, and autograd's next number."""
        self.called.append(NODE_COUNT_BASE - self.take_nodes(number))
        called = tuple(self.called)
        if (signature := signatures.by_ids.get(called)) is None:
            signature = signatures.number(called)
        # It began where the step before ended.
        self.ends.append((STEP_KEY, 0, end_ns, 0, 0, OUTERMOST_TASK - signature))
        self.called.clear()
        self.steps += 1
        self.calls = 0

    def end_of(self, end_ns: int, number: int) -> PossibleStepEnd:
        """Return the end of an optimizer's step that may turn out to end a step, given autograd's next number."""
        return PossibleStepEnd(end_ns, len(self.called), number - self.nodes_before)

    def note(self, optimizer: object, *, asleep: bool) -> None:
        """Record which optimizer stepped, in a step of which else only the calls are recorded."""
        if asleep and self.alone:
            self.called.append(id(optimizer))

    def leads_on(self) -> bool:
        """Return whether module calls were recorded after the latest backward call."""
        latest = next((each for each in reversed(self.called) if each not in self.scopes), BACKWARD)
        return latest != BACKWARD

    def stir(self) -> None:
        """Leave the fast path at the end of the next step."""
        self.most = 0

    def rise(self) -> int:
        """Leave the fast path; return the number of steps that the thread's log has not counted."""
        steps, self.steps, self.most, self.calls = self.steps, 0, 0, 0
        return steps


# Of calls without gradients, one in so many gaps has the thread's CPU time at its bounds, where there are several
# threads, and the profiler's work around one in so many is measured.
CALLS_PER_READING, CALLS_PER_PROBE = 8, 64


class InferenceContext(Protocol):
    """The attributes of the hub that are used here."""

    quiet: FastPath
    registry: ModuleRegistry
    signatures: SignatureTable
    clock_ns: Callable[[], int]


def inference_recorders(
    host: InferenceContext,
    newcomer: Callable[[Any], int],
    sequence_nr: Callable[[], int],
    graph_task_id: Callable[[], int],
) -> tuple[Callable[[ThreadLog], bool], Callable[..., Any]]:
    """Return a function that decides whether an outermost call is recorded here, and one that records it.

    Such a call computes no gradients, or its thread never computed any. It counts as a step.

    Args:
        host: The session's hub.
        newcomer: Registers a module and returns its key.
        sequence_nr: Returns autograd's number of the next node.
        graph_task_id: Returns the id of the running backward call; below zero outside backward calls.
    """
    quiet, clock, signatures, called = host.quiet, host.clock_ns, host.signatures, host.quiet.called
    counted, key_of = signatures.counted, host.registry.by_id.get
    grad_enabled, ident = torch.is_grad_enabled, threading.get_ident

    def may(log: ThreadLog) -> bool:
        is_outside = log.mode < OFF and not (log.inside or log.calls_asleep)
        is_evaluation = log.stepless or not (log.within_step or grad_enabled())
        return is_outside and is_evaluation and graph_task_id() < 0

    def answer(call: Wrapped, log: ThreadLog, start_ns: int, module: Any, args: Any, kwargs: Any) -> Any:
        key = key_of(id(module)) or newcomer(module)
        before, number, alone, failed = len(called), sequence_nr(), quiet.alone, True
        probed = log.answers % CALLS_PER_PROBE == 1
        if not alone and log.answers % CALLS_PER_READING == 0:
            log.read_cpu(clock())
        log.answers -= 1
        log.answered += 1
        try:
            log.inside = True
            if alone:
                quiet.inside = ident()
            begun_ns = clock() if probed else start_ns
            y, failed = call(module, *args, **kwargs), False
            return y
        finally:
            log.inside = False
            if alone:
                quiet.inside = 0
            end_ns = clock()
            if not alone and log.answers % CALLS_PER_READING == 0:
                log.read_cpu(end_ns)
            ran = signature_of(before) if counted else NOTHING_COUNTED
            next_number = number + FAILED_SIZE if failed else sequence_nr()
            task = OUTERMOST_TASK - (UNKNOWN if failed else ran)
            log.noted.append((key, start_ns, end_ns, number, next_number, task))
            if probed and not failed:
                log.in_place.answered(begun_ns - start_ns, clock() - end_ns)

    def signature_of(before: int) -> int:
        number = signatures.number(called[before:]) if quiet.alone else UNKNOWN
        del called[before:]
        return number

    return may, answer


Hook = Callable[[Any, Any, Any], None]


class OptimizerContext(Protocol):
    """The attributes of the hub that the hooks use."""

    local: threading.local
    quiet: FastPath
    registry: ModuleRegistry
    signatures: SignatureTable
    clock_ns: Callable[[], int]
    manual_steps: bool
    devices: DeviceProfiler | None

    def log(self) -> ThreadLog:
        """Return this thread's log."""

    def look_closer(self) -> None:
        """Request a full trace: new work begins."""

    def step_ended(self, log: ThreadLog, end_ns: int) -> None:
        """Handle the end of a step of this thread."""

    def earlier_step_ended(self, log: ThreadLog, earlier: PossibleStepEnd) -> None:
        """Handle the end of a step that is recognised as one later."""


def optimizer_hooks(host: OptimizerContext) -> tuple[Hook, Hook]:  # noqa: C901, PLR0915 - two hooks, shared lookups
    """Return the hooks to run before and after each step of any optimizer.

    Each line counts: after a step's matrix products the caches are cold, and Python runs ten times slower.
    """
    compiling, clock, seq = is_dynamo_compiling, host.clock_ns, sequence_nr
    key_of, local, log_of = host.registry.by_id.get, host.local, host.log
    quiet, ident = host.quiet, threading.get_ident
    signatures = host.signatures

    layered: set[int | None] = {None}  # keys of optimizers whose hooks may run twice in a step; None: not known yet
    seen: set[tuple[int, ...]] = set()  # keys of optimizers, and the numbers of their parameters

    def newcomer(optimizer: Any) -> int:
        key = host.registry.optimizer_key(optimizer)
        work = key, *(len(group["params"]) for group in optimizer.param_groups)
        if work not in seen:  # an attack makes one like the last, which is gone, for each batch
            seen.add(work)
            host.look_closer()
        if has_several_steps(optimizer):
            layered.add(key)
        return key

    def begins(optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if compiling() or quiet.asleep == ident():
            return
        key = key_of(id(optimizer))
        if key in layered and is_inner_step(optimizer):
            return
        began = clock()
        log = log_of()
        if log.mode >= STEP_ENDS:
            return
        key = key or newcomer(optimizer)
        if log.lead_optimizer is None or log.lead_optimizer < 0:  # negative: a compiled function
            log.lead_optimizer, log.stepless = key, False
        if log.mode == ALL_CALLS:
            log.in_place.optimizer_begins()
        log.read_cpu(clock())
        log.opened[key] = start = clock()
        _log_own(log, began, start, log.mode)

    def ended(optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if compiling():
            return
        if quiet.steps < quiet.most and quiet.asleep == ident() and quiet.optimizer == id(optimizer):
            end = clock()
            quiet.called.append(id(optimizer))
            quiet.end_step(end, signatures, seq())
            return
        try:
            log = local.log
        except AttributeError:
            log = log_of()
        mode, key = log.mode, key_of(id(optimizer))
        if mode == OFF or (key in layered and is_inner_step(optimizer)):
            return
        end = clock()
        log.settle()
        if new := key is None:
            key = newcomer(optimizer)
        if mode != STEP_ENDS:
            _log_step(log, key, end, mode)
        quiet.note(optimizer, asleep=mode == STEP_ENDS)
        log.settle()
        log.ends.append((key, end))
        _take_lead(host, log, key, end, new=new)
        if key == log.lead_optimizer and not host.manual_steps:
            host.step_ended(log, end)
            if quiet.asleep == log.ident and host.devices is None and key not in layered:
                quiet.rest(id(optimizer), log.stride)
        elif mode != STEP_ENDS:
            _log_own(log, end, clock(), mode)

    return begins, ended


def _log_step(log: ThreadLog, key: int, end: int, mode: int) -> None:
    """Log an optimizer step; in some traced steps, measure torch's work after it."""
    start, number = log.opened.pop(key, None), sequence_nr()
    if start is not None and (mode == ALL_CALLS or not log.inside):
        log.rows.append((OPTIMIZER_KEY, start, end, number, number, graph_task_id()))
    if mode == ALL_CALLS:
        log.in_place.optimizer_ended()


def _log_own(log: ThreadLog, began: int, end: int, mode: int) -> None:
    """Log profiler work beside an optimizer step; inside an outermost call of an untraced step it is part of that."""
    if mode == ALL_CALLS or not log.inside:
        log.add_own(began, end, sequence_nr(), FORWARD_TASK if mode == ALL_CALLS else OUTERMOST_TASK)


def _take_lead(host: OptimizerContext, log: ThreadLog, key: int, end: int, *, new: bool) -> None:
    """Make an optimizer the lead, whose steps end the loop's steps, if it stepped twice and the former lead did not.

    An optimizer without a key (its first step while only ends of steps are recorded) leads at once.
    """
    if key == log.lead_optimizer:
        return
    earlier, log.others[key] = log.others.get(key, NO_STEP_END), host.quiet.end_of(end, sequence_nr())
    if earlier.end_ns > log.step_end or new:
        log.lead_optimizer = key
        if earlier.end_ns > log.step_end and not host.manual_steps:
            host.earlier_step_ended(log, earlier)


STUDIED_STEPS = 64  # traced steps that are studied; later ones are studied when the trace is assembled


class CountingContext(Protocol):
    """The attributes of the hub that are used here."""

    registry: ModuleRegistry
    signatures: SignatureTable

    def watch(self, key: int) -> None:
        """Patch the class of a module."""


class CallCounter:
    """Detect in traced steps which modules are called only sometimes, and have them counted."""

    def __init__(self, host: CountingContext) -> None:
        self._host = host
        self._pattern = CallPattern()
        self._called: set[int] = set()
        self._studied = 0
        self._wanted: tuple[frozenset[int], frozenset[int]] | None = None
        self._too_dear = False  # something that varies is not counted: another step may show that it can be afforded

    def study(self, rows: Sequence[Row], steps: int, most_calls: Callable[[int], float]) -> None:
        """Evaluate traced steps that have ended.

        Args:
            rows: The rows their thread logged in them; no other thread logs.
            steps: Number of these steps.
            most_calls: Maximum number of calls per step that may pass a counting wrapper, by the number in all.
        """
        if self._studied >= STUDIED_STEPS:
            return
        self._studied += 1
        table = np.array(rows, dtype=np.int64).reshape(-1, 6)
        calls = traced_calls(table)
        self._called.update(key for call in calls for key in call.counts)
        around = nearest_called(self._host.registry.parent, self._called)
        for call in calls:
            self._pattern.add(call.counts, around)
        candidates = frozenset(self._pattern.varying), frozenset(self._host.registry.choices)
        if any(candidates) and (self._too_dear or candidates != self._wanted):
            self._wanted = candidates
            forward = table[(table[:, TASK] == FORWARD_TASK) & (table[:, KEY] > 0), KEY].tolist()
            steps = max(steps, 1)
            self._count(candidates, forward, steps, most_calls(len(forward) // steps))

    def _count(
        self, candidates: tuple[frozenset[int], frozenset[int]], forward: list[int], steps: int, most_calls: float
    ) -> None:
        registry, signatures = self._host.registry, self._host.signatures
        kinds = Counter(kind for key in forward if (kind := registry.class_of(key)) is not None)
        counted = affordable_modules(
            candidates, registry.class_of, {kind: n / steps for kind, n in kinds.items()}, most_calls
        )
        self._too_dear = not candidates[0] <= counted
        modules = {key: module for key in counted if (module := registry.module(key)) is not None}
        if modules.keys() == signatures.over - signatures.scopes:
            return
        for key in modules:
            self._host.watch(key)
        signatures.count({id(module): key for key, module in modules.items()})
