"""Converts a bundle to the input of `count_once`, and that to text for an index or a lake and back."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any

from torchwatt.audit.counted_run import CountedDevice, CountedRun, Counter
from torchwatt.audit.exports.cells import counted, number, text, when
from torchwatt.audit.reader import Bundle
from torchwatt.audit.schema import Row
from torchwatt.core.errors import BundleError
from torchwatt.core.units import ns_from_s

# Events of sessions that shared devices with another session of the same process.
OVERLAPPING = frozenset({"CONCURRENT_SESSION", "NESTED_SESSION"})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def run_of_bundle(bundle: Bundle, name: str = "") -> CountedRun:
    """Return the input of `count_once` for a bundle; the default name is the run id."""
    run = bundle.run
    start_ns = (when(run, "started_at") - _EPOCH) // timedelta(microseconds=1) * 1000
    duration_s = number(run, "duration_s") or 0.0
    keys = {text(row, "device_id"): text(row, "device_key") for row in bundle["device"]}
    pairs = ((text(row, "device_key"), keys.get(text(row, "parent_device_id"), "")) for row in bundle["device"])
    return CountedRun(
        name=name or text(run, "run_id"),
        run_id=text(run, "run_id"),
        start_ns=start_ns,
        end_ns=start_ns + ns_from_s(duration_s),
        duration_s=duration_s,
        devices=tuple(_device(row) for row in counted(bundle) if number(row, "energy_j") is not None),
        contained=tuple(sorted({(inner, outer) for inner, outer in pairs if inner and outer})),
        sources=tuple(text(row, "source_run_id") for row in bundle["rank"] if row["status"] != "missing"),
        overlaps=any(row["code"] in OVERLAPPING for row in bundle["event"]),
    )


def _device(row: Row) -> CountedDevice:
    return CountedDevice(
        device_id=text(row, "device_id"),
        kind=text(row, "kind"),
        energy_j=number(row, "energy_j") or 0.0,
        key=text(row, "device_key"),
        machine=text(row, "machine_key"),
        scope=text(row, "scope") or "device",
        counter=_counter(row),
    )


def _counter(row: Row) -> Counter | None:
    cells = [row.get(name) for name in ("counter_start_raw", "counter_end_raw", "counter_wraps", "counter_modulus_raw")]
    start, end, wraps, modulus = (value if isinstance(value, int) else None for value in cells)
    unit_j = number(row, "counter_unit_j")
    if start is None or end is None or unit_j is None or (wraps and not modulus):
        return None
    return Counter(start, end + (wraps or 0) * (modulus or 0), unit_j, modulus or 0)


def text_of(run: CountedRun) -> str:
    """Return a run as one line of JSON, without its name."""
    devices = [
        [d.device_id, d.kind, d.energy_j, d.key, d.machine, d.scope, _raw(d.counter)] for d in run.devices
    ]  # fmt: skip
    return json.dumps(
        [run.run_id, run.start_ns, run.end_ns, run.duration_s, devices, run.contained, run.sources, run.overlaps],
        separators=(",", ":"),
    )


def _raw(counter: Counter | None) -> list[float] | None:
    if counter is None:
        return None
    return [counter.start_raw, counter.end_raw, counter.unit_j, counter.modulus_raw]


def run_of_text(content: str, name: str = "") -> CountedRun:
    """Parse the result of `text_of`.

    Raises:
        BundleError: The text has another form.
    """
    try:
        run_id, start_ns, end_ns, duration_s, devices, contained, sources, overlaps = json.loads(content)
        return CountedRun(
            name or _text(run_id),
            _text(run_id),
            _whole(start_ns),
            _whole(end_ns),
            _number(duration_s),
            tuple(_device_of(*device) for device in devices),
            tuple((_text(inner), _text(outer)) for inner, outer in contained),
            tuple(map(_text, sources)),
            bool(overlaps),
        )
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise BundleError(f"{content[:80]!r} is not the metered devices of a run: {error}") from error


def _device_of(*cells: Any) -> CountedDevice:
    device_id, kind, energy_j, key, machine, scope, raw = cells
    counter = None if raw is None else Counter(_whole(raw[0]), _whole(raw[1]), _number(raw[2]), _whole(raw[3]))
    names = (_text(device_id), _text(kind))
    return CountedDevice(*names, _number(energy_j), _text(key), _text(machine), _text(scope), counter)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not an integer")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise TypeError(f"{value!r} is not a number")
    return float(value)
