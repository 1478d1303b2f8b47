"""Ledgers of a superchip: GPUs are parts of it, CPU and memory are the remainder, and it is counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import fsum, sqrt

import numpy as np

from torchwatt.attribution.scopes import CONTAINS
from torchwatt.attribution.split import split
from torchwatt.core.curve import EnergyCurve
from torchwatt.core.ledger import Entry, Ledger, same_calls, total_self_j
from torchwatt.core.meter import Meter, Series
from torchwatt.core.terms import Domain, weakest
from torchwatt.core.trace import Trace

INSIDE = frozenset({"cpu", "dram", "ram"})  # kinds that every module has inside


def homes(meters: Sequence[Meter]) -> dict[str, str]:
    """Return the module of each GPU that is a part of one, by domain name."""
    modules = [meter for meter in meters if meter.domain.kind == "module"]
    return {gpu: str(module.domain) for module in modules for gpu in (module.fact(CONTAINS) or "").split(";")}


def contained(
    ledgers: Sequence[Ledger],
    curves: Sequence[EnergyCurve],
    meters: Sequence[Meter],
    trace: Trace,
    process_cpu: Series | None,
) -> tuple[Ledger, ...]:
    """Count each module once: ledgers of its GPUs, and of the host's CPU and memory, are taken out of the total.

    A module's rows are those of its GPUs and, of the remainder (CPU and memory), the host's by their share of time.
    """
    modules = [str(ledger.domain) for ledger in ledgers if ledger.domain.kind == "module"]
    if not modules:
        return tuple(ledgers)
    home = {gpu: module for gpu, module in homes(meters).items() if module in modules}
    lines = {str(curve.domain): curve for curve in curves}
    by_name = {str(ledger.domain): ledger for ledger in ledgers}
    nested = []
    for ledger in ledgers:
        name = str(ledger.domain)
        if name in modules:
            gpu_ledgers = [by_name[gpu] for gpu, module in home.items() if module == name and gpu in by_name]
            nested.append(_filled(ledger, gpu_ledgers, _host_rows(lines[name], trace, process_cpu)))
        elif name in home:
            nested.append(_part(ledger, home[name]))
        elif ledger.domain.kind in INSIDE:
            nested.append(_part(ledger, ", ".join(modules)))
        else:
            nested.append(ledger)
    return tuple(nested)


def _part(ledger: Ledger, module: str) -> Ledger:
    """Take a ledger out of the total, since its joules are inside a module's."""
    sentence = ledger.sentence.removesuffix(".") + f"; a part of {module}, not added to the total."
    return replace(ledger, counted=False, part_of=module, sentence=sentence)


def _filled(module: Ledger, gpus: Sequence[Ledger], host_rows: Callable[[float], tuple[Entry, ...]]) -> Ledger:
    """Return the module's ledger with the rows of its parts; unsplit where the parts exceed the module."""
    host_j = module.energy_j - fsum(gpu.energy_j for gpu in gpus)
    names = ", ".join(str(gpu.domain) for gpu in gpus) or "no GPU"
    if host_j <= 0:
        message = f"; the parts ({names}) exceed the module: not split."
        return replace(module, sentence=module.sentence.removesuffix(".") + message)
    rows = _added(module.domain, [*(entry for gpu in gpus for entry in gpu.entries), *host_rows(host_j)])
    rows[0] = replace(rows[0], energy_self_j=module.energy_j - total_self_j(rows[1:]))
    addition = f"rows of {names}, and of CPU and memory ({host_j:.4g} J, module less GPU) by the host's time."
    sentence = module.sentence.removesuffix(".").replace("not split into layers", "") + addition
    return replace(module, entries=tuple(rows), sentence=sentence)


def _host_rows(module: EnergyCurve, trace: Trace, process_cpu: Series | None) -> Callable[[float], tuple[Entry, ...]]:
    """Return a function that books the module's remaining joules to the host's rows, at their mean power."""
    ends_ns = np.array([module.start_ns, module.end_ns], dtype=np.int64)

    def rows(host_j: float) -> tuple[Entry, ...]:
        flat = EnergyCurve(module.domain, ends_ns, np.array([0.0, host_j]), module.method, module.provenance)
        return split(flat, trace, process_cpu).entries(None, None)

    return rows


def _added(domain: Domain, entries: Iterable[Entry]) -> list[Entry]:
    """Add the parts' rows of equal name, phase and stage; the largest row comes first."""
    by_row: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        by_row.setdefault((entry.fqn, entry.phase, entry.stage), []).append(entry)
    rows = [_sum(domain, same) for same in by_row.values()]
    return sorted(rows, key=lambda row: (-row.energy_self_j, row.fqn, row.phase, row.stage))


def _sum(domain: Domain, same: Sequence[Entry]) -> Entry:
    """Add rows of different meters: joules, and the half-widths of their intervals in quadrature."""
    largest = max(same, key=lambda entry: entry.energy_self_j)
    if len(same) == 1:
        return replace(largest, domain=domain)
    energy_j = total_self_j(same)
    lower_widths = [None if e.energy_self_lo_j is None else e.energy_self_j - e.energy_self_lo_j for e in same]
    upper_widths = [None if e.energy_self_hi_j is None else e.energy_self_hi_j - e.energy_self_j for e in same]
    low_j, high_j = _root(lower_widths), _root(upper_widths)
    static_j = _all_of([e.energy_static_j for e in same])
    return replace(
        largest,
        domain=domain,
        energy_self_j=energy_j,
        energy_self_lo_j=None if low_j is None else max(energy_j - low_j, 0.0),
        energy_self_hi_j=None if high_j is None else energy_j + high_j,
        energy_static_j=static_j,
        energy_dynamic_j=None if static_j is None else energy_j - static_j,
        time_self_s=max(e.time_self_s for e in same),
        calls=same_calls([e.calls for e in same]),
        provenance=weakest(*(e.provenance for e in same)),
        carried_share=max(e.carried_share for e in same),
        measured_share=None,
        measured_in="",
        time_share_j=_all_of([e.time_share_j for e in same]),
        energy_systematic_lo_j=None,
        energy_systematic_hi_j=None,
    )


def _root(widths_j: Sequence[float | None]) -> float | None:
    return None if None in widths_j else sqrt(fsum(w * w for w in widths_j if w is not None))


def _all_of(values: Sequence[float | None]) -> float | None:
    return None if None in values else fsum(v for v in values if v is not None)
