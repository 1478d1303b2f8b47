"""`torchwatt doctor`: what can be metered here, what cannot, and how to fix it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from collections.abc import Iterator, Sequence
from typing import Any

from torchwatt.attribution.modules import homes
from torchwatt.attribution.scopes import by_scope
from torchwatt.attribution.sentence import COUNTER_COVERS
from torchwatt.core.meter import Channel, Meter, Unavailable
from torchwatt.core.plain_text import printable_lines
from torchwatt.core.terms import MODULE_POWER
from torchwatt.core.version import __version__
from torchwatt.sensors import Sampler, discover
from torchwatt.sensors.protocol import Discovery

COMPARE_S = 4.0  # forty publications of a counter that is published ten times a second


PACKAGES = {"torch": "torch", "IPython (for %%energy)": "ipython", "codecarbon": "codecarbon"}
# Of which a bug report states the version.
REPORTED = (
    "torch",
    "nvidia-ml-py",
    "numpy",
    "ipython",
    "ipywidgets",
    "anywidget",
    "jupyterlab",
    "codecarbon",
    "psutil",
)


def doctor(*, as_json: bool = False) -> int:
    """Print one line per meter and per missing meter, or all of it as JSON, for a bug report.

    Returns:
        The exit status: 0 if anything is measured, 1 if all is modelled.
    """
    found = discover()
    meters = [m for m in found.meters if any(c.quantity != "gauge" for c in m.channels)]
    if as_json:
        print(json.dumps(_facts(found, meters), indent=2))
    else:
        _print(found, meters)
    return 0 if any(m.provenance == "measured" for m in meters) else 1


def _facts(found: Discovery, meters: Sequence[Meter]) -> dict[str, Any]:
    """Return what was found as JSON values: no serial numbers, host or user names."""
    return {
        "torchwatt": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: _version(name) for name in REPORTED},
        "meters": [
            {
                "domain": str(meter.domain),
                "model": meter.model,
                "provenance": meter.provenance,
                "scope": meter.scope,
                "accuracy_rel": meter.accuracy_rel,
                "channels": [
                    {"name": c.name, "sensor": c.sensor, "period_ms": c.period_ns / 1e6}
                    for c in meter.channels
                    if c.quantity != "gauge"
                ],
                "notes": list(meter.notes),
            }
            for meter in meters
        ],
        "unavailable": [{"domain": u.domain, "reason": u.reason, "fix": u.fix} for u in found.unavailable],
        "events": [
            {"severity": e.severity, "code": e.code, "subject": e.subject, "message": e.message} for e in found.events
        ],
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _print(found: Discovery, meters: Sequence[Meter]) -> None:
    covers = _covers(found)
    print("Metered here:")
    for meter in meters or ():
        print(printable_lines("\n".join((*_meter(meter), *covers.get(str(meter.domain), ())))))
    if not meters:
        print("  nothing")
    print("\nNot metered:")
    for missing in found.unavailable:
        print(printable_lines("\n".join(_missing(missing))))
    if not found.unavailable:
        print("  nothing is missing")
    for event in found.events:
        print(printable_lines(f"\n{event.severity}: {event.code} {event.subject}: {event.message}"))
    print("\nPackages:")
    for label, name in PACKAGES.items():
        print(f"  {label}: {_version(name) or 'missing'}")


def _covers(found: Discovery) -> dict[str, tuple[str, ...]]:
    """Say of each GPU on a superchip what its energy counter covers: it is compared with power for a few seconds."""
    if not any(channel.name == MODULE_POWER for meter in found.meters for channel in meter.channels):
        return {}
    feed = Sampler(found)
    feed.start()
    time.sleep(COMPARE_S)
    scoped = by_scope(feed.stop())
    notes = {
        str(meter.domain): tuple(f"      {note}" for note in meter.notes if note.startswith(COUNTER_COVERS))
        for meter in scoped.recording.meters
    }
    for gpu, module in homes(scoped.recording.meters).items():
        inside = f"      in a run it is a part of {module}, which counts once and holds CPU and memory, too"
        notes[gpu] = (*notes.get(gpu, ()), inside)
    return notes


def _meter(meter: Meter) -> Iterator[str]:
    whose = "the whole device" if meter.scope == "device" else "this process's share"
    band = f", {meter.accuracy_rel[0]:+.0%}..{meter.accuracy_rel[1]:+.0%}" if meter.accuracy_rel else ""
    yield f"  {meter.domain}  {meter.model}: {meter.provenance}, {whose}{band}"
    for channel in meter.channels:
        if channel.quantity != "gauge":
            yield f"      {_channel(channel)}"
    for note in meter.notes:
        yield f"      {note}"


def _channel(channel: Channel) -> str:
    return f"{channel.name} by {channel.sensor}, every {channel.period_ns / 1e6:g} ms"


def _missing(missing: Unavailable) -> Iterator[str]:
    yield f"  {missing.domain}: {missing.reason}"
    if missing.fix:
        yield f"      fix: {missing.fix}"
