"""Computes new impacts for the joules of a bundle and writes them beside the old ones."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from math import fsum
from pathlib import Path
from typing import cast

from torchwatt.audit import Bundle, read_bundle
from torchwatt.audit.bundle import AS_RUN, number, text, timestamp
from torchwatt.audit.bundle_writer import write_repriced
from torchwatt.audit.report_loader import row_factor
from torchwatt.audit.seal import NO_SEAL, Seal
from torchwatt.carbon import CarbonOptions, PricedImpacts, PricedSubject, PricingNote, RunUsage
from torchwatt.carbon.grid_series import GridSeries
from torchwatt.carbon.pricing import price_run
from torchwatt.carbon.pricing_plan import make_plan
from torchwatt.core.errors import BundleError, ConfigError
from torchwatt.core.factor import Factor
from torchwatt.core.ledger import is_fully_covered
from torchwatt.core.terms import Provenance
from torchwatt.core.units import hour_of
from torchwatt.reports.emissions import accuracy_interval_j

_SCENARIO_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # it becomes a part of a folder's name


@dataclass(frozen=True, slots=True)
class RepricedBundle:
    """The new bundle's path, scenario and impacts."""

    directory: Path
    scenario: str
    priced: PricedImpacts

    @property
    def notes(self) -> tuple[PricingNote, ...]:
        """Return notes for the reader of the new impacts."""
        return self.priced.notes


def reprice(
    directory: str | os.PathLike[str],
    carbon_options: CarbonOptions,
    *,
    scenario: str,
    target: str | os.PathLike[str] | None = None,
    extra: Sequence[GridSeries] = (),
    seal: Seal = NO_SEAL,
) -> RepricedBundle:
    """Write a bundle with the same measurement and one more scenario of impacts.

    The old bundle is not changed, and in the new one every file of the measurement has the same bytes: only
    `factor.csv` and `impact.csv` grow. It contains the old scenarios and the new one. The old manifest is kept as a
    file of the new bundle, so that `sha256sum -c` shows which files are the same.

    PUE and water of the building stay as the run declared them, unless others are given.

    Args:
        directory: The bundle.
        carbon_options: The factors to apply, as `profile()` names them.
        scenario: Such as `2026`; the rows are called `repriced:2026`.
        target: The new folder; default is `<directory>.<scenario>`.
        extra: Hourly grids that the caller fetched.
        seal: A chain for the new bundle, a key to sign it with.

    Raises:
        BundleError: The bundle cannot be read, has that scenario already, or the new one cannot be written.
        ConfigError: No factors were given, or the scenario's name is invalid.
        FactorError: The factors do not cover the run.
    """
    if not _SCENARIO_NAME.fullmatch(scenario):
        raise ConfigError(f"scenario={scenario[:120]!r}: give a name such as 2026 (at most 100 letters, digits, . _ -)")
    label = f"repriced:{scenario}"
    bundle = read_bundle(directory)
    if any(row["scenario"] == label for row in bundle["impact"]):
        raise BundleError(f"{directory} already has impacts named {label}: give another --scenario")
    applied = make_plan(carbon_options, cast("datetime", bundle.run["started_at"]), extra)
    if applied.nothing:
        raise ConfigError(
            "no factors to price with: give factors=, region=, intensity_g_per_kwh=, market= or facility="
        )
    applied = replace(
        applied, pue=applied.pue or _run_factor(bundle, "pue"), wue=applied.wue or _run_factor(bundle, "wue")
    )
    priced = price_run(bundle_usage(bundle), applied, scenario=label)
    if not priced.impacts:
        raise BundleError("; ".join(note.message for note in priced.notes) or "the run has no metered joules to price")
    _reject_repetition(bundle, priced)
    where = Path(target) if target is not None else Path(f"{os.fspath(directory).rstrip(os.sep)}.{scenario}")
    return RepricedBundle(write_repriced(bundle, priced.factors, priced.impacts, where, seal), label, priced)


def _reject_repetition(bundle: Bundle, priced: PricedImpacts) -> None:
    """Reject a scenario that repeats an older one under another name, as sums of scenarios would count it twice.

    Raises:
        BundleError: The impacts equal those of an existing scenario.
    """
    new = {
        (i.subject, i.criterion, i.phase, i.accounting_method, i.value, ";".join(i.factor_ids)) for i in priced.impacts
    }
    old: dict[str, set[tuple[object, ...]]] = defaultdict(set)
    for row in bundle["impact"]:
        key = tuple(row[name] for name in ("subject", "criterion", "phase", "accounting_method", "value"))
        old[text(row, "scenario")].add((*key, text(row, "factor_ids")))
    for scenario, rows in old.items():
        if rows == new:
            raise BundleError(f"{bundle.directory}: these factors give the same impacts as {scenario}: give others")


def _run_factor(bundle: Bundle, kind: str) -> Factor | None:
    """Return the building's factor (`pue` or `wue`) in the run's own impacts, which another grid does not change."""
    named = text(bundle.run, "pue_factor_id") if kind == "pue" else ""
    used = ";".join(text(row, "factor_ids") for row in bundle["impact"] if row["scenario"] == AS_RUN).split(";")
    rows = [row for row in bundle["factor"] if row["kind"] == kind and row["factor_id"] in {named, *used}]
    return row_factor(rows[0]) if rows else None


def bundle_hours(directory: str | os.PathLike[str]) -> tuple[int, ...]:
    """Return the UTC hours in which a bundle has energy."""
    return bundle_usage(read_bundle(directory)).hours


def bundle_usage(bundle: Bundle) -> RunUsage:
    """Return a bundle's joules of the run and of each counted device, by hour if the bundle has hours."""
    run = bundle.run
    subjects = tuple(_bundle_subjects(bundle))
    hours = sorted({hour for subject in subjects for hour in subject.hourly_j})
    start, end = hour_of(timestamp(run, "started_at")), hour_of(timestamp(run, "ended_at"))
    return RunUsage(
        subjects=subjects,
        duration_s=number(run, "duration_s") or 0.0,
        hours=tuple(hours or range(start, end + 1)),
        unit=text(run, "functional_unit"),
        units=number(run, "functional_unit_count") or 0.0,
        unit_provenance=cast("Provenance", text(run, "functional_unit_provenance") or "assumed"),
        start=timestamp(run, "started_at"),
        end=timestamp(run, "ended_at"),
    )


def _bundle_subjects(bundle: Bundle) -> Iterator[PricedSubject]:
    counted = {text(row, "device_id"): row for row in bundle["device"] if row["counted"]}
    by_device: dict[str, dict[int, float]] = defaultdict(dict)
    run_hours: dict[int, list[float]] = defaultdict(list)
    for row in bundle["hourly"]:
        hour, joules = hour_of(timestamp(row, "hour_utc")), number(row, "energy_j") or 0.0
        by_device[text(row, "device_id")][hour] = joules
        run_hours[hour].append(joules)
    run = bundle.run
    energy_j = number(run, "energy_it_j")
    if energy_j is not None:
        hourly_j = {hour: fsum(parts) for hour, parts in run_hours.items()} if set(by_device) == set(counted) else {}
        lo_j, hi_j = number(run, "energy_it_systematic_lo_j"), number(run, "energy_it_systematic_hi_j")
        yield PricedSubject(
            "run", energy_j, _provenance_or_assumed(text(run, "energy_it_provenance")), lo_j, hi_j, hourly_j
        )
    for name, row in counted.items():
        joules_ = number(row, "energy_j")
        if joules_ is not None:
            lo, hi = number(row, "sensor_accuracy_lo_rel"), number(row, "sensor_accuracy_hi_rel")
            all_the_time = is_fully_covered(number(row, "coverage_ratio") or 0.0, number(run, "duration_s") or 0.0)
            band = (lo, hi) if lo is not None and hi is not None and all_the_time else None
            lo_j, hi_j = accuracy_interval_j(joules_, band, number(row, "reading_u_j"))
            yield PricedSubject(
                f"device:{name}", joules_, _provenance_or_assumed(text(row, "provenance")), lo_j, hi_j, by_device[name]
            )


def _provenance_or_assumed(provenance: str) -> Provenance:
    return cast("Provenance", provenance or "assumed")
