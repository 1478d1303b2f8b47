"""A cheap look at the meters of a running session."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torchwatt.core.meter import Recording
from torchwatt.core.units import NS_PER_S
from torchwatt.sensors import Feed

LOOK_BACK_NS = 3 * NS_PER_S  # what is read again each time: slow meters answer once a second


@runtime_checkable
class Live(Protocol):
    """A feed that can be looked at while it runs."""

    def peek(self, since_ns: int) -> Recording:
        """Return counters and powers from an instant on."""


def peek(feed: Feed, since_ns: int) -> Recording:
    """Return what a feed says now; a recording that is played back is no power that is drawn now, and says nothing."""
    return feed.peek(since_ns) if isinstance(feed, Live) else Recording(feed.meters, ())


def is_live(feed: Feed) -> bool:
    """Return whether a feed tells of now."""
    return isinstance(feed, Live)
