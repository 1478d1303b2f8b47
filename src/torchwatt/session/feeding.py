"""Opens and starts the meters of a session and samples the baseline; meters that fail cost only their joules."""

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

THRIFTY_BUDGET = 0.002  # of a core: about what reading the process's clocks ten times a second costs


def found_feed(options: Options, member: Member | None) -> Feed:
    """Return the feed given by the user, else a sampler of the meters found here; in a job, of this rank's meters."""
    if options.feed is not None:
        return options.feed
    try:
        # In a job, all processes of the launcher count as ours.
        discovery = discover(powercap_root=options.powercap_root, family=None if member is None else os.getppid())
        thrifty = options.overhead_budget <= THRIFTY_BUDGET
        return Sampler(discovery if member is None else member.discovered(discovery), thrifty=thrifty)
    except ConfigError:
        raise
    except Exception as error:  # out of descriptors, memory or threads, or a broken binding: the program must still run
        return _silent(error)


def started(feed: Feed, *, is_user_feed: bool) -> Feed:
    """Start the meters; if that fails, return a feed without meters, or raise the error if the user gave the feed."""
    try:
        feed.start()
    except Exception as error:
        if is_user_feed:
            raise
        with contextlib.suppress(Exception):
            feed.stop()
        return _silent(error)
    return feed


def rest(feed: Feed, seconds: float) -> None:
    """Sample an idle baseline, which gives the static power; slow meters publish at least once in it."""
    if any(channel.quantity != "gauge" for meter in feed.meters for channel in meter.channels):
        time.sleep(seconds)


def _silent(error: BaseException) -> Silent:
    silent = Silent(error)
    warn(f"torchwatt: {silent.reason}")
    return silent
