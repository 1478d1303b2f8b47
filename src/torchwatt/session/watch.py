"""Registry of the live view: a notebook installs one; the default shows nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Watcher(Protocol):
    """A view of one run. Its methods must not raise, because errors of a view must not reach the user's code.

    `run` is a `torchwatt.Run`, whose session imports this file, so that it is not named in its types.
    """

    def begin(self, run: Any) -> None:
        """Start showing a run."""

    def pause(self) -> None:
        """Stop updating: the run is about to end."""

    def end(self) -> None:
        """Show the finished run."""


class _Nobody:
    def begin(self, run: Any) -> None: ...

    def pause(self) -> None: ...

    def end(self) -> None: ...


class _Watch:
    make: Callable[[], Watcher] = _Nobody


def install(make: Callable[[], Watcher]) -> None:
    """Use `make` to create a view for every later `with profile()`."""
    _Watch.make = staticmethod(make)


def watcher(live: str) -> Watcher:
    """Return a view, or one that shows nothing."""
    return _Nobody() if live == "off" else _Watch.make()
