"""`torchwatt doctor`: what can be metered here, what cannot, and how to fix it."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator

from torchwatt.attribution.modules import homes
from torchwatt.attribution.scopes import by_scope
from torchwatt.attribution.sentence import COUNTER_COVERS
from torchwatt.core.meter import Channel, Meter, Unavailable
from torchwatt.core.plain_text import printable_lines
from torchwatt.core.terms import MODULE_POWER
from torchwatt.sensors import Sampler, discover
from torchwatt.sensors.protocol import Discovery

COMPARE_S = 4.0  # forty publications of a counter that is published ten times a second


def doctor() -> int:
    """Print one line per meter and per missing meter; exit code 0 if anything is measured, 1 if all is modelled."""
    found = discover()
    meters = [m for m in found.meters if any(c.quantity != "gauge" for c in m.channels)]
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
    for name, module in (("torch", "torch"), ("IPython (for %%energy)", "IPython"), ("codecarbon", "codecarbon")):
        print(f"  {name}: {'found' if importlib.util.find_spec(module) else 'missing'}")
    return 0 if any(m.provenance == "measured" for m in meters) else 1


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
