"""Who wants to look at runs while they run: a notebook puts its view here, everywhere else there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torchwatt.session.run import Run


class Watcher(Protocol):
    """A view of one run. None of its methods may raise: a fault of a view must not reach the user's code."""

    def begin(self, run: Run) -> None:
        """Look at a run from now on."""

    def pause(self) -> None:
        """Look no more: the run is about to end."""

    def end(self) -> None:
        """Show the finished run."""


class _Nobody:
    def begin(self, run: Run) -> None: ...

    def pause(self) -> None: ...

    def end(self) -> None: ...


class _Watch:
    make: Callable[[], Watcher] = _Nobody


def install(make: Callable[[], Watcher]) -> None:
    """Make every `with profile()` from now on ask for a view."""
    _Watch.make = staticmethod(make)


def watcher(live: str) -> Watcher:
    """Return a view, or one that shows nothing."""
    return _Nobody() if live == "off" else _Watch.make()
