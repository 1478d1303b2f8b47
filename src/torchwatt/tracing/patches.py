"""Install and remove all patches of torch for a session."""

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
