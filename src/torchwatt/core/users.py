"""The users of a device, by its driver's list of processes."""

from __future__ import annotations

from enum import IntEnum


class DeviceUsers(IntEnum):
    """Users of a device at one instant; the values of the gauge `gpu:<n>/users`.

    `EMPTY`: the list is empty but may hide processes, as in a container. `HIDDEN`: the list has pids that do not exist
    in this PID namespace.
    """

    NOBODY = 0
    OTHERS = 1
    OURS = 2
    HIDDEN = 3
    EMPTY = 4
