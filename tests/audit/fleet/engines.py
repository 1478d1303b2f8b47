"""The same sums by two other ways: Python over the reports, and Polars over the lake's files."""

from collections import defaultdict
from math import fsum

import polars as pl

from tests.support.fleet import PROJECTS
from torchwatt.audit.cell_codec import utc_from_unix_ns
from torchwatt.audit.run_rows import functional_unit


def month(report):
    return f"{utc_from_unix_ns(report.start_unix_ns):%Y-%m}"


def project(number):
    return PROJECTS[number % len(PROJECTS)]


def overlaps(report):
    return any(event.code == "CONCURRENT_SESSION" for event in report.events)


def grams(report, method):
    return next((i.value for i in report.impacts if i.accounting_method == method), None)


def months_by_hand(reports):
    """Return {(project, month, boundary, adds, unit): sums} from the reports, without any file."""
    groups = defaultdict(list)
    for number, report in reports.items():
        kinds = "+".join(sorted({ledger.domain.kind for ledger in report.ledgers})) or "(nothing metered)"
        adds = "overlapping" if overlaps(report) else "yes"
        groups[project(number), month(report), kinds, adds, functional_unit(report)[0]].append(report)
    return {key: _sums(found) for key, found in groups.items()}


def _sums(found):
    known = [report for report in found if report.energy_j is not None]
    located = [g for report in found if (g := grams(report, "location")) is not None]
    joules = fsum(report.energy_j for report in known) if known else None
    measured = fsum(x.energy_j for report in known for x in report.ledgers if x.provenance == "measured")
    return {
        "runs": len(found),
        "n_unknown": len(found) - len(known),
        "n_partial": sum(report.status != "complete" for report in found),
        "hours": fsum(report.duration_s for report in found) / 3600,
        "energy_j": joules,
        "measured_share": measured / joules if known else None,
        "j_per_unit": joules / fsum(functional_unit(r)[1] for r in known) if known else None,
        "location_g": fsum(located) if located else None,
        "n_location_unknown": len(found) - len(located),
    }


def scan(root, table):
    """Read a table as docs/fleet.md says."""
    keys = {"project": pl.String, "date": pl.Date}
    return pl.scan_parquet(f"{root}/{table}/**/*.parquet", hive_schema=keys)


def runs(root):
    return (
        scan(root, "run")
        .sort("project", "date")
        .unique("run_id", keep="first")
        .with_columns(
            month=pl.col("date").dt.strftime("%Y-%m"),
            model=pl.col("lake_model").fill_null("(unknown)"),
            boundary=pl.col("lake_boundary").fill_null("(nothing metered)"),
            adds=pl.when("lake_overlaps").then(pl.lit("overlapping")).otherwise(pl.lit("yes")),
            unit=pl.col("functional_unit"),
            units=pl.col("functional_unit_count"),
            energy_j=pl.col("energy_it_j"),
        )
    )


def known_sum(column):
    """Add what is known; nothing known is null, where Polars alone would say 0."""
    return pl.when(pl.col(column).is_not_null().any()).then(pl.col(column).sum())


def models_by_polars(root):
    keys = ("project", "month", "model", "boundary", "adds", "unit")
    rated = pl.col("energy_j").is_not_null() & (pl.col("units") > 0)
    return (
        runs(root)
        .group_by(keys)
        .agg(
            runs=pl.len(),
            n_unknown=pl.col("energy_j").is_null().sum(),
            hours=pl.col("duration_s").sum() / 3600,
            energy_j=known_sum("energy_j"),
            measured_share=known_sum("lake_measured_j") / known_sum("energy_j"),
            modelled_share=known_sum("lake_modelled_j") / known_sum("energy_j"),
            j_per_unit=pl.when(rated.any()).then(
                pl.col("energy_j").filter(rated).sum() / pl.col("units").filter(rated).sum()
            ),
            location_g=known_sum("lake_location_g"),
            market_g=known_sum("lake_market_g"),
        )
        .collect()
    ), keys


def layers_by_polars(root):
    keys = ("project", "month", "model", "kind", "fqn", "phase", "adds")
    facts = runs(root).select(
        "run_id", "project", "date", "month", "model", "adds", "lake_location_g", run_j="energy_j"
    )
    found = (
        scan(root, "layer")
        .join(facts, on=["run_id", "project", "date"])
        .filter("lake_counts")
        .with_columns(
            kind=pl.col("device_id").str.split(":").list.first(),
            g=pl.col("lake_location_g") * pl.col("energy_self_j") / pl.col("run_j"),
        )
        .group_by(keys)
        .agg(
            runs=pl.col("run_id").n_unique(),
            calls=pl.col("calls").sum(),
            energy_j=pl.col("energy_self_j").sum(),
            location_g=known_sum("g"),
        )
        .collect()
    )
    return found, keys


def devices_by_polars(root):
    keys = ("project", "month", "kind", "device_model", "scope", "adds")
    facts = runs(root).select("run_id", "project", "date", "month", "adds", "duration_s")
    found = (
        scan(root, "device")
        .filter("counted")
        .join(facts, on=["run_id", "project", "date"])
        .with_columns(device_model=pl.col("model").fill_null("(unknown)"))
        .group_by(keys)
        .agg(
            devices=pl.len(), device_hours=pl.col("duration_s").sum() / 3600, energy_j=known_sum("energy_j"),
            n_unknown=pl.col("energy_j").is_null().sum(),
        )
        .collect()
    )  # fmt: skip
    return found, keys
