"""Describe the method of each domain in one sentence."""

from __future__ import annotations

from torchwatt.attribution.cross_check import UNCHECKED
from torchwatt.attribution.curves import Metered
from torchwatt.attribution.device_books import DeviceBooks
from torchwatt.attribution.fit import Fit
from torchwatt.attribution.guards import SHOW_SELF
from torchwatt.core.ledger import FULL_COVERAGE, Ledger

SELDOM = "power was read"  # prefix of the note on a low sampling rate
UNSEEN = "never sampled"  # prefix of the note on run phases without power readings
COUNTER_COVERS = "the energy counter"  # prefix of notes on what a counter covers

_METER = {
    "counter": "measured by the meter's own energy counter",
    "power_integral": "measured power readings, integrated",
    "load_model": "modelled, not measured",
}


def how_known(metered: Metered, ledger: Ledger, split_method: Fit | DeviceBooks | None) -> str:
    """Return the sentence on a domain's method, its layers' method, and the meter's band."""
    parts = [_METER.get(ledger.method, ledger.method)]
    if ledger.method == "counter" and metered.polls is None:
        parts.append("the run's ends lie between two of its publications")
    parts += [note for note in metered.meter.notes if note.startswith(COUNTER_COVERS)]
    if metered.meter.scope == "device":
        parts.append("the whole device, including the work of other processes")
    else:
        parts.append("this process's share")
    band = metered.meter.accuracy_rel
    if band is not None:
        parts.append(f"meter accuracy {band[0]:+.0%}..{band[1]:+.0%}")
    parts += [note for note in metered.meter.notes if note.startswith((UNCHECKED, SELDOM, UNSEEN))]
    if ledger.coverage < FULL_COVERAGE:
        parts.append(f"metered for {ledger.coverage:.1%} of the run")
    parts += _device(split_method) if isinstance(split_method, DeviceBooks) else [_layers(split_method)]
    return f"{ledger.domain}: " + "; ".join(parts) + "."


def _layers(fit: Fit | None) -> str:
    if fit is None:
        return "not split into layers"
    if fit.method == "fit":
        return "layers by power fitted to the readings"
    return f"layers by their share of time ({fit.reason})"


def _device(books: DeviceBooks) -> list[str]:
    """Return the clauses on the layers' sensor, its response, and fallbacks."""
    fit = books.fit
    parts = [f"layers by their share of busy time ({fit.reason})"]
    if fit.fitted and fit.estimate is not None:
        parts = [f"layers by power fitted to {fit.estimate.rows} readings"]
    parts += [*_sensor(books), *_estimated(books)]
    if _streams_overlap(books):
        parts.append("streams that ran together share the static power equally and add their dynamic power")
    if books.unwatched_s > 0:
        parts.append(f"{books.unwatched_s:.3g} s of work were not recorded: (unattributed)")
    return parts


def _sensor(books: DeviceBooks) -> list[str]:
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


def _estimated(books: DeviceBooks) -> list[str]:
    if not books.fit.fitted or books.measured is None:
        return []
    slots = books.measured[:-1][books.time_s[:-1] > 0]
    weak = int((slots < SHOW_SELF).sum())
    if not weak:
        return ["the readings determine more than half of every slot"]
    return [f"{weak} of {len(slots)} slots are estimates: the readings determine only their enclosing modules"]


def _streams_overlap(books: DeviceBooks) -> bool:
    columns = books.fit.columns
    return float(columns.seconds.sum()) > 1.001 * float(columns.shared_s.sum())
