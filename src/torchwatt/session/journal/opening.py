"""Opens the journal of a session, if one is requested."""

from __future__ import annotations

import time
from collections.abc import Mapping

from torchwatt.attribution.kernel import SensorModel
from torchwatt.audit.store import default_store
from torchwatt.core.errors import ConfigError
from torchwatt.core.meter import Event
from torchwatt.disk.descriptors import are_scarce
from torchwatt.sensors import Feed
from torchwatt.session.journal.owner import this_process
from torchwatt.session.journal.place import Place, in_store
from torchwatt.session.journal.stored import prune
from torchwatt.session.journal.told import Head
from torchwatt.session.journal.writer import Journal
from torchwatt.session.options import Options
from torchwatt.session.software import software

LOST_S = 1.0  # guaranteed bound on the readings that a kill or a loss of power can lose; see docs/journal.md


def open_journal(
    options: Options, run_id: str, feed: Feed, sensors: Mapping[str, SensorModel], events: list[Event]
) -> Journal | None:
    """Create the journal's files and write their heads before the first reading.

    Raises:
        ConfigError: The folder that the user named cannot be used. In the store that is only an event.
    """
    if options.journal is False:
        return None
    user_named = options.journal is not True
    if not user_named and are_scarce():
        events.append(_none("the process may open few more files"))
        return None
    path = (
        options.journal if not isinstance(options.journal, bool) else in_store(options.keep or default_store(), run_id)
    )
    if not user_named:
        prune(path.parent.parent)
    try:
        place = Place(path)
    except ConfigError as error:
        if user_named:
            raise
        events.append(_none(str(error)))
        return None
    return Journal(place, _head(options, run_id, feed, sensors), user_named=user_named)


def _none(why: str) -> Event:
    return Event(
        time.monotonic_ns(),
        "warning",
        "NO_JOURNAL",
        "run",
        f"there is no journal, so a killed run would be lost: {why}",
    )


def _head(options: Options, run_id: str, feed: Feed, sensors: Mapping[str, SensorModel]) -> Head:
    return Head(
        run_id=run_id,
        name=options.name,
        owner=this_process(),
        mono_ns=time.monotonic_ns(),
        unix_ns=time.time_ns(),
        meters=feed.meters,
        lost_s=LOST_S,
        unavailable=feed.unavailable,
        software=software(),
        carbon=options.carbon,
        layers=options.layers,
        project=options.project,
        sensors=sensors,
        replays=options.replays,
        work=tuple(options.work.items()),
    )
