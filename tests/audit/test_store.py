"""Kept runs: found again, added up honestly, and the index is worth nothing by itself."""

from dataclasses import replace

import pytest

from tests.support.priced_bundles import priced
from tests.support.reports import HOUR_NS, RUN_ID, bare_report, sample_report
from torchwatt.audit import read_bundle, verify
from torchwatt.audit.run_index import monthly_sums
from torchwatt.audit.store import Store, default_store, shares_of_runs
from torchwatt.core.errors import BundleError, ConfigError


def report(number, **changes):
    """Make a run an hour after that of the number before: at the same time it would be a copy."""
    start = {"start_unix_ns": sample_report().start_unix_ns + number * HOUR_NS}
    return priced(sample_report(run_id=f"{RUN_ID[:-2]}{number:02}", **{**start, **changes}), intensity_g_per_kwh=50)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_nothing_is_written_before_something_is_kept(store):
    assert store.runs() == ()
    assert store.rebuild() == ()
    assert not store.root.exists()


def test_a_kept_run_is_a_bundle_that_holds_in_its_projects_chain(store):
    folders = [store.keep(report(n), project="llm") for n in (1, 2, 3)]
    chain = store.root / "llm" / "chain.jsonl"
    for folder in folders:
        found = verify(folder, chain=chain, runs=store.root / "llm")
        assert found.ok, str(found)
    assert [run.run_id for run in store.runs()] == [folder.name for folder in folders]


def test_a_removed_run_shows_in_the_chain(store):
    import shutil

    first, second = (store.keep(report(n)) for n in (1, 2))
    shutil.rmtree(first)
    found = verify(second, chain=second.parent / "chain.jsonl", runs=second.parent)
    assert not found.ok


def test_the_index_is_made_again_from_the_bundles(store):
    for n, project in ((1, "a"), (2, "b"), (3, "b")):
        store.keep(report(n), project=project)
    index = store.root / "index.sqlite"
    before = store.runs()
    index.unlink()
    assert store.runs() == before
    index.write_bytes(b"not a database at all, whatever it is called" * 100)
    assert store.runs() == before
    assert store.rebuild() == before
    assert [run.project for run in before] == ["a", "b", "b"]


def test_a_run_that_came_or_went_without_the_store_is_seen(store):
    import shutil

    first, second = (store.keep(report(n)) for n in (1, 2))
    shutil.copytree(first, store.root / "other" / first.name)
    shutil.rmtree(second)
    assert {(run.project, run.folder) for run in store.runs()} == {("default", first.name), ("other", first.name)}


def test_a_copy_of_a_run_is_not_counted_twice(store):
    import shutil

    folder = store.keep(report(1))
    shutil.copytree(folder, folder.with_name("zz-copy"))
    with pytest.warns(UserWarning, match="zz-copy"):
        assert [run.folder for run in store.runs()] == [folder.name]


def test_a_damaged_bundle_is_named_and_hides_no_other(store):
    first, second = (store.keep(report(n)) for n in (1, 2))
    (first / "run.csv").write_text("run_id\n")
    (store.root / "index.sqlite").unlink()
    with pytest.warns(UserWarning, match=first.name):
        assert [run.run_id for run in store.runs()] == [second.name]


def test_sums_are_by_project_and_month_and_a_rate_is_sum_over_sum(store):
    month_ns = 31 * 24 * 3_600_000_000_000
    base = sample_report().start_unix_ns
    for n, units in ((1, 100.0), (2, 300.0)):
        store.keep(report(n, units={"token": units}), project="llm")
    store.keep(report(3, units={"token": 50.0}, start_unix_ns=base + month_ns), project="llm")
    november, december = monthly_sums(store.runs())
    assert (november.month, december.month) == ("2026-11", "2026-12")
    assert november.total.energy_j == pytest.approx(2 * 7402.148)
    assert november.total.j_per_unit == pytest.approx(2 * 7402.148 / 400)
    assert november.total.location_g == pytest.approx(2 * 7402.148 / 3.6e6 * 50)
    assert len(store.runs(month="2026-12")) == 1


def test_mixed_boundaries_and_methods_are_refused(store):
    store.keep(report(1))
    whole = report(2)
    store.keep(replace(whole, ledgers=whole.ledgers[:1]))
    (group,) = monthly_sums(store.runs())
    assert group.total.energy_j is None
    assert any("different boundaries" in why for why in group.total.refused)
    store.keep(priced(sample_report(run_id=f"{RUN_ID[:-2]}07"), market=5.0), project="m")
    store.keep(report(8), project="m")
    (mixed,) = monthly_sums(store.runs(project="m"))
    assert (mixed.total.location_g, mixed.total.market_g) == (None, None)
    assert mixed.total.energy_j == pytest.approx(2 * 7402.148)


def here(number, after_s, process):
    """Make a run on one machine, so many seconds after the first."""
    base = sample_report()
    software = {**base.software, "machine": "m", "process": f"m/{process}/1"}
    return report(number, start_unix_ns=base.start_unix_ns + after_s * 10**9, software=software)


def test_copies_under_new_ids_and_runs_on_one_card_at_one_time_are_counted_once(store):
    first = here(1, 0, 1)
    store.keep(first, project="a")
    for number in (2, 3, 4):
        store.keep(here(number, 0, 1), project="a" if number < 4 else "b")
    store.keep(here(5, 12, 2), project="a")  # its first half beside the first run's last
    runs = store.runs()
    ours, copied = monthly_sums(runs, shares_of_runs(runs))
    apart = {meter.domain for meter in first.meters if meter.scope == "process"}
    expected_j = sum(ledger.energy_j * (2 if ledger.domain in apart else 1.5) for ledger in first.ledgers)
    assert (ours.total.runs, copied.total.runs) == (2, 0)
    assert ours.total.energy_j == pytest.approx(expected_j)
    assert ours.total.location_g == pytest.approx(expected_j / 3.6e6 * 50)
    assert copied.total.energy_j is None
    assert any("in 36 s (union of the intervals)" in why for why in ours.total.shared), ours.total.shared
    assert any("the same measurement" in why for why in copied.total.shared)
    assert (
        monthly_sums(store.runs(project="b"), shares_of_runs(runs))[0].total.energy_j is None
    )  # also where only they are looked at


def test_what_may_have_been_one_device_is_not_added(store):
    for number in (1, 2):
        start_ns = sample_report().start_unix_ns + number * 10**9
        store.keep(report(number, start_unix_ns=start_ns))  # no machine: its package is not identified
    (group,) = monthly_sums(store.runs())
    assert group.total.energy_j is None
    assert any("not identified" in why for why in group.total.refused)


def test_a_folder_without_a_manifest_is_named(store):
    folder = store.keep(report(1))
    (folder / "MANIFEST.sha256").unlink()
    assert store.list_unsealed() == (folder,)


def test_an_unmetered_run_makes_no_zero(store):
    store.keep(bare_report(run_id="bare-1"))
    (group,) = monthly_sums(store.runs())
    assert group.total.energy_j is None


def test_a_run_is_kept_once_and_found_by_id_by_its_ends_and_by_name(store):
    folder = store.keep(report(1, name="small"))
    store.keep(report(2, name="large"))
    with pytest.raises(BundleError, match="kept already"):
        store.keep(report(1))
    for wanted in ("small", folder.name, folder.name[-4:]):
        assert store.find(wanted) == folder
    with pytest.raises(BundleError, match="several runs"):
        store.find(RUN_ID[:8])
    with pytest.raises(BundleError, match="no run 'lost'"):
        store.find("lost")


def test_a_bundle_from_elsewhere_is_copied_byte_for_byte(store, bundle):
    folder = store.add(bundle, project="theirs")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in bundle.iterdir()}
    assert read_bundle(folder).run["run_id"] == store.runs()[0].run_id


@pytest.mark.parametrize("project", ["../up", "", ".hidden", "a/b", "x" * 101])
def test_a_project_is_a_plain_name(store, project):
    with pytest.raises(ConfigError, match="project="):
        store.keep(report(1), project=project)
    assert not store.root.exists()


def test_the_place_of_the_store_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHWATT_STORE", str(tmp_path / "mine"))
    assert default_store() == tmp_path / "mine"
    monkeypatch.delenv("TORCHWATT_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_store() == tmp_path / "data" / "torchwatt" / "runs"
