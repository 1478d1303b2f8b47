"""Describe the method of each domain in one sentence."""

from __future__ import annotations

from torchwatt.attribution.cross_check import UNCHECKED_PREFIX
from torchwatt.attribution.device_attribution import DeviceAttribution
from torchwatt.attribution.estimator import MIN_SELF_SHARE
from torchwatt.attribution.host_fit import HostFit
from torchwatt.attribution.metered_curve import MeteredCurve
from torchwatt.core.ledger import FULL_COVERAGE, Ledger

SPARSE_READINGS_PREFIX = "power was read"  # prefix of the note on a low sampling rate
UNSAMPLED_PREFIX = "never sampled"  # prefix of the note on run phases without power readings
COUNTER_SCOPE_PREFIX = "the energy counter"  # prefix of notes on what a counter covers

_METHOD_TEXTS = {
    "counter": "measured by the meter's own energy counter",
    "power_integral": "measured power readings, integrated",
    "load_model": "modelled, not measured",
}


def describe_method(metered: MeteredCurve, ledger: Ledger, split_method: HostFit | DeviceAttribution | None) -> str:
    """Return the sentence on a domain's method, its layers' method, and the meter's band."""
    parts = [_METHOD_TEXTS.get(ledger.method, ledger.method)]
    if ledger.method == "counter" and metered.polls is None:
        parts.append("the run's ends lie between two of its publications")
    parts += [note for note in metered.meter.notes if note.startswith(COUNTER_SCOPE_PREFIX)]
    if metered.meter.scope == "device":
        parts.append("the whole device, including the work of other processes")
    else:
        parts.append("this process's share")
    band = metered.meter.accuracy_rel
    if band is not None:
        parts.append(f"meter accuracy {band[0]:+.0%}..{band[1]:+.0%}")
    parts += [
        note
        for note in metered.meter.notes
        if note.startswith((UNCHECKED_PREFIX, SPARSE_READINGS_PREFIX, UNSAMPLED_PREFIX))
    ]
    if ledger.coverage < FULL_COVERAGE:
        parts.append(f"metered for {ledger.coverage:.1%} of the run")
    if isinstance(split_method, DeviceAttribution):
        parts += _describe_device(split_method)
    elif ledger.domain.kind != "module":  # `nest_module_ledgers` adds what the rows of a module are
        parts.append(_describe_layers(split_method))
    return f"{ledger.domain}: " + "; ".join(parts) + "."


def _describe_layers(fit: HostFit | None) -> str:
    if fit is None:
        return "not split into layers"
    if fit.method == "fit":
        return "layers by power fitted to the readings"
    return f"layers by their share of time ({fit.reason})"


def _describe_device(books: DeviceAttribution) -> list[str]:
    """Return the clauses on the layers' sensor, its response, and fallbacks."""
    fit = books.fit
    parts = [f"layers by their share of busy time ({fit.reason})"]
    if fit.fitted and fit.estimate is not None:
        parts = [f"layers by power fitted to {fit.estimate.rows} readings"]
    parts += [*_describe_sensor(books), *_describe_estimates(books)]
    if _streams_overlap(books):
        parts.append("streams that ran together share the static power equally and add their dynamic power")
    if books.unwatched_s > 0:
        parts.append(f"{books.unwatched_s:.3g} s of work were not recorded: (unattributed)")
    return parts


def _describe_sensor(books: DeviceAttribution) -> list[str]:
    updates, kernel = books.fit.publications, books.fit.kernel
    if updates is None:
        return []
    grid = "locked to the polls" if updates.locked else "not periodic, dated between two polls"
    parts = [f"published every {updates.period_s * 1e3:.5g} ms ({grid})"]
    if updates.stamped:
        parts = [f"read from the driver's ring every {updates.period_s * 1e3:.3g} ms"]
    if kernel is not None:
        age_s = kernel.kernel.lag_s + kernel.kernel.window_s / 2 + kernel.kernel.tau_s
        parts.append(f"each the mean of a {kernel.kernel}, {age_s * 1e3:.3g} ms old ({kernel.why})")
    return parts


def _describe_estimates(books: DeviceAttribution) -> list[str]:
    if not books.fit.fitted or books.measured is None:
        return []
    slots = books.measured[:-1][books.time_s[:-1] > 0]
    weak = int((slots < MIN_SELF_SHARE).sum())
    if not weak:
        return ["the readings determine more than half of every slot"]
    return [f"{weak} of {len(slots)} slots are estimates: the readings determine only their enclosing modules"]


def _streams_overlap(books: DeviceAttribution) -> bool:
    columns = books.fit.columns
    return float(columns.seconds.sum()) > 1.001 * float(columns.shared_s.sum())
