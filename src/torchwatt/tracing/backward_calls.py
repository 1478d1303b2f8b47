"""Wrap, log and record backward calls; wrap data loading and collectives, whose calls are booked to reserved rows."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch

from torchwatt.core.meter import Severity
from torchwatt.core.tracebacks import drop_own_frames, skip_own_frames
from torchwatt.tracing import autograd_recorder
from torchwatt.tracing.device_profiler import DeviceProfiler
from torchwatt.tracing.log_rows import (
    ALL_CALLS,
    BACKWARD,
    COMMUNICATION_KEY,
    DATA_KEY,
    FORWARD_TASK,
    KEY,
    OFF,
    OUTERMOST,
    OUTERMOST_TASK,
    STEP_ENDS,
    TASK,
    UNCOUNTED_COMMUNICATION_KEY,
    BackwardCall,
)
from torchwatt.tracing.module_wrappers import WrapperContext
from torchwatt.tracing.patches import Wrapped, compiler, graph_task_id, is_dynamo_compiling, sequence_nr
from torchwatt.tracing.thread_log import ThreadLog
from torchwatt.tracing.tracing_policy import TracingPolicy


def backward_call(host: WrapperContext) -> Callable[[Wrapped], Wrapped]:  # noqa: C901, PLR0915 - each call is paid for
    """Return the wrapper of `torch.autograd._engine_run_backward`, through which every backward pass goes."""
    compiling, task, seq = is_dynamo_compiling, graph_task_id, sequence_nr
    log_of, clock = host.log, host.clock_ns
    quiet, ident = host.quiet, threading.get_ident
    compiled = host.compiled_calls
    counted, called, backward_entry = host.signatures.counted, host.quiet.called, (BACKWARD,)
    ending = _step_ending_call(host)

    def bare(log: ThreadLog, began: int, since: int, original: Wrapped, args: Any, kwargs: Any) -> Any:
        reduces, start = log.takes_reducers(), clock()
        log.add_own(began, start, seq(), OUTERMOST_TASK)
        first_row = log.total()
        try:
            return original(*args, **kwargs)
        finally:
            end = clock()
            log.backward_ended(BackwardCall(start, end, since, first_row, log.total(), light=True, reduces=reduces))
            log.stride.backwards += 1

    def run(original: Wrapped, args: Any, kwargs: Any) -> Any:
        if quiet.asleep == ident():
            before, number = len(called), seq()
            try:
                return original(*args, **kwargs)
            finally:
                called[before:] = backward_entry  # recomputed modules are no calls of the forward pass
                quiet.nodes_before += seq() - number
        began = clock()
        log = log_of()
        # Inside another backward (checkpoint) it belongs to the outer one.
        if log.mode >= STEP_ENDS or task() >= 0:
            try:
                return original(*args, **kwargs)
            finally:
                if log.mode == STEP_ENDS and log.calls_asleep and task() < 0:
                    host.backward_ended(log, fresh=True)
        since, first_row, number = log.since, log.total(), seq()
        leads_itself = first_row == since and number > log.stride.seq  # no module was called before it
        log.leads_itself |= leads_itself and log.mode == ALL_CALLS  # a penalty's, or a loss without modules
        unseen = log.deaf = leads_itself and log.mode == OUTERMOST and not log.leads_itself
        if unseen:
            host.look_closer()  # a forward pass was not recorded
        log.read_cpu(clock())
        try:
            if log.mode == ALL_CALLS or (first_row > since and log.rows and log.rows[-1][TASK] > OUTERMOST_TASK):
                return host.run_backward(began, original, args, kwargs)
            return bare(log, began, since, original, args, kwargs)
        finally:
            # An interrupt may come before the call is logged.
            end = max(log.backwards[-1].end_ns, began) if log.backwards else began
            log.read_cpu(end)
            log.stride.seq = seq()
            if quiet.alone:
                quiet.nodes_before += log.stride.seq - number
            log.add_own(end, clock(), log.stride.seq, FORWARD_TASK if log.mode == ALL_CALLS else OUTERMOST_TASK)
            log.since = log.total()
            if log.lead_optimizer is None:
                host.backward_ended(log, fresh=first_row > since or unseen)

    def counting(original: Wrapped, args: Any, kwargs: Any) -> Any:
        before = len(called)
        try:
            return run(original, args, kwargs)
        finally:
            del called[before:]  # recomputed modules are no calls of the forward pass

    def wrap(original: Wrapped) -> Wrapped:
        def _engine_run_backward(*args: Any, **kwargs: Any) -> Any:
            if compiling():
                return original(*args, **kwargs)
            try:
                if compiled.running and compiled.takes_backward():
                    return compiled.run_backward(original, args, kwargs)
                if quiet.asleep == ident():
                    if quiet.by_hand and quiet.calls and task() < 0:
                        return ending(run, original, args, kwargs)
                elif counted:
                    return counting(original, args, kwargs)
                return run(original, args, kwargs)
            except BaseException as error:
                drop_own_frames(error)
                raise

        return _engine_run_backward

    return wrap


def _step_ending_call(host: WrapperContext) -> Callable[..., Any]:
    """Return the function for a backward call that ends a step of which only the end is recorded, without optimizer."""
    quiet, clock, signatures, log_of, backward_ended = (
        host.quiet, host.clock_ns, host.signatures, host.log, host.backward_ended,
    )  # fmt: skip

    def ending(run: Wrapped, original: Wrapped, args: Any, kwargs: Any) -> Any:
        try:
            return run(original, args, kwargs)
        finally:
            if quiet.steps < quiet.most:
                quiet.end_step(clock(), signatures, sequence_nr())
            else:
                backward_ended(log_of(), fresh=True)

    return ending


def wrap_reducer(host: WrapperContext) -> Callable[[Wrapped], Wrapped]:
    """Return the wrapper of DDP's `prepare_for_backward`, which marks the next backward call as reducing gradients."""
    quiet, ident = host.quiet, threading.get_ident

    def wrap(original: Wrapped) -> Wrapped:
        def prepare_for_backward(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                if quiet.asleep != ident() and (log := host.log()).mode < STEP_ENDS:
                    log.reducers.add(id(self))
                return original(self, *args, **kwargs)
            except BaseException as error:
                error.__traceback__ = skip_own_frames(error.__traceback__)  # all of them: below is no Python
                raise

        return prepare_for_backward

    return wrap


def time_calls(host: WrapperContext, key: int) -> Callable[[Wrapped], Wrapped]:
    """Return a wrapper that books each call to a reserved key."""
    compiling, clock = is_dynamo_compiling, host.clock_ns

    def wrap(original: Wrapped) -> Wrapped:
        def call(*args: Any, **kwargs: Any) -> Any:
            if compiling() or compiler._is_compiling_flag:
                return original(*args, **kwargs)
            began = clock()
            try:
                log = host.log()
                if log.mode == OFF or (log.inside and log.mode == OUTERMOST):  # filled in inside an outermost call
                    return original(*args, **kwargs)
                if log.mode == STEP_ENDS and (log.inside or not log.evaluates()):
                    return original(*args, **kwargs)
                log.settle()
                log.read_cpu(clock())
                s0, start, mode = sequence_nr(), clock(), log.mode
                task = FORWARD_TASK if mode == ALL_CALLS else OUTERMOST_TASK
                if key == DATA_KEY:
                    log.add_own(began, start, s0, task)
                    log.mode = OFF  # transforms that are modules are part of loading
                try:
                    return original(*args, **kwargs)
                finally:
                    if log.mode == OFF and not host.off:
                        log.mode = mode
                    end = clock()
                    log.read_cpu(end)
                    log.rows.append((key, start, end, s0, sequence_nr(), graph_task_id()))
                    if key == DATA_KEY:
                        log.add_own(end, clock(), sequence_nr(), task)
            except BaseException as error:
                error.__traceback__ = skip_own_frames(error.__traceback__)  # all of them: below may be C++
                raise

        return call

    return wrap


# Windows whose nodes are read when the trace is assembled; older ones of a longer run are read one by one.
MOST_UNREAD = 32
NODES_PER_NUMBER = 1.6  # autograd nodes per sequence number assigned in the forward pass: AccumulateGrad has no number

_recorder_is_warm = False  # the recorder's first use in a process takes some milliseconds


class BackwardWindows:
    """Opens and closes windows around backward calls."""

    def __init__(self, clock_ns: Callable[[], int], note: Callable[[Severity, str, str], None]) -> None:
        self._clock_ns = clock_ns
        self.devices: DeviceProfiler | None = None
        self._note = note
        self._broken = False
        self._seen: set[int] = set()  # modules in the forward passes of recorded calls
        self._unread: deque[autograd_recorder.RecordedNodes] = deque()

    def warm_up(self) -> None:
        """Use the recorder once, so that the first step does not include its initialisation."""
        global _recorder_is_warm  # noqa: PLW0603 - it is libkineto that is warm, and it is the process's
        problem = autograd_recorder.missing_names()
        if problem:
            self._broken = True
            text = f"torch {torch.__version__} lacks {problem}: no backward layers"
            self._note("warning", "TRACE_UNSUPPORTED", text)
        elif not _recorder_is_warm and not autograd_recorder.user_is_profiling():
            window = autograd_recorder.AutogradRecorder(self._clock_ns)
            try:
                if window.open():
                    window.close()
                    _recorder_is_warm = True
            except Exception as error:
                self._give_up(error)

    def run(
        self, conductor: TracingPolicy | None, log: ThreadLog, began_ns: int, original: Wrapped, args: Any, kwargs: Any
    ) -> Any:
        """Run a backward call and log it; `began_ns`: when profiler work before it began."""
        since, first_row = log.since, log.total()
        log.stride.backwards += 1
        reduces = log.takes_reducers()
        # A cheap approximation; the exact structure is computed later.
        called = [row[KEY] for row in log.rows[-max(first_row - since, 1) :] if row[KEY] > 0]
        kind = len(called), called[-1] if called else 0, reduces
        # Of calls with equally many rows, those through other modules get windows of their own.
        keys = frozenset(called)
        path = hash(keys), reduces
        expected = round(NODES_PER_NUMBER * (sequence_nr() - log.stride.seq))
        window = self._open(conductor, log, path, is_new=not keys <= self._seen)
        start, own_start = self._clock_ns(), autograd_recorder.own_ns() if window is not None else 0
        log.add_own(began_ns, start, sequence_nr())
        first_row = log.total()
        try:
            return original(*args, **kwargs)
        finally:
            own_end, end = autograd_recorder.own_ns() if window is not None else 0, self._clock_ns()
            call = BackwardCall(start, end, since, first_row, log.total(), light=False, reduces=reduces)
            call.away_ns = max(end - start - (own_end - own_start), 0) if window is not None else 0
            if conductor is not None:
                conductor.backward_took(kind, end - start, recorded=window is not None)
            if window is not None:
                self._close(conductor, log, window, (kind, path), call, expected)
                self._seen |= keys
            log.backward_ended(call)
            if window is None and conductor is not None and (own_ns := log.in_place.after_backward()):
                conductor.budget.pay("fixed", own_ns)

    def _open(
        self, conductor: TracingPolicy | None, log: ThreadLog, path: Hashable, *, is_new: bool
    ) -> autograd_recorder.AutogradRecorder | None:
        if conductor is None or self._broken or not _forward_is_known(log):
            return None
        if self.devices is not None and self.devices.is_on:
            return None
        try:
            if not conductor.wants_window(log.stride, path, self._clock_ns(), is_new=is_new):
                return None
            if autograd_recorder.user_is_profiling():
                self._note("info", "PROFILER_BUSY", "another profiler was running: its backward calls have no window")
                return None
            window = autograd_recorder.AutogradRecorder(self._clock_ns)
            return window if window.open() else None
        except Exception as error:
            self._give_up(error)
            return None

    def _close(
        self,
        conductor: TracingPolicy | None,
        log: ThreadLog,
        window: autograd_recorder.AutogradRecorder,
        kinds: tuple[Hashable, Hashable],
        call: BackwardCall,
        expected: int,
    ) -> None:
        try:
            call.nodes = recorded = window.close(expected)
            call.cost_ns = window.cost_ns + self._read_older(recorded)
            if conductor is not None:
                # The window's own cost includes recording; the clock may show more.
                more_ns = max(conductor.slowdown_ns(kinds[0]) - window.recording_ns, 0.0)
                own_ns = call.cost_ns + round(more_ns)
                call.cost_ns = conductor.window_taken(log.stride, kinds[1], own_ns, call.end_ns)
            if call.nodes is None:
                self._note("info", "CLOCK_STEPPED", "the wall clock was set during a window: window dropped")
        except Exception as error:
            self._give_up(error)

    def _read_older(self, recorded: autograd_recorder.RecordedNodes | None) -> int:
        """Bound the number of windows in torch's form; return the time of reading in ns."""
        began = autograd_recorder.own_ns()
        if recorded is not None:
            self._unread.append(recorded)
        if len(self._unread) > MOST_UNREAD:
            self._unread.popleft().nodes()
        return autograd_recorder.own_ns() - began

    def _give_up(self, error: Exception) -> None:
        # A private interface of torch failed: the user's backward call continues, without windows.
        self._broken = True
        self._note("warning", "WINDOW_FAILED", f"backward windows stopped: {type(error).__name__}: {error}")


def _forward_is_known(log: ThreadLog) -> bool:
    """Return whether the latest calls were logged module by module, which finding owners of nodes requires."""
    if log.partial:
        return False
    return log.rows[-1][TASK] > OUTERMOST_TASK if log.rows else log.mode == ALL_CALLS


STARTS = (
    "_allgather_base", "_reduce_scatter_base", "all_gather_single", "all_gather_single_coalesced", "all_to_all_single",
    "allgather", "allgather_coalesced", "allgather_into_tensor_coalesced", "allreduce", "allreduce_coalesced",
    "alltoall", "alltoall_base", "barrier", "broadcast", "gather", "monitored_barrier", "recv", "recv_anysource",
    "reduce", "reduce_scatter", "reduce_scatter_single", "reduce_scatter_single_coalesced",
    "reduce_scatter_tensor_coalesced", "scatter", "send",
)  # fmt: skip
WAITS = ("wait", "synchronize")
BUFFERS = "_broadcast_coalesced"  # DDP's, before a forward pass
# Here FSDP gathers a layer's parameters and scatters its gradients, with all copies around the collectives, and here
# tensor-parallel layers wait for a functional collective.
LATE = (
    ("torch.distributed._functional_collectives", "AsyncCollectiveTensor", "trigger_wait"),
    ("torch.distributed._functional_collectives", "AsyncCollectiveTensor", "wait"),
    ("torch.distributed.fsdp._fully_shard._fsdp_param_group", "FSDPParamGroup", "unshard"),
    ("torch.distributed.fsdp._fully_shard._fsdp_param_group", "FSDPParamGroup", "wait_for_unshard"),
    ("torch.distributed.fsdp._fully_shard._fsdp_param_group", "FSDPParamGroup", "post_backward"),
    ("torch.distributed.fsdp._runtime_utils", "", "_unshard"),
    ("torch.distributed.fsdp._runtime_utils", "", "_reduce_grad"),
    ("torch.distributed.fsdp._runtime_utils", "", "_reduce_grad_no_shard"),
)


def find_collectives() -> Iterator[tuple[Any, str, int]]:
    """Yield what to wrap as (owner, name, key of its time), for the modules imported so far.

    Also before torch.distributed is initialised, which a script may do after profiling began.
    """
    dist = _distributed_module()
    if dist is None:
        return
    yield from ((dist.ProcessGroup, name, COMMUNICATION_KEY) for name in STARTS)
    yield from ((dist.Work, name, UNCOUNTED_COMMUNICATION_KEY) for name in WAITS)
    yield dist, BUFFERS, COMMUNICATION_KEY
    for module, kind, name in LATE:
        owner = sys.modules.get(module)
        if owner is not None:
            yield getattr(owner, kind, None) if kind else owner, name, UNCOUNTED_COMMUNICATION_KEY


def find_reducers() -> Iterator[tuple[Any, str]]:
    """Yield DDP's method that runs at the end of a forward pass if gradients will be reduced in the backward pass."""
    reducer = getattr(_distributed_module(), "Reducer", None)
    if reducer is not None:
        yield reducer, "prepare_for_backward"


def _distributed_module() -> Any:
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_available() else None
