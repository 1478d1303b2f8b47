"""`torchwatt doctor`: what can be metered here, what cannot, and how to fix it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from torchwatt.core.meter import Channel, Meter, Unavailable
from torchwatt.sensors import discover
from torchwatt.views.summary import printable_lines


def doctor() -> int:
    """Print one line per meter and per missing meter; exit code 0 if anything is measured, 1 if all is modelled."""
    found = discover()
    meters = [m for m in found.meters if any(c.quantity != "gauge" for c in m.channels)]
    print("Metered here:")
    for meter in meters or ():
        print(printable_lines("\n".join(_meter(meter))))
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
