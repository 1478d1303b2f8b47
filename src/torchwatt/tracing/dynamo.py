"""Access to torch.compile's tracer, Dynamo, if the program has imported it.

Private names differ between torch 2.4 and 2.13; each is guarded by `getattr`.
"""

from __future__ import annotations

import inspect
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

# Of torch's two tests for compilation, the one at a third of the cost: Dynamo evaluates it while it traces.
is_dynamo_compiling: Callable[[], bool] = getattr(torch.compiler, "is_dynamo_compiling", torch.compiler.is_compiling)

DYNAMO = "torch._dynamo"
OUTER_NAMES = ("compile_wrapper", "_fn")  # the function that `torch.compile` returns, from 2.8 on and before


def eval_frame_module() -> ModuleType | None:
    """Return `torch._dynamo.eval_frame` if the program has imported Dynamo completely, else None."""
    dynamo = sys.modules.get(DYNAMO)
    ready = dynamo is not None and hasattr(dynamo, "callback_handler") and hasattr(dynamo, "reset")
    return sys.modules.get("torch._dynamo.eval_frame") if ready else None


def outer_codes(eval_frame: ModuleType) -> frozenset[CodeType]:
    """Return the code objects of functions that `torch.compile` returns; earlier ones have the same."""
    context = getattr(eval_frame, "_TorchDynamoContext", None)
    made_by = vars(context).get("__call__") if isinstance(context, type) else None
    code = getattr(made_by, "__code__", None)
    inner = code.co_consts if isinstance(code, CodeType) else ()
    return frozenset(each for each in inner if isinstance(each, CodeType) and each.co_name in OUTER_NAMES)


def skip_own_code(eval_frame: ModuleType) -> None:
    """Make Dynamo run this package's functions uncompiled where a compiled program calls them outside its graphs."""
    skip = getattr(eval_frame, "skip_code", None)
    if skip is not None:
        for code in set(_own_code()) - _skipped:
            skip(code)
            _skipped.add(code)


_skipped: set[CodeType] = set()  # process-wide, as in Dynamo


def _own_code() -> Iterator[CodeType]:
    package = __name__.partition(".")[0]
    yield from _code_of(is_dynamo_compiling)  # rarely used elsewhere
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == package and module is not None:
            for value in list(vars(module).values()):
                if getattr(value, "__module__", None) == name:
                    yield from _code_of(value)


def _code_of(value: Any) -> Iterator[CodeType]:
    if isinstance(value, FunctionType):
        inner = inspect.unwrap(value)  # a decorator's own code is shared with other functions
        if isinstance(inner, FunctionType):
            yield from _nested(inner.__code__)
    elif isinstance(value, staticmethod | classmethod):
        yield from _code_of(value.__func__)
    elif isinstance(value, property):
        yield from _code_of(value.fget)
    elif isinstance(value, type):
        for member in list(vars(value).values()):
            if not isinstance(member, type):
                yield from _code_of(member)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


class StepHook:
    """A hook around every optimizer's step that no compiled program depends on.

    Dynamo guards on the number of entries in torch's tables of hooks: one more, and each compiled `optimizer.step` is
    compiled again. The tables are `OrderedDict`s, read by their `values()` at each step: an attribute of that name on
    the table itself adds this hook in eager steps, and no guard depends on it.

    Args:
        table: Torch's table of global hooks.
        hook: Called as `hook(optimizer, args, kwargs)`.
        register: Torch's own registration, where the table is of another kind.
    """

    def __init__(
        self, table: Mapping[int, Any] | None, hook: Callable[..., None], register: Callable[[Any], Any]
    ) -> None:
        self._table = table if isinstance(table, OrderedDict) and "values" not in vars(table) else None
        self._handle: Any = None
        if self._table is None:
            self._handle = register(hook)
            return
        plain = self._table.values

        def values() -> Iterator[Any]:
            yield from plain()
            yield hook

        self._values = values
        self.put()

    def put(self) -> None:
        """Set the hook."""
        if self._table is not None:
            vars(self._table)["values"] = self._values

    def lift(self) -> None:
        """Remove the hook while Dynamo reads the table; `put` restores it."""
        if self._table is not None and vars(self._table).get("values") is self._values:
            del vars(self._table)["values"]

    def remove(self) -> None:
        """Remove the hook permanently."""
        self.lift()
        if self._handle is not None:
            self._handle.remove()


def step_hooks(begins: Callable[..., None], ended: Callable[..., None]) -> tuple[StepHook, StepHook]:
    """Register hooks before and after every step of any optimizer."""
    torch_optimizer = sys.modules["torch.optim.optimizer"]
    before = getattr(torch_optimizer, "_global_optimizer_pre_hooks", None)
    after = getattr(torch_optimizer, "_global_optimizer_post_hooks", None)
    return (
        StepHook(before, begins, register_optimizer_step_pre_hook),
        StepHook(after, ended, register_optimizer_step_post_hook),
    )
