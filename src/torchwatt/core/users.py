"""Who uses a device, as its driver's list of processes tells it."""

from __future__ import annotations

from enum import IntEnum


class DeviceUsers(IntEnum):
    """One look at a device's list of processes; the values are those of the gauge `gpu:<n>/users`.

    `EMPTY` is an empty list that may hide processes: a container shows its own pids at best. `HIDDEN` is a list with
    processes that do not exist under these numbers here.
    """

    NOBODY = 0
    OTHERS = 1
    OURS = 2
    HIDDEN = 3
    EMPTY = 4
