"""Shared cards, copies under new ids, broken bundles: what the lake and the store add up is what the devices used."""

import os
from concurrent.futures import ThreadPoolExecutor
from math import fsum

import pytest

from tests.support.shared_fleet import BREAKS, G_PER_KWH, Fleet, break_some, ingest_at_once, make_bundles, write_jobs
from torchwatt.audit.fleet import check_lake, connect, open_lake, rollup, views_script
from torchwatt.audit.fleet.ingestion import ingest
from torchwatt.audit.run_index import monthly_sums
from torchwatt.audit.store import Store, shares_of_runs

REL = 1e-9


def close(found, expected):
    return found == pytest.approx(expected, rel=REL, abs=1e-6)


def whole(fleet, broken):
    return set(range(len(fleet.jobs))) - set(broken)


def check(lake, fleet, broken):
    """Compare every roll-up with what the devices used."""
    truth = fleet.truth(whole(fleet, broken))
    total_j = fsum(truth.values())
    for by in ("project", "month", "model", "layer"):
        rows = rollup(lake, by).to_pylist()
        assert close(fsum(row["energy_j"] for row in rows), total_j), by
        assert close(fsum(row["location_g"] for row in rows), total_j / 3.6e6 * G_PER_KWH), by
    scope2 = rollup(lake, "scope2").to_pylist()
    assert close(fsum(row["t_co2e"] for row in scope2) * 1e6, total_j / 3.6e6 * G_PER_KWH)
    devices = rollup(lake, "device").to_pylist()
    for kind, joules in truth.items():
        assert close(fsum(row["energy_j"] for row in devices if row["kind"] == kind), joules), kind
    states = {row["adds"]: row["runs"] for row in rollup(lake, "project", project="llm").to_pylist()}
    assert states.keys() >= {"yes", "shared", "copy"}
    assert check_lake(lake) == ()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Return a fleet of 60 jobs, its bundles, and which of them are broken."""
    fleet, root = Fleet(60), tmp_path_factory.mktemp("shared") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        write_jobs(fleet, root, range(60))
    return fleet, root, break_some(fleet, root, every=5)


@pytest.fixture(scope="module")
def ingested(shared, tmp_path_factory):
    """Return the lake that four ingests of all bundles make at the same time, and what each of them found."""
    _, root, _ = shared
    lake = open_lake(tmp_path_factory.mktemp("lake") / "lake")
    with ThreadPoolExecutor(4) as pool:
        found = [one.result() for one in [pool.submit(ingest, lake, [root], samples=True, jobs=1) for _ in range(4)]]
    return lake, found


def test_four_ingests_at_a_time_add_up_to_what_the_devices_used(shared, ingested):
    fleet, _, broken = shared
    lake, found = ingested
    assert len(broken) >= len(BREAKS)
    for one in found:
        assert {outcome.directory for outcome in one.refused} == {str(folder) for folder in broken.values()}
    assert sum(one.count("added") for one in found) == len(fleet.jobs) + 3 * len(fleet.clones) - len(broken)
    check(lake, fleet, broken)


def test_the_store_and_the_sql_by_hand_add_up_to_the_same(shared, ingested):
    import duckdb

    fleet, root, broken = shared
    truth_j = fsum(fleet.truth(whole(fleet, broken)).values())
    lake, _ = ingested
    with duckdb.connect() as connection:
        connection.execute(views_script(lake))
        (total_j,) = connection.execute("SELECT fsum(energy_j) FROM v_project").fetchone()
        (hours,) = connection.execute("SELECT fsum(hours) FROM v_project").fetchone()
    assert close(total_j, truth_j)
    with connect(lake) as connection:
        counts = connection.table("lake_counts").filter("device_id = ''").fetchall()
    store = Store(root)
    with pytest.warns(UserWarning, match="cannot read"):
        runs = [run for run in store.rebuild() if run.run_id in {row[0] for row in counts}]
    among = shares_of_runs(runs)
    assert close(fsum(share.energy_j for share in among.values()), truth_j)
    assert close(fsum(share.seconds for share in among.values()) / 3600, hours)
    assert {row[0]: row[2] for row in counts} == {run.run_id: among[run.key].state for run in runs}
    groups = monthly_sums([run for run in runs if run.boundary != "node"], among)
    apart = monthly_sums([run for run in runs if run.boundary == "node"], among)
    assert close(fsum(group.total.energy_j for group in (*groups, *apart)), truth_j)


def test_a_lake_that_grew_after_the_sql_was_printed_says_that_runs_were_not_compared(shared, tmp_path):
    import duckdb

    _, root, broken = shared
    folders = [path for path in sorted((root / "llm").iterdir()) if path not in broken.values()]
    lake = open_lake(tmp_path / "lake")
    ingest(lake, folders[:3], jobs=1)
    text = views_script(lake)
    ingest(lake, folders[3:5], jobs=1)
    with duckdb.connect() as connection:
        connection.execute(text)
        found = dict(connection.execute("SELECT adds, fsum(runs) FROM v_project GROUP BY adds").fetchall())
    assert found["not compared"] == 2


@pytest.mark.heavy
@pytest.mark.timeout(3600)  # minutes where nothing else runs
def test_many_bundles_and_four_ingesting_programs(tmp_path):
    """Of 5,000 the same is true (`benchmarks/fleet.py`, ten minutes)."""
    fleet, broken = make_bundles(tmp_path / "runs", 1500)
    for _, refused in ingest_at_once(tmp_path / "lake", tmp_path / "runs"):
        assert refused == {str(folder) for folder in broken.values()}
    check(open_lake(tmp_path / "lake"), fleet, broken)
