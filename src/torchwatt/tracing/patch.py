"""Replacing one attribute of a foreign class or module, and putting it back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


class Patch:
    """One attribute replaced by a wrapper of it.

    If somebody patches on top of ours and is still there when we leave, theirs stays, and with it ours below:
    every wrapper therefore has to become a plain pass-through when its session is over.
    """

    def __init__(self, owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self.owner = owner
        self.name = name
        self._own = name in vars(owner)
        self._wrap = wrap
        self.on = False
        self.original = getattr(owner, name)
        self._kept = vars(owner).get(name)  # what binds it to an instance: of a class in C++ it is not the original
        self.wrapper = self._wrapped()
        self.put()

    def _wrapped(self) -> Callable[..., Any]:
        wrapper = self._wrap(self.original)
        functools.update_wrapper(wrapper, self.original)
        return wrapper

    def put(self) -> None:
        """Put the wrapper in place, over whatever is there by now; nothing if it is in place."""
        if self.on:
            return
        below = getattr(self.owner, self.name)
        if below is not self.original:
            self.original, self._kept = below, vars(self.owner).get(self.name)
            self.wrapper = self._wrapped()
        setattr(self.owner, self.name, self.wrapper)
        self.on = True

    def remove(self) -> bool:
        """Put the original back; False if somebody else's patch is on top and was left alone."""
        if vars(self.owner).get(self.name) is not self.wrapper:
            return False
        if self._own:
            setattr(self.owner, self.name, self._kept)
        else:
            delattr(self.owner, self.name)
        self.on = False
        return True
