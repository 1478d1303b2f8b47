"""`torchwatt doctor`: lists the meters of this machine, and missing ones with their reason and fix."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from torchwatt.attribution.counted_domains import map_gpus_to_modules
from torchwatt.attribution.counter_scope import assign_counter_scopes
from torchwatt.attribution.method_note import COUNTER_SCOPE_PREFIX
from torchwatt.core import __version__
from torchwatt.core.meter import Channel, Meter, Unavailable
from torchwatt.core.plain_text import escape_unprintable
from torchwatt.core.terms import MODULE_POWER
from torchwatt.reports.report_result import terminal_width
from torchwatt.sensors import Sampler, discover
from torchwatt.sensors.calibrations import calibrations_file
from torchwatt.sensors.protocol import Discovery
from torchwatt.views.report_summary import join_words

if TYPE_CHECKING:
    from torchwatt.offline.sensor_calibration import SensorCalibration


COMPARISON_S = 4.0  # 40 updates of a counter that updates ten times a second


PACKAGES = {"torch": "torch", "IPython (for %%energy)": "ipython", "codecarbon": "codecarbon"}
# Packages whose versions a bug report contains.
REPORTED_PACKAGES = (
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


def print_discovery(*, as_json: bool = False) -> int:
    """Print one line per meter and per missing meter and a verdict, or all of it as JSON, for a bug report.

    Returns:
        The exit status: 0 if a run would report joules, measured or estimated, else 1.
    """
    discovery = discover()
    meters = [m for m in discovery.meters if any(c.quantity != "gauge" for c in m.channels)]
    verdict = describe_verdict(meters, discovery.unavailable)
    if as_json:
        facts = _discovery_facts(discovery, meters)
        print(json.dumps({**facts, "works": bool(meters), "verdict": verdict}, indent=2))
    else:
        _print_meters(discovery, meters)
        print()
        _print_lines([verdict])
    return 0 if meters else 1


def describe_verdict(meters: Sequence[Meter], unavailable: Sequence[Unavailable]) -> str:
    """Return one sentence: whether a run works here, what it measures, what it estimates, and what is unknown."""
    measured = [str(meter.domain) for meter in meters if meter.provenance == "measured"]
    estimated = [str(meter.domain) for meter in meters if meter.provenance != "measured"]
    if not meters:
        return "A run works here but reports no joules: there is no meter and nothing to estimate from."
    parts = [f"measured: {join_words(measured)}"] if measured else ["no power meter was found"]
    if estimated:
        parts.append(f"estimated: {join_words(estimated)}")
    fixable = list(dict.fromkeys(gone.domain for gone in unavailable if gone.fix))
    if fixable:
        parts.append(f"the fixes above would add: {join_words(fixable)}")
    return f"A run works here; {'; '.join(parts)}."


def _discovery_facts(discovery: Discovery, meters: Sequence[Meter]) -> dict[str, Any]:
    """Return the discovery as JSON values, without serial numbers, host names or user names."""
    return {
        "torchwatt": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: _package_version(name) for name in REPORTED_PACKAGES},
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


def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _print_meters(discovery: Discovery, meters: Sequence[Meter]) -> None:
    covers = _counter_scopes(discovery)
    print("Metered here:")
    for meter in meters:
        _print_lines((*_meter_lines(meter), *covers.get(str(meter.domain), ())))
    if not meters:
        print("  nothing")
    print("\nNot metered:")
    for missing in discovery.unavailable:
        _print_lines(_missing_lines(missing))
    if not discovery.unavailable:
        print("  nothing is missing")
    for event in discovery.events:
        print()
        _print_lines([f"{event.severity}: {event.code} {event.subject}: {event.message}"])
    print("\nPackages:")
    for label, name in PACKAGES.items():
        print(f"  {label}: {_package_version(name) or 'missing'}")


def _print_lines(lines: Iterable[str]) -> None:
    """Print lines, wrapped at the terminal's width; what continues a line is indented by two characters more."""
    width = terminal_width()
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip(" ")))
        text = escape_unprintable(line.strip())
        wrapped = wrap(text, width, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False)
        print("\n".join(wrapped))


def _counter_scopes(discovery: Discovery) -> dict[str, tuple[str, ...]]:
    """Return notes on what the energy counter of each GPU of a superchip covers.

    The counter is compared with the power readings of `COMPARISON_S` seconds; without a superchip, nothing is read.
    """
    if not any(channel.name == MODULE_POWER for meter in discovery.meters for channel in meter.channels):
        return {}
    feed = Sampler(discovery)
    feed.start()
    time.sleep(COMPARISON_S)
    scoped = assign_counter_scopes(feed.stop())
    notes = {
        str(meter.domain): tuple(f"      {note}" for note in meter.notes if note.startswith(COUNTER_SCOPE_PREFIX))
        for meter in scoped.recording.meters
    }
    for gpu, module in map_gpus_to_modules(scoped.recording.meters).items():
        module_note = f"      in a run it is a part of {module}, which includes CPU and memory and is counted once"
        notes[gpu] = (*notes.get(gpu, ()), module_note)
    return notes


def _meter_lines(meter: Meter) -> Iterator[str]:
    scope = "the whole device" if meter.scope == "device" else "this process's share"
    band = f", {meter.accuracy_rel[0]:+.0%}..{meter.accuracy_rel[1]:+.0%}" if meter.accuracy_rel else ""
    yield f"  {meter.domain}  {meter.model}: {meter.provenance}, {scope}{band}"
    for channel in meter.channels:
        if channel.quantity != "gauge":
            yield f"      {_channel_text(channel)}"
    for note in meter.notes:
        yield f"      {note}"


def _channel_text(channel: Channel) -> str:
    return f"{channel.name} by {channel.sensor}, every {channel.period_ns / 1e6:g} ms"


def _missing_lines(missing: Unavailable) -> Iterator[str]:
    yield f"  {missing.domain}: {missing.reason.removeprefix(f'{missing.domain}: ')}"
    if missing.fix:
        yield f"      fix: {missing.fix}"


def calibrate_device(device: str, seconds: float) -> int:
    """Load one GPU for some seconds, fit its sensor's response, save and print it; return the exit status."""
    from torchwatt.offline.sensor_calibration import calibrate

    path = calibrations_file()
    print(escape_unprintable(f"Driving {device} with an uneven square wave for {seconds:g} s; run nothing else on it."))
    result = calibrate(device, seconds=seconds, path=path)
    for calibration in (result, result.fine):
        if calibration is not None:
            _print_calibration(calibration)
    print(escape_unprintable(f"Saved in {path} for this card, driver and field."))
    return 0


def _print_calibration(calibration: SensorCalibration) -> None:
    model = calibration.model
    print(escape_unprintable(f"{calibration.meter.domain}  {calibration.meter.model}: {calibration.channel.sensor}"))
    print(f"  publishes every {model.period_s * 1e3:.3f} ms")
    print(f"  each reading: {model.kernel}, {model.kernel.lag_s * 1e3:+.2f} ms late")
    print(f"  residual of {calibration.readings} readings: {model.rms_w:.2f} W rms")
