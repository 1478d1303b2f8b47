"""One sentence per domain: how its joules are known."""

from __future__ import annotations

from torchwatt.attribution.curves import Metered
from torchwatt.attribution.fit import Fit
from torchwatt.core.ledger import Ledger

_METER = {
    "counter": "measured by the meter's own energy counter",
    "power_integral": "measured power readings, integrated",
    "load_model": "modelled, not measured",
}


def how_known(found: Metered, ledger: Ledger, fit: Fit | None) -> str:
    """Say how a domain's total and its layers are known, and what the meter's band is."""
    parts = [_METER.get(ledger.method, ledger.method)]
    if found.meter.scope == "device":
        parts.append("the whole device, everyone's work on it included")
    else:
        parts.append("this process's share")
    band = found.meter.accuracy_rel
    if band is not None:
        parts.append(f"meter good to {band[0]:+.0%}..{band[1]:+.0%}")
    if ledger.coverage < 0.995:
        parts.append(f"known for {ledger.coverage:.1%} of the run")
    parts.append(_layers(fit))
    return f"{ledger.domain}: " + "; ".join(parts) + "."


def _layers(fit: Fit | None) -> str:
    if fit is None:
        return "not split into layers"
    if fit.method == "fit":
        return "layers by power fitted to the readings"
    return f"layers by their share of time ({fit.reason})"
