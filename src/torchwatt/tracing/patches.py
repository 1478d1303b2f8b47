"""Install and remove all patches of torch for a session."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class Patch:
    """One attribute replaced by a wrapper of it.

    A wrapper that another library has wrapped in turn cannot be removed: it stays below the other one. Every wrapper
    must therefore pass calls through once its session has ended.
    """

    def __init__(self, owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self.owner = owner
        self.name = name
        self._own = name in vars(owner)
        self._wrap = wrap
        self.on = False
        self.original = getattr(owner, name)
        self._kept = vars(owner).get(name)  # binds it to an instance: of a C++ class it is not the original
        self.wrapper = self._wrapped()
        self.put()

    def _wrapped(self) -> Callable[..., Any]:
        wrapper = self._wrap(self.original)
        functools.update_wrapper(wrapper, self.original)
        return wrapper

    def put(self) -> None:
        """Install the wrapper over the attribute's present value; do nothing if it is installed."""
        if self.on:
            return
        current = getattr(self.owner, self.name)
        if current is not self.original:
            self.original, self._kept = current, vars(self.owner).get(self.name)
            self.wrapper = self._wrapped()
        setattr(self.owner, self.name, self.wrapper)
        self.on = True

    def remove(self) -> bool:
        """Restore the original; return False if another patch is on top, which is left unchanged."""
        if vars(self.owner).get(self.name) is not self.wrapper:
            return False
        if self._own:
            setattr(self.owner, self.name, self._kept)
        else:
            delattr(self.owner, self.name)
        self.on = False
        return True


# Of torch's two tests for compilation, the one at a third of the cost: Dynamo evaluates it while it traces.
is_dynamo_compiling: Callable[[], bool] = getattr(torch.compiler, "is_dynamo_compiling", torch.compiler.is_compiling)

Wrapped = Callable[..., Any]


def _zero() -> int:
    return 0


def _outside() -> int:
    return -1


class _Never:
    _is_compiling_flag = False


sequence_nr: Callable[[], int] = getattr(torch._C._autograd, "_get_sequence_nr", _zero)
graph_task_id: Callable[[], int] = getattr(torch._C, "_current_graph_task_id", _outside)
# The flag behind torch's query, read directly: calling torch's function in a compiled program would compile it.
compiler: Any = torch.compiler if hasattr(torch.compiler, "_is_compiling_flag") else _Never()

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
            yield from _nested_code(inner.__code__)
    elif isinstance(value, staticmethod | classmethod):
        yield from _code_of(value.__func__)
    elif isinstance(value, property):
        yield from _code_of(value.fget)
    elif isinstance(value, type):
        for member in list(vars(value).values()):
            if not isinstance(member, type):
                yield from _code_of(member)


def _nested_code(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested_code(constant)


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


_STEP_CODE = torch.optim.Optimizer.profile_hook_step(lambda: None).__code__  # of the function that runs the hooks


def has_several_steps(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the class of an optimizer overrides the step of a class that may run the hooks as well."""
    # Torch puts its wrapper of an inherited step into the first class that is used: AdamW's wraps Adam's.
    steps = {id(inspect.unwrap(vars(owner)["step"])) for owner in type(optimizer).__mro__ if "step" in vars(owner)}
    return len(steps) > 2  # one is that of `Optimizer`


def is_inner_step(optimizer: torch.optim.Optimizer) -> bool:
    """Return, in a hook, whether the step it runs for was called by another step of the same optimizer."""
    number, frame = 0, inspect.currentframe()
    while frame is not None and number < 2:
        number += frame.f_code is _STEP_CODE and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return number > 1


MAX_CLASSES = 64
# Since Python 3.13 a class whose attributes changed a thousand times is never cached again: stop long before.
MAX_SWAPS = 400 if sys.version_info >= (3, 13) else 1_000_000
# Modules of torch that store `nn.Module.__call__` when they are imported, possibly during a session.
KEEPERS = (
    ("torch._dynamo.utils", "unpatched_nn_module_call"),
    ("torch._dynamo.variables.nn_module", "unpatched_nn_module_call"),
    ("torch.fx._symbolic_trace", "_orig_module_call"),
)

_swaps = 0  # of this process


class Patches:
    """The wrappers in place: fixed ones, `nn.Module.__call__` in some steps, and classes of outermost modules."""

    def __init__(self) -> None:
        self._fixed: list[Patch] = []
        self._frail: list[Patch] = []  # removed when something is compiled
        self._compiled = False
        self._module: Patch | None = None
        self._classes: dict[type, Patch | None] = {}
        self._hooks: list[StepHook] = []
        self._aside = 0  # compilations in progress
        self._lifted: list[Patch] = []  # to be restored after them
        self._lock = threading.RLock()

    def add(self, owner: Any, name: str, wrap: Callable[[Wrapped], Wrapped]) -> bool:
        """Patch an attribute for the whole session; return False if it does not exist."""
        if not hasattr(owner, name):
            return False
        self._fixed.append(Patch(owner, name, wrap))
        return True

    def add_until_compiled(self, module: str, name: str, wrap: Callable[[Wrapped], Wrapped]) -> None:
        """Patch a function of a loaded module until the first compilation."""
        owner = sys.modules.get(module)
        if not self._compiled and hasattr(owner, name):
            self._frail.append(Patch(owner, name, wrap))

    def _drop_frail(self) -> None:
        while self._frail:
            self._frail.pop().remove()

    def keep(self, hook: StepHook) -> None:
        """Add a hook, to be removed with the patches."""
        self._hooks.append(hook)

    def add_module(self, wrap: Callable[[Wrapped], Wrapped]) -> None:
        """Patch `nn.Module.__call__`."""
        self._module = Patch(nn.Module, "__call__", wrap)

    @property
    def module_is_on(self) -> bool:
        """Whether `nn.Module.__call__` is patched."""
        return self._module is not None and (self._module.on or self._module in self._lifted)

    def put_module(self) -> None:
        """Install the wrapper of all modules, or after the compilation in progress."""
        with self._lock:
            if self._module is not None and self._aside and self._module not in self._lifted:
                self._lifted.append(self._module)
            elif self._module is not None and not self._aside:
                self._module.put()

    def take_module(self) -> bool:
        """Remove the wrapper of all modules; return False if another is on top, or after `MAX_SWAPS` changes."""
        global _swaps  # noqa: PLW0603 - what is limited is the class's, and the class is the process's
        with self._lock:
            if self._module is not None and self._module in self._lifted:
                self._lifted.remove(self._module)
                return True
            if self._module is None or _swaps >= MAX_SWAPS or not self._module.remove():
                return False
            _swaps += 1
            return True

    def step_aside(self) -> None:
        """Remove all patches until `step_back`, so that compiled code and its guards do not depend on them."""
        global _swaps  # noqa: PLW0603 - as above
        with self._lock:
            self._aside += 1
            self._compiled = True
            self._drop_frail()
            for hook in self._hooks:
                hook.lift()
            if self._aside > 1 or _swaps >= MAX_SWAPS:
                return
            self._lifted = [patch for patch in self._in_place() if patch.remove()]
            _swaps += self._module in self._lifted

    def step_back(self) -> None:
        """Restore what `step_aside` removed, after the last of several compilations."""
        with self._lock:
            self._aside -= 1
            if not self._aside:
                for hook in self._hooks:
                    hook.put()
                lifted, self._lifted = self._lifted, []
                for patch in reversed(lifted):
                    patch.put()

    def renew_lock(self) -> None:
        """Replace the lock: in a forked child the thread that held it does not exist."""
        self._lock = threading.RLock()

    def _in_place(self) -> list[Patch]:
        """Return the installed patches, topmost first."""
        classes = [patch for patch in self._classes.values() if patch is not None]
        module = [self._module] if self._module else []
        return [patch for patch in (*reversed(classes), *module, *reversed(self._fixed)) if patch.on]

    def restore_keepers(self) -> None:
        """Restore `nn.Module.__call__` in modules of torch that were imported while it was patched."""
        if self._module is not None:
            _restore(self._module)

    def watch(self, owner: type, wrap: Callable[[type], Callable[[Wrapped], Wrapped]]) -> bool:
        """Patch the `__call__` of one class, once; return whether this was the first try, even if the class refused."""
        with self._lock:
            if owner in self._classes or len(self._classes) >= MAX_CLASSES or not issubclass(owner, nn.Module):
                return False
            if self._aside:
                return False  # the caller asks again
            try:
                self._classes[owner] = Patch(owner, "__call__", wrap(owner))
            except (AttributeError, TypeError):
                self._classes[owner] = None
            return True

    def watched(self, owners: Iterable[type]) -> bool:
        """Return whether all of these classes are patched."""
        return all(self._classes.get(owner) is not None for owner in owners)

    def remove(self) -> None:
        """Remove all patches; a wrapper below another library's wrapper stays in place and passes calls through."""
        for hook in self._hooks:
            hook.remove()
        with self._lock:
            self._lifted.clear()
            for patch in self._in_place():
                patch.remove()
            self._drop_frail()
            self.restore_keepers()
            self._hooks.clear()
            self._fixed.clear()
            self._classes.clear()
            self._module = None


def _restore(patch: Patch) -> None:
    """Restore the original in modules that stored our wrapper."""
    for name, attribute in KEEPERS:
        keeper = sys.modules.get(name)
        if keeper is not None and getattr(keeper, attribute, None) is patch.wrapper:
            setattr(keeper, attribute, patch.original)
