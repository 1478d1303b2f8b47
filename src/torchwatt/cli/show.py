"""`torchwatt show DIR`: prints the values in a bundle's files."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from math import fsum
from typing import IO, Any

from torchwatt.audit import Bundle, read_bundle
from torchwatt.audit.schema import Row
from torchwatt.core.plain_text import printable
from torchwatt.views import DASH, format_energy, format_mass, format_time

TOP = 25


def show(directory: str, *, everything: bool = False, out: IO[str] | None = None) -> int:
    """Print run, devices and layers of a bundle.

    Raises:
        BundleError: The folder is not a bundle, or a file in it is malformed.
    """
    bundle = read_bundle(directory)
    for line in _lines(bundle, everything=everything):
        print(printable(line), file=out or sys.stdout)  # text in a bundle is untrusted
    return 0


def _lines(bundle: Bundle, *, everything: bool) -> Iterator[str]:
    run = bundle.run
    yield f"{run['name']}  {run['run_id']}  {run['status']}  {format_time(_number(run['duration_s']))}"
    yield f"energy {format_energy(_number(run['energy_it_j']))} ({run['energy_it_provenance'] or 'unknown'})"
    for impact in bundle["impact"]:
        if impact["subject"] == "run":
            yield _impact(impact)
    yield ""
    for device in bundle["device"]:
        energy = format_energy(_number(device["energy_j"]))
        meter = f"{device['provenance'] or DASH}  {device['model'] or ''}{_beside(device)}"
        yield f"{device['device_id']!s:10} {energy:>10}  {meter}"
    yield ""
    counted = {device["device_id"] for device in bundle["device"] if device["counted"]}
    rows = [row for row in bundle["layer"] if row["device_id"] in counted]
    yield from _layers(rows, everything=everything)


def _beside(device: Row) -> str:
    """Return why the joules of a metered device are not in the total; "" for a counted or unmetered device."""
    if device["counted"] or device["energy_j"] is None:
        return ""
    return f"  (inside {device['parent_device_id']})" if device["parent_device_id"] else "  (not in the total)"


def _impact(row: Row) -> str:
    """Return an impact's amount, criterion, phase, method, scenario and formula."""
    value = _number(row["value"])
    amount = f"{format_mass(value)} CO2e" if row["criterion"] == "gwp" else f"{value:.3g} {row['unit']}"
    kind = f"{row['criterion']} {row['phase']}, {row['accounting_method']}, {row['scenario']}"
    return f"{amount} ({kind}) = {row['formula']}"


def _layers(rows: Iterable[Row], *, everything: bool) -> Iterator[str]:
    by_layer: dict[tuple[Any, Any], list[Row]] = defaultdict(list)
    for row in rows:
        by_layer[row["fqn"], row["phase"]].append(row)
    sums = sorted(
        ((fsum(_number(r["energy_self_j"]) or 0.0 for r in group), key, group) for key, group in by_layer.items()),
        key=lambda item: (-item[0], str(item[1])),
    )
    shown = sums if everything else sums[:TOP]
    yield f"{'layer':40} {'phase':13} {'energy':>10} {'time':>10} {'calls':>8}  provenance"
    for energy_j, (fqn, phase), group in shown:
        time_s = max(_number(r["time_self_s"]) or 0.0 for r in group)
        calls = max(int(_number(r["calls"]) or 0) for r in group)
        provenance = ", ".join(sorted({str(r["provenance"]) for r in group}))
        amounts = f"{format_energy(energy_j):>10} {format_time(time_s):>10} {calls:>8}"
        yield f"{fqn!s:40.40} {phase!s:13} {amounts}  {provenance}"
    if len(sums) > len(shown):
        rest_j = fsum(item[0] for item in sums[len(shown) :])
        yield f"and {len(sums) - len(shown)} more rows with {format_energy(rest_j)}; --all shows them"


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
