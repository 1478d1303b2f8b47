"""Replace one attribute of a foreign class or module, and restore it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


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
