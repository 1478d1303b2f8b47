"""Everything that is patched in torch while a session runs, put on and taken off together."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from torchwatt.tracing.dynamo import StepHook
from torchwatt.tracing.patch import Patch
from torchwatt.tracing.wrappers import Wrapped

MAX_CLASSES = 64
# Since Python 3.13 a class whose attributes changed a thousand times is never cached again: stop long before.
MAX_SWAPS = 400 if sys.version_info >= (3, 13) else 1_000_000
# Modules of torch that keep `nn.Module.__call__` as they found it when they were imported, possibly in a session.
KEEPERS = (
    ("torch._dynamo.utils", "unpatched_nn_module_call"),
    ("torch._dynamo.variables.nn_module", "unpatched_nn_module_call"),
    ("torch.fx._symbolic_trace", "_orig_module_call"),
)

_swaps = 0  # of this process


class Patches:
    """The wrappers in place: some always, `nn.Module.__call__` now and then, and classes that were seen outermost."""

    def __init__(self) -> None:
        self._fixed: list[Patch] = []
        self._frail: list[Patch] = []  # gone as soon as something is compiled
        self._compiled = False
        self._module: Patch | None = None
        self._classes: dict[type, Patch | None] = {}
        self._hooks: list[StepHook] = []
        self._aside = 0  # compilations under way
        self._lifted: list[Patch] = []  # to be put back after them
        self._lock = threading.RLock()

    def add(self, owner: Any, name: str, wrap: Callable[[Wrapped], Wrapped]) -> bool:
        """Patch an attribute for the whole session; False if there is none of that name."""
        if not hasattr(owner, name):
            return False
        self._fixed.append(Patch(owner, name, wrap))
        return True

    def add_until_compiled(self, module: str, name: str, wrap: Callable[[Wrapped], Wrapped]) -> None:
        """Patch a function of a module that is loaded, until something is compiled for the first time."""
        owner = sys.modules.get(module)
        if not self._compiled and hasattr(owner, name):
            self._frail.append(Patch(owner, name, wrap))

    def _drop_frail(self) -> None:
        while self._frail:
            self._frail.pop().remove()

    def keep(self, hook: StepHook) -> None:
        """Remember a hook."""
        self._hooks.append(hook)

    def add_module(self, wrap: Callable[[Wrapped], Wrapped]) -> None:
        """Patch `nn.Module.__call__`."""
        self._module = Patch(nn.Module, "__call__", wrap)

    @property
    def module_is_on(self) -> bool:
        """Whether `nn.Module.__call__` is patched."""
        return self._module is not None and (self._module.on or self._module in self._lifted)

    def put_module(self) -> None:
        """Put the wrapper of all modules in place, or have it put there after the compilation that is under way."""
        with self._lock:
            if self._module is not None and self._aside and self._module not in self._lifted:
                self._lifted.append(self._module)
            elif self._module is not None and not self._aside:
                self._module.put()

    def take_module(self) -> bool:
        """Take it off; False if somebody else's is on top, or it was moved too often."""
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
        """Take everything off until `step_back`: what torch compiles meanwhile, and its guards, is torch's alone."""
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
        """Put back what was taken off, after the last of several compilations."""
        with self._lock:
            self._aside -= 1
            if not self._aside:
                for hook in self._hooks:
                    hook.put()
                lifted, self._lifted = self._lifted, []
                for patch in reversed(lifted):
                    patch.put()

    def renew_lock(self) -> None:
        """Forget who held the lock: in a forked child that thread does not exist."""
        self._lock = threading.RLock()

    def _in_place(self) -> list[Patch]:
        """Return the patches that are on, those on top of others first."""
        classes = [patch for patch in self._classes.values() if patch is not None]
        module = [self._module] if self._module else []
        return [patch for patch in (*reversed(classes), *module, *reversed(self._fixed)) if patch.on]

    def restore_keepers(self) -> None:
        """Give `nn.Module.__call__` itself to modules of torch that were imported while ours was in its place."""
        if self._module is not None:
            _restore(self._module)

    def watch(self, owner: type, wrap: Callable[[type], Callable[[Wrapped], Wrapped]]) -> bool:
        """Patch the `__call__` of one class, once, and say whether that is new; a class that resists is left alone."""
        with self._lock:
            if owner in self._classes or len(self._classes) >= MAX_CLASSES or not issubclass(owner, nn.Module):
                return False
            if self._aside:
                return False  # it will be asked for again
            try:
                self._classes[owner] = Patch(owner, "__call__", wrap(owner))
            except (AttributeError, TypeError):
                self._classes[owner] = None
            return True

    def watched(self, owners: Iterable[type]) -> bool:
        """Say whether all of these classes are patched."""
        return all(self._classes.get(owner) is not None for owner in owners)

    def remove(self) -> None:
        """Take everything off; what others put on top of ours stays and finds ours inert."""
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
    """Give the original back to who took our wrapper for it."""
    for name, attribute in KEEPERS:
        keeper = sys.modules.get(name)
        if keeper is not None and getattr(keeper, attribute, None) is patch.wrapper:
            setattr(keeper, attribute, patch.original)
