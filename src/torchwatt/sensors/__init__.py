"""Meters: discovery, sampling, and saved recordings.

Names are imported at first use, because the sampler process imports parts of this package and must start quickly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchwatt.sensors.discovery import discover
    from torchwatt.sensors.protocol import Discovery, Feed, MeteredSource, Source
    from torchwatt.sensors.readers import open_reader
    from torchwatt.sensors.recordings import Replay, load_recording, save_recording
    from torchwatt.sensors.sampler import Sampler

__all__ = [
    "Discovery",
    "Feed",
    "MeteredSource",
    "Replay",
    "Sampler",
    "Source",
    "discover",
    "load_recording",
    "open_reader",
    "save_recording",
]
_HOMES = {
    "Discovery": "torchwatt.sensors.protocol",
    "Feed": "torchwatt.sensors.protocol",
    "MeteredSource": "torchwatt.sensors.protocol",
    "Replay": "torchwatt.sensors.recordings",
    "Sampler": "torchwatt.sensors.sampler",
    "Source": "torchwatt.sensors.protocol",
    "discover": "torchwatt.sensors.discovery",
    "load_recording": "torchwatt.sensors.recordings",
    "open_reader": "torchwatt.sensors.readers",
    "save_recording": "torchwatt.sensors.recordings",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'torchwatt.sensors' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
