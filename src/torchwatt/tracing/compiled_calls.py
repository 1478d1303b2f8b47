"""Record compiled functions called outside any module: a whole training step, a loss, an update."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from torchwatt.core.meter import Severity
from torchwatt.tracing.compile_monitor import CompileMonitor
from torchwatt.tracing.fast_path import FastPath
from torchwatt.tracing.log_rows import (
    ALL_CALLS,
    AROUND_KEY,
    BACKWARD_TASK,
    END,
    FORWARD_TASK,
    KEY,
    OFF,
    OPTIMIZER_KEY,
    OUTERMOST,
    OUTERMOST_TASK,
    STEP_ENDS,
)
from torchwatt.tracing.module_registry import ModuleRegistry
from torchwatt.tracing.module_wrappers import MOST_CALLS_PER_STEP
from torchwatt.tracing.patches import Patches, Wrapped, graph_task_id, is_dynamo_compiling, outer_codes, sequence_nr
from torchwatt.tracing.thread_log import ThreadLog

# Code that uses one of these names computes gradients itself, so that its call is more than a forward pass.
GRADIENTS = frozenset({"backward", "grad", "value_and_grad", "grad_and_value", "vjp", "jacrev"})


class CompiledContext(Protocol):
    """The attributes of the hub that are used here."""

    clock_ns: Callable[[], int]
    manual_steps: bool
    quiet: FastPath
    registry: ModuleRegistry
    compile_watch: CompileMonitor

    def log(self) -> ThreadLog:
        """Return this thread's log."""

    def scope_key(self, name: str) -> int:
        """Return the key of a range that has a name."""

    def note(self, severity: Severity, code: str, message: str) -> None:
        """Record an event, once per code."""

    def outermost_begins(self, log: ThreadLog) -> None:
        """Handle the start of an outermost call: where nothing marks steps, each such call is one."""

    def outermost_ended(self, log: ThreadLog) -> None:
        """Handle the end of such a call."""

    def step_ended(self, log: ThreadLog, end_ns: int) -> None:
        """Handle the end of a step of this thread."""

    def decide_if_due(self, log: ThreadLog) -> None:
        """Decide on the next steps, where that was postponed to the end of a call."""


@dataclass(slots=True, eq=False)
class CompiledFunction:
    """A compiled function, as its calls so far describe it."""

    name: str
    key: int  # of its rows: a module's, OPTIMIZER_KEY, or its own
    step_key: int  # of the steps that its calls end; 0: it ends none
    is_opaque: bool = True  # no module ran inside so far


@dataclass(slots=True, eq=False)
class CompiledCall:
    """A call in progress."""

    frame: FrameType
    log: ThreadLog
    function: CompiledFunction
    start_ns: int
    number: int  # autograd's sequence number at the start
    rows: int  # number of rows in the log at the start
    ends: list[tuple[int, int]]  # the log's ends of optimizer steps; `ended`: their number at the start
    ended: int
    is_step: bool  # the call was announced as a step, where nothing else marks steps


class CompiledCalls:
    """Record the outermost calls of compiled functions, also of functions compiled before the session.

    Every function that `torch.compile` returns switches Dynamo on and off by `set_eval_frame`, looked up in its module
    at each call: a wrapper there observes begin and end of each call without changing the function. Calls inside a
    module, an optimizer's step or another compiled function are part of these.
    """

    def __init__(self, host: CompiledContext) -> None:
        self._host = host
        self._local = threading.local()
        self._functions: dict[int, tuple[Callable[[], Any], CompiledFunction]] = {}
        self._codes: frozenset[CodeType] = frozenset()
        self.named: dict[int, tuple[str, int]] = {}  # functions with forward rows of their own: name, parameters used
        self.running = 0

    def attach(self, eval_frame: Any) -> None:
        """Hook `torch._dynamo.eval_frame`."""
        self._codes = self._host.registry.compiled_code = outer_codes(eval_frame)
        for name in ("set_eval_frame", "_maybe_set_eval_frame"):
            self._host.compile_watch.hook(eval_frame, name, self._switch)

    def _switch(self, original: Wrapped) -> Wrapped:
        codes, frame_of, began, ended = self._codes, sys._getframe, self._began, self._ended

        def set_eval_frame(callback: Any) -> Any:
            frame = frame_of(1)
            if frame.f_code not in codes:
                return original(callback)
            if callback is not None:
                began(frame)  # while Dynamo is off
                return original(callback)
            prior = original(callback)
            ended(frame)
            return prior

        return set_eval_frame

    def _began(self, frame: FrameType) -> None:
        host, local = self._host, self._local
        if getattr(local, "call", None) is not None or host.compile_watch.is_compiling:
            return
        log = host.log()
        if log.mode == OFF or log.inside or log.opened or host.quiet.inside == log.ident or graph_task_id() >= 0:
            return
        if log.mode == ALL_CALLS and host.registry.enclosed(frame):
            return
        log.settle()
        function = self._function(frame)
        is_step = False
        if (
            log.mode == STEP_ENDS
            and log.calls_asleep < MOST_CALLS_PER_STEP
            and (log.calls_asleep or torch.is_grad_enabled())
        ):
            log.calls_asleep += 1
        elif not function.step_key:
            evaluates, begun = not torch.is_grad_enabled(), log.within_step
            log.within_step = max(begun - 1, 0) if evaluates else MOST_CALLS_PER_STEP
            if is_step := log.stepless or log.mode == STEP_ENDS or (evaluates and not begun):
                host.outermost_begins(log)
        log.inside = True
        self.running += 1
        local.call = CompiledCall(
            frame, log, function, host.clock_ns(), sequence_nr(), len(log.rows), log.ends, len(log.ends), is_step
        )  # fmt: skip

    def _ended(self, frame: FrameType) -> None:
        call: CompiledCall | None = getattr(self._local, "call", None)
        if call is None or call.frame is not frame:
            return
        self._local.call = None
        self.running -= 1
        host, log, function, end_ns = self._host, call.log, call.function, self._host.clock_ns()
        log.inside = False
        if log.mode == OFF:
            return
        log.settle()
        if log.mode != STEP_ENDS or call.is_step:
            self._log(call, end_ns)
        stepped = len(log.ends) > (call.ended if log.ends is call.ends else 0)
        if function.step_key and not stepped and not host.manual_steps:
            self._end_step(log, function.step_key, end_ns)
        if call.is_step:
            host.outermost_ended(log)
        host.decide_if_due(log)

    def _log(self, call: CompiledCall, end_ns: int) -> None:
        log, function = call.log, call.function
        if log.mode == ALL_CALLS:
            function.is_opaque = all(row[KEY] <= 0 for row in log.rows[call.rows :])
        task = OUTERMOST_TASK if log.mode != ALL_CALLS and function.key > 0 else FORWARD_TASK
        log.rows.append((function.key, call.start_ns, end_ns, call.number, sequence_nr(), task))
        if function.step_key and function.key != OPTIMIZER_KEY and function.is_opaque:
            text = (
                f"{function.name}() is compiled as a whole: its energy is one row, {function.name}, and not split into "
                "layers, since a compiled graph does not say which of its kernels belong to which module"
            )
            self._host.note("warning", "COMPILED_WHOLE", text)

    def _end_step(self, log: ThreadLog, key: int, end_ns: int) -> None:
        if log.lead_optimizer is None:
            log.lead_optimizer, log.stepless = key, False
        log.ends.append((key, end_ns))
        if key == log.lead_optimizer:
            self._host.step_ended(log, end_ns)

    def takes_backward(self) -> bool:
        """Return whether a backward call that begins now is inside a compiled function without visible modules."""
        call: CompiledCall | None = getattr(self._local, "call", None)
        return call is not None and call.function.is_opaque

    def run_backward(self, original: Wrapped, args: Any, kwargs: Any) -> Any:
        """Run a backward call within a compiled function; each call of that function then counts as a whole step."""
        call: CompiledCall = self._local.call
        function, log, number = call.function, call.log, sequence_nr()
        if function.key > 0 or not function.step_key:
            self._make_step(function)
        start_ns = self._host.clock_ns()
        try:
            return original(*args, **kwargs)
        finally:
            if log.mode in {ALL_CALLS, OUTERMOST}:
                log.settle()
                log.rows.append((function.key, start_ns, self._host.clock_ns(), number, sequence_nr(), BACKWARD_TASK))

    def _make_step(self, function: CompiledFunction) -> None:
        function.key = self._host.scope_key(function.name)
        function.step_key = function.step_key or function.key

    def _function(self, frame: FrameType) -> CompiledFunction:
        values = frame.f_locals
        fn = values.get("fn")
        described = self._functions.get(id(fn))
        if described is not None and described[0]() is fn:
            return described[1]
        arguments = (*(values.get("args") or ()), *(values.get("kwargs") or {}).values())
        function = self._described(fn, arguments)
        try:
            self._functions[id(fn)] = weakref.ref(fn), function
        except TypeError:  # no weak reference possible: kept until the session ends
            self._functions[id(fn)] = (lambda: fn), function
        return function

    def _described(self, fn: Any, arguments: tuple[Any, ...]) -> CompiledFunction:
        name = str(getattr(fn, "__name__", type(fn).__name__))
        for layer in _layers(fn):
            owner = getattr(layer, "__self__", None)
            if isinstance(owner, nn.Module):
                return CompiledFunction(name, self._host.registry.register(owner), 0, is_opaque=False)
            if isinstance(owner, Optimizer) and name == "step":
                return CompiledFunction(name, OPTIMIZER_KEY, self._host.registry.optimizer_key(owner))
        words, used = _code_names(fn), [*_referred_objects(fn), *arguments]
        optimizers = [value for value in used if isinstance(value, Optimizer)] if "step" in words else []
        modules = [value for value in used if isinstance(value, nn.Module)]
        key = self._host.registry.function_key()
        function = CompiledFunction(name, key, 0)
        if optimizers:
            distinct = {id(optimizer) for optimizer in optimizers}
            optimizer_key = self._host.registry.optimizer_key(optimizers[0]) if len(distinct) == 1 else 0
            if not modules and not words & GRADIENTS:
                function.key, function.step_key = OPTIMIZER_KEY, optimizer_key or self._host.scope_key(name)
            else:
                function.step_key = optimizer_key
                self._make_step(function)
        elif words & GRADIENTS:
            self._make_step(function)
        if function.key == key:
            self.named[key] = name, sum(p.numel() for module in {*modules} for p in module.parameters())
        return function


def _layers(fn: Any) -> Iterator[Any]:
    """Yield a function and the functions it wraps, outermost first."""
    for _ in range(16):
        yield fn
        fn = getattr(fn, "__wrapped__", None) or getattr(fn, "func", None)
        if fn is None:
            return


def _code(fn: Any) -> CodeType | None:
    code = getattr(fn, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _code_names(fn: Any) -> set[str]:
    """Return the names that the code of a function uses, nested functions included."""
    open_codes = [code for layer in _layers(fn) if (code := _code(layer)) is not None]
    words: set[str] = set()
    while open_codes:
        code = open_codes.pop()
        words |= {*code.co_names, *code.co_freevars}
        open_codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return words


def _referred_objects(fn: Any) -> Iterator[Any]:
    """Yield the objects a function refers to by name: free variables, globals, attributes of its bound object."""
    words = _code_names(fn)
    for layer in _layers(fn):
        for cell in getattr(layer, "__closure__", None) or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not filled yet
                continue
        scope = getattr(layer, "__globals__", {})
        own = getattr(getattr(layer, "__self__", None), "__dict__", {})
        yield from (scope[word] for word in words if word in scope)
        yield from (own[word] for word in words if word in own)


class FunctionalContext(Protocol):
    """The attributes of the hub that the wrappers use."""

    quiet: FastPath
    clock_ns: Callable[[], int]

    def log(self) -> ThreadLog:
        """Return this thread's log."""


def wrap_functional(host: FunctionalContext, patches: Patches) -> None:
    """Wrap the two functions, unless something was compiled before."""
    utils = sys.modules.get("torch._dynamo.utils")
    if utils is not None and any(utils.counters.values()):
        return
    patches.add_until_compiled("torch.nn.utils.stateless", "_functional_call", _forward(host))
    patches.add_until_compiled("torch._functorch.eager_transforms", "grad_and_value_impl", _backward(host))


def _recording_log(host: FunctionalContext) -> ThreadLog | None:
    """Return the thread's log if it records outermost calls now, else None."""
    if is_dynamo_compiling() or host.quiet.asleep == threading.get_ident():
        return None
    log = host.log()
    return None if log.mode >= STEP_ENDS or log.inside or graph_task_id() >= 0 else log


def _forward(host: FunctionalContext) -> Callable[[Wrapped], Wrapped]:
    def wrap(original: Wrapped) -> Wrapped:
        def _functional_call(*args: Any, **kwargs: Any) -> Any:
            log = _recording_log(host)
            if log is None:
                return original(*args, **kwargs)
            number, began = sequence_nr(), host.clock_ns()
            try:
                return original(*args, **kwargs)
            finally:
                log.rows.append((AROUND_KEY, began, host.clock_ns(), number, sequence_nr(), FORWARD_TASK))

        return _functional_call

    return wrap


def _backward(host: FunctionalContext) -> Callable[[Wrapped], Wrapped]:
    def wrap(original: Wrapped) -> Wrapped:
        def grad_and_value_impl(*args: Any, **kwargs: Any) -> Any:
            log = _recording_log(host)
            if log is None:
                return original(*args, **kwargs)
            began = host.clock_ns()
            try:
                return original(*args, **kwargs)
            finally:
                backward_end_ns = log.backwards[-1].end_ns if log.backwards else 0
                if backward_end_ns > began:
                    number = sequence_nr()
                    since = max(backward_end_ns, log.rows[-1][END] if log.rows else 0)
                    log.rows.append((AROUND_KEY, since, host.clock_ns(), number, number, BACKWARD_TASK))

        return grad_and_value_impl

    return wrap
