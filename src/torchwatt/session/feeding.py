"""The meters of a session: found, started, given a quiet moment. A machine that has nothing left costs only joules."""

from __future__ import annotations

import contextlib
import os
import time

from torchwatt.core.errors import ConfigError
from torchwatt.core.warn import warn
from torchwatt.sensors import Feed, Sampler, discover
from torchwatt.sensors.silent import Silent
from torchwatt.session.jobs.member import Member
from torchwatt.session.options import Options

THRIFTY_BUDGET = 0.002  # of overhead: reading the process's clocks ten times a second costs about that part of a core


def found_feed(asked: Options, member: Member | None) -> Feed:
    """Return the meters that were given, else those that are found here; in a job, those of this rank."""
    if asked.feed is not None:
        return asked.feed
    try:
        # In a job a card may be another rank's: what the launcher has started is all ours.
        found = discover(powercap_root=asked.powercap_root, family=None if member is None else os.getppid())
        thrifty = asked.overhead_budget <= THRIFTY_BUDGET
        return Sampler(found if member is None else member.discovered(found), thrifty=thrifty)
    except ConfigError:
        raise
    except Exception as error:  # descriptors, memory, threads, a binding of another make: the program runs all the same
        return _silent(error)


def started(feed: Feed, *, given: bool) -> Feed:
    """Start the meters; those that cannot be started are silent, unless the user gave them."""
    try:
        feed.start()
    except Exception as error:
        if given:
            raise
        with contextlib.suppress(Exception):
            feed.stop()
        return _silent(error)
    return feed


def rest(feed: Feed, seconds: float) -> None:
    """Sample a quiet moment: static power is known then, and slow meters have answered once before the run."""
    if any(channel.quantity != "gauge" for meter in feed.meters for channel in meter.channels):
        time.sleep(seconds)


def _silent(error: BaseException) -> Silent:
    silent = Silent(error)
    warn(f"torchwatt: {silent.reason}")
    return silent
