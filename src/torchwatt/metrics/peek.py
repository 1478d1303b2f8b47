"""Reads the current counters and powers of a running session's feed."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torchwatt.core.meter import Recording
from torchwatt.core.units import NS_PER_S
from torchwatt.sensors import Feed

LOOK_BACK_NS = 3 * NS_PER_S  # readings this recent are read again: slow meters publish once a second


@runtime_checkable
class Live(Protocol):
    """A feed that can be read while it runs."""

    def peek(self, since_ns: int) -> Recording:
        """Return counters and powers from `since_ns` on."""


def peek(feed: Feed, since_ns: int) -> Recording:
    """Return a feed's readings from `since_ns` on; none from the replay of a recording, which is not current power."""
    return feed.peek(since_ns) if isinstance(feed, Live) else Recording(feed.meters, ())


def is_live(feed: Feed) -> bool:
    """Return whether a feed reads real meters now."""
    return isinstance(feed, Live)
