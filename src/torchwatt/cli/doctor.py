"""`torchwatt doctor`: lists the meters of this machine, and missing ones with their reason and fix."""

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

COMPARE_S = 4.0  # 40 updates of a counter that updates ten times a second


PACKAGES = {"torch": "torch", "IPython (for %%energy)": "ipython", "codecarbon": "codecarbon"}
# Packages whose versions a bug report contains.
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
        The exit status: 0 if any domain is measured, else 1.
    """
    discovery = discover()
    meters = [m for m in discovery.meters if any(c.quantity != "gauge" for c in m.channels)]
    if as_json:
        print(json.dumps(_facts(discovery, meters), indent=2))
    else:
        _print(discovery, meters)
    return 0 if any(m.provenance == "measured" for m in meters) else 1


def _facts(discovery: Discovery, meters: Sequence[Meter]) -> dict[str, Any]:
    """Return the discovery as JSON values, without serial numbers, host names or user names."""
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
        "unavailable": [{"domain": u.domain, "reason": u.reason, "fix": u.fix} for u in discovery.unavailable],
        "events": [
            {"severity": e.severity, "code": e.code, "subject": e.subject, "message": e.message}
            for e in discovery.events
        ],
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _print(discovery: Discovery, meters: Sequence[Meter]) -> None:
    covers = _covers(discovery)
    print("Metered here:")
    for meter in meters or ():
        print(printable_lines("\n".join((*_meter(meter), *covers.get(str(meter.domain), ())))))
    if not meters:
        print("  nothing")
    print("\nNot metered:")
    for missing in discovery.unavailable:
        print(printable_lines("\n".join(_missing(missing))))
    if not discovery.unavailable:
        print("  nothing is missing")
    for event in discovery.events:
        print(printable_lines(f"\n{event.severity}: {event.code} {event.subject}: {event.message}"))
    print("\nPackages:")
    for label, name in PACKAGES.items():
        print(f"  {label}: {_version(name) or 'missing'}")


def _covers(discovery: Discovery) -> dict[str, tuple[str, ...]]:
    """Return notes on what the energy counter of each GPU of a superchip covers.

    The counter is compared with the power readings of `COMPARE_S` seconds; without a superchip, nothing is read.
    """
    if not any(channel.name == MODULE_POWER for meter in discovery.meters for channel in meter.channels):
        return {}
    feed = Sampler(discovery)
    feed.start()
    time.sleep(COMPARE_S)
    scoped = by_scope(feed.stop())
    notes = {
        str(meter.domain): tuple(f"      {note}" for note in meter.notes if note.startswith(COUNTER_COVERS))
        for meter in scoped.recording.meters
    }
    for gpu, module in homes(scoped.recording.meters).items():
        module_note = f"      in a run it is a part of {module}, which includes CPU and memory and is counted once"
        notes[gpu] = (*notes.get(gpu, ()), module_note)
    return notes


def _meter(meter: Meter) -> Iterator[str]:
    scope = "the whole device" if meter.scope == "device" else "this process's share"
    band = f", {meter.accuracy_rel[0]:+.0%}..{meter.accuracy_rel[1]:+.0%}" if meter.accuracy_rel else ""
    yield f"  {meter.domain}  {meter.model}: {meter.provenance}, {scope}{band}"
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
