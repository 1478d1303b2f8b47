"""The wrappers that run in the user's threads: around module calls, backward calls and data loading.

Each line of `module_call` costs time at each call of each module. All wrappers pass calls straight through under
torch.compile (no graph break) and after the session.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from torchwatt.core.tracebacks import drop_own_frames
from torchwatt.tracing.fast_path import FastPath, inference_recorders
from torchwatt.tracing.log_rows import (
    ALL_CALLS,
    COMPILED_KEY,
    END,
    FAILED_SIZE,
    FORWARD_TASK,
    OFF,
    OUTERMOST,
    OUTERMOST_TASK,
    STEP_ENDS,
    TASK,
    UNKNOWN,
    Row,
    SignatureTable,
)
from torchwatt.tracing.module_registry import ModuleRegistry
from torchwatt.tracing.patches import Wrapped, compiler, graph_task_id, is_dynamo_compiling, sequence_nr
from torchwatt.tracing.thread_log import ThreadLog

MOST_CALLS_PER_STEP = 64  # outermost calls without the end of a step: then the loop must be another one
FAILED_CALL = 0  # among ids of modules: a call that raised, so that it is unknown which modules ran
MOST_FAST_CALLS = 32  # outermost calls in the fast path, before they are counted in the log


class CompiledCallState(Protocol):
    """Calls of compiled functions, outside any module."""

    running: int  # at present, on all threads

    def takes_backward(self) -> bool:
        """Return whether a backward call that begins now on this thread is part of such a function."""

    def run_backward(self, original: Wrapped, args: Any, kwargs: Any) -> Any:
        """Run it as part of the compiled function."""


class WrapperContext(Protocol):
    """The attributes of the hub that the wrappers use."""

    @property
    def compiled_calls(self) -> CompiledCallState:
        """Return the state of compiled functions' calls."""

    local: threading.local
    quiet: FastPath
    registry: ModuleRegistry
    signatures: SignatureTable
    clock_ns: Callable[[], int]
    force_rows: int  # number of rows at which they are compacted within a step
    off: bool  # the session has ended

    def log(self) -> ThreadLog:
        """Return this thread's log."""

    def run_backward(self, began_ns: int, original: Wrapped, args: Any, kwargs: Any) -> Any:
        """Run an outermost backward call of a traced step, possibly in a window; profiler work began before."""

    def backward_ended(self, log: ThreadLog, *, fresh: bool) -> None:
        """Handle the end of a backward call; `fresh`: the first one after a forward pass."""

    def look_closer(self) -> None:
        """Request a full trace: a call was not recorded."""

    def overflow(self, log: ThreadLog) -> None:
        """Compact a log that has grown too long within a step."""

    def outermost_begins(self, log: ThreadLog) -> None:
        """Handle the start of an outermost call: where nothing marks steps, each such call is one."""

    def outermost_ended(self, log: ThreadLog) -> None:
        """Handle the end of such a call."""

    def is_new_outermost(self, key: int) -> bool:
        """Return whether a newly registered module is outermost, and patch its class if so."""


def module_call(host: WrapperContext) -> Callable[[Wrapped], Wrapped]:  # noqa: C901 - what each call pays for, in one place
    """Return the wrapper of `nn.Module.__call__`: it appends one tuple per call, also when the call raises."""
    compiling, local, new_log = is_dynamo_compiling, host.local, host.log
    clock, seq, task = host.clock_ns, sequence_nr, graph_task_id
    key_of, reader_of = host.registry.by_id.get, host.registry.readers.get
    overflow, force_rows = host.overflow, host.force_rows
    outermost, newcomer = _outermost_call(host), _first_call(host)

    def wrap(original: Wrapped) -> Wrapped:  # noqa: C901 - as above
        def logged(log: ThreadLog, key: int, module: Any, args: Any, kwargs: Any) -> Any:
            if key == COMPILED_KEY:
                return original(module, *args, **kwargs)
            s0, start, graph = seq(), clock(), task()
            try:
                y = original(module, *args, **kwargs)
            except BaseException:
                log.rows.append(_failed_row(key, start, clock(), s0, graph))
                raise
            log.rows.append((key, start, clock(), s0, seq(), graph))
            if log.stride.shapes and (reader := reader_of(key)) is not None:
                log.shapes.note(reader, key, start, graph, module, args, kwargs, y)
            return y

        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: C901, N807 - as above
            if compiling() or compiler._is_compiling_flag:
                return original(self, *args, **kwargs)
            try:
                try:
                    log = local.log
                except AttributeError:
                    log = new_log()
                if log.mode:
                    if log.inside or log.mode >= STEP_ENDS:
                        return original(self, *args, **kwargs)
                    return outermost(__call__, log, clock(), self, args, kwargs)
                key = key_of(id(self))
                if not key:  # new, or a compiler's graph
                    return newcomer(logged, log, self, args, kwargs)
                rows, graph = log.rows, task()
                s0, start = seq(), clock()
                try:
                    y = original(self, *args, **kwargs)
                except BaseException:
                    rows.append(_failed_row(key, start, clock(), s0, graph))
                    if graph >= 0 and log.stride.shapes and reader_of(key):
                        log.shapes.note_stopped(key, start)
                    raise
                rows.append((key, start, clock(), s0, seq(), graph))
                if log.stride.shapes and (reader := reader_of(key)) is not None:
                    log.shapes.note(reader, key, start, graph, self, args, kwargs, y)
                if len(rows) > force_rows:
                    overflow(log)
                return y  # noqa: TRY300 - one frame and one block: this runs at each call
            except BaseException as error:
                drop_own_frames(error)
                raise

        host.registry.calls_code |= {f.__code__ for f in (__call__, logged, outermost, newcomer)}
        return __call__

    return wrap


def _failed_row(key: int, start_ns: int, end_ns: int, number: int, graph: int) -> Row:
    """Return the row of a call that raised; in a backward call recomputation may end so, and its size is 0."""
    return key, start_ns, end_ns, number, number + (FAILED_SIZE if graph < 0 else 0), graph


def class_call(host: WrapperContext, owner: Any) -> Callable[[Wrapped], Wrapped]:  # noqa: C901 - a call less is worth a branch
    """Return the wrapper of one class's `__call__`, for a class whose instances are called outside any other module.

    It detects the bounds of such calls in every mode, and is all that remains between traced steps when the wrapper of
    `nn.Module` is removed. It looks up the wrapped function at each call, since that changes. Other instances of the
    class pass through it in every step, so that path is as short as possible.
    """
    compiling, local, new_log, outermost = is_dynamo_compiling, host.local, host.log, _outermost_call(host)
    quiet, ident, module, grad_enabled = host.quiet, threading.get_ident, nn.Module, torch.is_grad_enabled
    clock = host.clock_ns
    counted, called, keys = host.signatures.counted, host.quiet.called.append, host.registry.by_id
    outermost_newcomer = _first_outermost_call(host)
    may_answer, record_answer = inference_recorders(host, outermost_newcomer, sequence_nr, graph_task_id)
    own, direct = "__call__" in vars(owner), owner.__mro__[1] is module  # no class in between could be patched

    def wrap(original: Wrapped) -> Wrapped:  # noqa: C901 - as above
        def below(self: Any, *args: Any, **kwargs: Any) -> Any:
            return super(owner, self).__call__(*args, **kwargs)

        plain = original if own else below

        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: C901, N807, PLR0912
            if compiling():
                return original(self, *args, **kwargs)
            try:
                call = plain if own or not direct or type(self) is not owner else module.__call__
                me = ident()
                if quiet.inside == me:
                    if id(self) in counted:
                        called(id(self))
                else:
                    if quiet.asleep == me and quiet.calls < MOST_FAST_CALLS and (quiet.calls or grad_enabled()):
                        quiet.calls += 1
                        if id(self) not in keys:
                            outermost_newcomer(self)
                        called(id(self))
                        try:
                            quiet.inside = me  # inside `try`: an interrupt may come between any two lines
                            return call(self, *args, **kwargs)
                        except BaseException:
                            called(FAILED_CALL)
                            raise
                        finally:
                            quiet.inside = 0
                    start = clock()
                    try:
                        log = local.log
                    except AttributeError:
                        log = new_log()
                    if log.answers and may_answer(log):
                        return record_answer(call, log, start, self, args, kwargs)
                    if quiet.asleep == me and quiet.calls == MOST_FAST_CALLS:
                        # The log continues the count.
                        quiet.calls, log.calls_asleep = MOST_FAST_CALLS + 1, MOST_FAST_CALLS
                    if not log.inside and log.mode != OFF:
                        # The function below may be about to change.
                        return outermost(plain, log, start, self, args, kwargs)
                    if log.mode != ALL_CALLS and quiet.alone and id(self) in counted:
                        called(id(self))
                return call(self, *args, **kwargs)
            except BaseException as error:
                drop_own_frames(error)
                raise

        host.registry.calls_code |= {f.__code__ for f in (__call__, below, outermost, record_answer)}
        return __call__

    return wrap


def _first_outermost_call(host: WrapperContext) -> Callable[[Any], int]:
    """Return the function for the first outermost call of a module in a step that is not traced."""

    def newcomer(module: Any) -> int:
        key = host.registry.register(module)
        host.is_new_outermost(key)
        return key

    host.registry.calls_code |= {newcomer.__code__}
    return newcomer


def _outermost_call(host: WrapperContext) -> Callable[[Wrapped, ThreadLog, int, Any, Any, Any], Any]:  # noqa: C901, PLR0915 - as above
    """Return the function for outermost module calls: in a step that is not traced only these are logged."""
    registry, clock, grad_enabled, task = host.registry, host.clock_ns, torch.is_grad_enabled, graph_task_id
    quiet, called, signatures = host.quiet, host.quiet.called, host.signatures

    newcomer = _first_outermost_call(host)

    def logged(call: Wrapped, log: ThreadLog, began: int, module: Any, args: Any, kwargs: Any) -> Any:
        key = registry.by_id.get(id(module)) or newcomer(module)
        s0, before, failed = sequence_nr(), len(called), True
        log.read_cpu(clock())
        start = clock()
        log.add_own(began, start, s0, OUTERMOST_TASK)
        try:
            y = call(module, *args, **kwargs)
            failed = False
            return y
        finally:
            end, s1 = clock(), s0 + FAILED_SIZE if failed else sequence_nr()
            is_counted = (quiet.alone or not signatures.counted) and not failed
            number = signatures.number(called[before:]) if is_counted else UNKNOWN
            del called[before:]
            log.rows.append((key, start, end, s0, s1, OUTERMOST_TASK - number))

    def noted(call: Wrapped, module: Any, args: Any, kwargs: Any) -> Any:
        if quiet.alone:
            if id(module) not in registry.by_id:
                newcomer(module)
            called.append(id(module))
        try:
            return call(module, *args, **kwargs)
        except BaseException:
            called.append(FAILED_CALL)
            raise

    def ended(log: ThreadLog, began: int) -> None:
        """Log the profiler work after a call; it began when the call's own row ended."""
        latest = log.rows[-1:] or ((0, 0, clock(), 0, 0, FORWARD_TASK),)
        end, task_ = max(latest[0][END], began), latest[0][TASK]  # an interrupt may come before the call is logged
        log.read_cpu(end)
        log.add_own(end, clock(), sequence_nr(), min(max(task_, OUTERMOST_TASK), FORWARD_TASK))

    def outermost(call: Wrapped, log: ThreadLog, began: int, module: Any, args: Any, kwargs: Any) -> Any:
        if compiler._is_compiling_flag:
            return call(module, *args, **kwargs)
        log.inside = True
        if log.mode == STEP_ENDS and log.calls_asleep < MOST_CALLS_PER_STEP and (log.calls_asleep or grad_enabled()):
            log.calls_asleep += task() < 0
            try:
                return noted(call, module, args, kwargs)
            finally:
                log.inside = False
        step = records = False
        try:
            if task() >= 0:
                return call(module, *args, **kwargs)
            without_gradients, begun = not grad_enabled(), log.within_step
            log.within_step = max(begun - 1, 0) if without_gradients else MOST_CALLS_PER_STEP
            # Without gradients a call is an evaluation, unless the step has begun: then it may be its teacher's.
            if log.stepless or log.mode == STEP_ENDS or (without_gradients and not begun):
                step = True
                host.outermost_begins(log)
            if log.mode == OUTERMOST or (log.mode == STEP_ENDS and without_gradients):
                log.settle()
                records = True
                return logged(call, log, began, module, args, kwargs)
            if log.mode == STEP_ENDS:  # the decision was to stay asleep
                log.calls_asleep += 1
                return noted(call, module, args, kwargs)
            records = True
            log.read_cpu(clock())
            log.add_own(began, clock(), sequence_nr())
            return call(module, *args, **kwargs)
        finally:
            log.inside = False
            if records:
                ended(log, began)
            if step:
                host.outermost_ended(log)

    host.registry.calls_code |= {logged.__code__, noted.__code__}
    return outermost


def _first_call(host: WrapperContext) -> Callable[[Wrapped, ThreadLog, Any, Any, Any], Any]:
    """Return the function for the first call of a module in a traced step."""
    registry = host.registry

    def newcomer(logged: Wrapped, log: ThreadLog, module: Any, args: Any, kwargs: Any) -> Any:
        key = registry.register(module)
        if log.inside or not host.is_new_outermost(key):
            return logged(log, key, module, args, kwargs)
        log.inside = True
        log.within_step = MOST_CALLS_PER_STEP * torch.is_grad_enabled()
        try:
            return logged(log, key, module, args, kwargs)
        finally:
            log.inside = False

    return newcomer
