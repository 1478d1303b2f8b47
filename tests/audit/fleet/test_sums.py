"""Sums of a fleet: what Python makes of the reports, DuckDB and Polars make of the lake."""

from collections import defaultdict
from dataclasses import replace
from math import fsum, isclose

import pytest

from tests.audit.fleet import engines
from tests.audit.fleet.conftest import RUNS
from tests.support.bundles import rich_report
from tests.support.fleet import fleet_report
from tests.support.reports import another_report, bare_report, sample_report
from torchwatt.audit import verify, write_bundle
from torchwatt.audit.fleet import ROLLUPS, check_lake, open_lake, rollup
from torchwatt.audit.fleet.ingestion import ingest
from torchwatt.core.errors import ConfigError

REL = 1e-9


def same(found, expected):
    if expected is None or isinstance(expected, str):
        return found == expected
    return found is not None and isclose(found, expected, rel_tol=REL)


def by(lake, name, **only):
    return rollup(lake, name, **only).to_pylist()


def lake_of(tmp_path, *reports):
    for number, report in enumerate(reports):
        write_bundle(report, tmp_path / "runs" / "p" / str(number))
    lake = open_lake(tmp_path / "lake")
    assert not ingest(lake, [tmp_path / "runs"]).refused
    return lake


def test_the_made_bundles_are_good_ones(store):
    found = [verify(folder) for folder in sorted(store.glob("*/*"))[::4]]
    assert all(one.ok for one in found), [str(one) for one in found]


def test_months_add_up_as_the_reports_do(fleet_lake):
    expected = engines.months_by_hand({n: fleet_report(n) for n in RUNS})
    found = {tuple(r[k] for k in ("project", "month", "boundary", "adds", "unit")): r for r in by(fleet_lake, "month")}
    assert found.keys() == expected.keys()
    for key, sums in expected.items():
        for name, value in sums.items():
            assert same(found[key][name], value), (key, name, found[key][name], value)


@pytest.mark.parametrize("name", ["model", "layer", "device"])
def test_polars_reads_the_same_files_and_agrees(fleet_lake, name):
    make = {"model": engines.models_by_polars, "layer": engines.layers_by_polars, "device": engines.devices_by_polars}
    expected, keys = make[name](fleet_lake.files.root)
    found = {tuple(row[key] for key in keys): row for row in by(fleet_lake, name)}
    assert len(found) == len(expected) > 5
    for row in expected.to_dicts():
        ours = found[tuple(row[key] for key in keys)]
        assert all(same(ours[column], value) for column, value in row.items()), (row, ours)


def test_layers_devices_and_runs_are_the_same_joules_and_grams(fleet_lake):
    joules, grams = defaultdict(dict), defaultdict(dict)
    for name in ("project", "month", "model", "device", "layer"):
        found = by(fleet_lake, name)
        for adds in ("yes", "overlapping"):
            rows = [row for row in found if row["adds"] == adds]
            joules[adds][name] = fsum(row["energy_j"] or 0.0 for row in rows)
            grams[adds][name] = fsum(row["location_g"] or 0.0 for row in rows)
    for sums in (*joules.values(), *grams.values()):
        assert all(same(value, sums["project"]) and value > 0 for value in sums.values()), sums


def test_a_rate_is_sum_over_sum_and_leaves_out_runs_without_joules(tmp_path):
    base = sample_report()
    few, many = (another_report(n, units={"token": n * 100.0 - 90.0}) for n in (1, 11))
    unmetered = bare_report(run_id="bare", start_unix_ns=base.start_unix_ns, units={"token": 1e6})
    lake = lake_of(tmp_path, few, many, unmetered)
    metered, unknown = sorted(by(lake, "month"), key=lambda row: row["n_unknown"])
    assert same(metered["j_per_unit"], 2 * base.energy_j / 1020)  # a mean of rates would be 50 times as much
    assert (unknown["energy_j"], unknown["j_per_unit"], unknown["n_unknown"]) == (None, None, 1)
    assert (unknown["location_g"], unknown["n_location_unknown"]) == (None, 1)


def test_unknown_joules_in_a_group_are_counted_and_add_nothing(tmp_path):
    known = sample_report()
    one, two = (bare_report(run_id=str(n), start_unix_ns=known.start_unix_ns) for n in (1, 2))
    rows = {row["boundary"]: row for row in by(lake_of(tmp_path, known, one, two), "project")}
    assert (rows["(nothing metered)"]["energy_j"], rows["(nothing metered)"]["n_unknown"]) == (None, 2)
    assert (rows["cpu+gpu+ram"]["energy_j"], rows["cpu+gpu+ram"]["n_unknown"]) == (pytest.approx(known.energy_j), 0)


def test_other_boundaries_stand_apart_and_more_of_the_same_kind_do_not(tmp_path):
    whole = sample_report()
    gpu_only = another_report(1, ledgers=whole.ledgers[:1])
    lake = lake_of(tmp_path, whole, gpu_only)
    assert {row["boundary"] for row in by(lake, "project")} == {"cpu+gpu+ram", "gpu"}
    fleet = sorted((fleet_report(n) for n in range(2, 7)), key=lambda report: len(report.ledgers))
    one, four = fleet[0], replace(fleet[-1], start_unix_ns=fleet[0].start_unix_ns + 10**12)
    assert len(one.ledgers) < len(four.ledgers)
    both = lake_of(tmp_path / "b", replace(one, units={}), replace(four, units={}))
    assert [row["runs"] for row in by(both, "project")] == [2]


def test_a_kind_that_was_metered_in_part_only_is_another_boundary(tmp_path):
    from torchwatt.core.meter import Unavailable

    whole = sample_report()
    lake = lake_of(tmp_path, whole, another_report(2, unavailable=(Unavailable("cpu:1", "gone"),)))
    assert {row["boundary"] for row in by(lake, "project")} == {"cpu+gpu+ram", "cpu*+gpu+ram"}


def test_a_share_of_a_process_is_another_boundary_than_the_device(tmp_path):
    whole = sample_report()
    shared = tuple(replace(m, scope="process") if m.domain.kind == "cpu" else m for m in whole.meters)
    lake = lake_of(tmp_path, whole, another_report(2, meters=shared))
    assert {row["boundary"] for row in by(lake, "project")} == {"cpu+gpu+ram", "cpu:process+gpu+ram"}


@pytest.mark.parametrize("code", ["CONCURRENT_SESSION", "NESTED_SESSION"])
def test_runs_whose_joules_are_anothers_too_are_not_added(tmp_path, code):
    from torchwatt.core.meter import Event

    alone = sample_report()
    beside = another_report(2, events=(Event(alone.start_ns, "info", code, "run", "both"),))
    rows = by(lake_of(tmp_path, alone, beside), "month")
    assert {(row["adds"], row["runs"]) for row in rows} == {("yes", 1), ("overlapping", 1)}


def test_a_device_inside_another_is_not_added(tmp_path):
    whole = sample_report()
    core = replace(whole.curves[1], domain=type(whole.curves[1].domain)("core", 0))
    lake = lake_of(tmp_path, replace(whole, curves=(*whole.curves, core)))
    rows = {(row["kind"], row["adds"]): row for row in by(lake, "device")}
    assert same(rows["core", "inside another device"]["energy_j"], core.total_j)
    assert same(fsum(row["energy_j"] for (_, adds), row in rows.items() if adds == "yes"), whole.energy_j)


def test_location_and_market_are_two_sums_and_bases_are_not_mixed(tmp_path):
    rich = rich_report()
    direct = tuple(replace(f, basis="direct") if f.kind == "grid_gwp" else f for f in sample_report().factors)
    plain = sample_report(run_id="2", factors=direct, start_unix_ns=rich.start_unix_ns + 10**12)
    (market_g,) = (i.value for i in rich.impacts if (i.subject, i.accounting_method) == ("run", "market"))
    lake = lake_of(tmp_path, rich, plain)
    (row,) = by(lake, "month")
    assert (row["location_g"], row["location_basis"]) == (None, "direct, lifecycle")
    assert (row["market_g"], row["n_market_unknown"]) == (market_g, 1)
    scope2 = {(r["accounting_method"], r["basis"]): r["t_co2e"] * 1e6 for r in by(lake, "scope2")}
    expected = {("location", "lifecycle"): rich.carbon_g, ("location", "direct"): plain.carbon_g}
    expected["market", "lifecycle"] = market_g
    assert scope2.keys() == expected.keys()
    assert all(same(scope2[key], value) for key, value in expected.items())


def test_a_roll_up_can_be_of_one_project_and_month(fleet_lake):
    rows = by(fleet_lake, "model", project="llm", month="2026-09")
    assert rows
    assert {(row["project"], row["month"]) for row in rows} == {("llm", "2026-09")}
    assert by(fleet_lake, "month", project="' OR 1=1 --") == []


def test_a_roll_up_that_is_none_is_refused(fleet_lake):
    with pytest.raises(ConfigError, match="month"):
        rollup(fleet_lake, "colour")
    with pytest.raises(ConfigError, match="all months"):
        rollup(fleet_lake, "project", month="2026-09")


def test_every_lakes_sums_come_out(fleet_lake):
    assert check_lake(fleet_lake) == ()
    assert all(rollup(fleet_lake, name).num_rows for name in ROLLUPS)


def test_a_run_that_two_writers_put_under_two_projects_counts_once(tmp_path):
    lake = lake_of(tmp_path, sample_report())
    root = lake.files.root
    for path in sorted(root.rglob("*.parquet")):
        copy = root / str(path.relative_to(root)).replace("project=p", "project=q")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    for name in ("project", "device", "layer", "scope2"):
        assert {row["project"] for row in by(lake, name)} == {"p"}, name
    assert same(by(lake, "project")[0]["energy_j"], sample_report().energy_j)
    assert {one.law for one in check_lake(lake)} == {"TWICE"}


def test_a_lake_with_parts_of_an_older_version_is_read(tmp_path):
    import pyarrow.parquet as pq

    lake = lake_of(tmp_path, sample_report(), another_report(2))
    for table, column in (("run", "container_digest"), ("layer", "dtype"), ("device", "reserved_s")):
        old = min((lake.files.root / table).rglob("*.parquet"))
        pq.write_table(pq.ParquetFile(old).read().drop_columns([column]), old)
    assert by(lake, "project")[0]["runs"] == 2
    assert by(lake, "layer")
