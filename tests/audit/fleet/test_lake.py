"""Bundles into a lake: once, whole, by several writers, under anybody's names, and again where it was cut short."""

import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from io import BytesIO
from pathlib import PurePosixPath

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.fs import FSSpecHandler, PyFileSystem

from tests.audit.fleet.conftest import RUNS
from tests.support.bundles import rich_report
from tests.support.examples import examples
from tests.support.priced_bundles import priced
from tests.support.reports import HOSTILE, another_report, sample_report
from tests.support.shared_fleet import resealed
from torchwatt.audit import write_bundle
from torchwatt.audit.fleet import check_lake, connect, open_lake, rollup, views_script
from torchwatt.audit.fleet.ingestion import ingest
from torchwatt.audit.fleet.lake import Lake, LocalFiles, decode_name, encode_name, part_path, run_of_path
from torchwatt.core.errors import BundleError, ConfigError, TorchwattError

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture
def runs(tmp_path):
    """Return a folder of three bundles."""
    for number in range(3):
        write_bundle(another_report(number), tmp_path / "runs" / f"b{number}")
    return tmp_path / "runs"


@pytest.fixture
def lake(tmp_path):
    return open_lake(tmp_path / "lake")


def content(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@examples(17)
@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
def test_any_name_becomes_one_folder_inside_the_lake_and_comes_back(project, run_id):
    try:
        path = part_path("run", project, NOON, run_id)
    except ConfigError:
        assert max(len(encoded_length(project)), len(encoded_length(run_id))) > 200
        return
    assert len(PurePosixPath(path).parts) == 4
    assert all(len(piece.encode()) <= 255 and piece not in {".", ".."} for piece in path.split("/"))
    assert run_of_path(path) == (project, run_id)


def encoded_length(name):
    from urllib.parse import quote

    return quote(name, safe="", errors="surrogatepass")


@examples(17)
@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_two_names_are_two_folders(one, two):
    assert (encode_name(one) == encode_name(two)) == (one == two)
    assert decode_name(encode_name(one)) == one


def test_duckdb_and_polars_read_hostile_names_back(lake, tmp_path):
    more = (
        "a/b",
        "../../x",
        "2026",
        "2026-01-01",
        "true",
        "k=v",
        "é*?[0]",
        "%41",
        "null",
    )
    names = [name for name in (*HOSTILE[::2], *more) if len(encoded_length(name)) <= 200]
    for number, name in enumerate(names):
        write_bundle(sample_report(run_id=f"r{number}", curves=(), ledgers=()), tmp_path / "one" / str(number))
        assert ingest(lake, [tmp_path / "one" / str(number)], project=name).count("added") == 1, name
    assert {path.name for path in tmp_path.iterdir()} == {"one", "lake"}
    with connect(lake, "v_project") as connection:
        assert {row[0] for row in connection.execute("SELECT DISTINCT project FROM lake_run").fetchall()} == set(names)
    keys = {"project": pl.String, "date": pl.Date}
    found = pl.scan_parquet(f"{lake.files.root}/run/**/*.parquet", hive_schema=keys).select("project").collect()
    assert set(found["project"]) == set(names)


def test_the_name_that_engines_read_as_none_is_refused(runs, lake):
    refused = ingest(lake, [runs], project="__HIVE_DEFAULT_PARTITION__").refused
    assert len(refused) == 3
    assert "give another" in refused[0].why


def test_a_lake_whose_own_path_looks_like_a_pattern_is_read(runs, tmp_path):
    lake = open_lake(tmp_path / "la[k]e '*?")
    assert ingest(lake, [runs]).count("added") == 3
    assert rollup(lake, "project")["runs"].to_pylist() == [3]


def test_ingesting_again_changes_no_byte(runs, lake):
    assert ingest(lake, [runs]).count("added") == 3
    before = content(lake.files.root)
    assert ingest(lake, [runs]).count("present") == 3
    assert content(lake.files.root) == before
    assert rollup(lake, "project")["runs"].to_pylist() == [3]


def test_the_project_is_the_stores_folder_unless_one_is_given(lake, tmp_path):
    for name, project in (("a", "llm"), ("b", "vision")):
        write_bundle(sample_report(run_id=name), tmp_path / "store" / project / name)
    assert {run_of_path(path)[0] for path in _after(lake, [tmp_path / "store"])} == {"llm", "vision"}
    other = open_lake(tmp_path / "other")
    assert {run_of_path(path)[0] for path in _after(other, [tmp_path / "store" / "llm"])} == {"default"}
    third = open_lake(tmp_path / "third")
    assert {run_of_path(path)[0] for path in _after(third, [tmp_path / "store"], project="mine")} == {"mine"}


def _after(lake, places, **asked):
    assert not ingest(lake, places, **asked).refused
    return lake.runs().values()


def test_a_disk_without_hard_links_holds_a_lake_too(runs, lake, monkeypatch):
    def no_links(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    assert ingest(lake, [runs]).count("added") == 3
    assert ingest(lake, [runs]).count("present") == 3
    assert lake.files.write("run/x", b"1", replace=False)
    assert not lake.files.write("run/x", b"2", replace=False)
    assert lake.files.read("run/x") == b"1"
    assert not list(lake.files.root.rglob(".*.part"))


class Dying(LocalFiles):
    """A disk that is full after some writes."""

    left = 4

    def write(self, path, content, *, replace):
        Dying.left -= 1
        if Dying.left < 0:
            raise OSError(28, "No space left on device")
        return LocalFiles.write(self, path, content, replace=replace)


def test_an_ingest_that_is_cut_short_counts_nothing_twice_and_is_finished_by_the_next(runs, lake):
    lake.make()
    Dying.left = 10  # one run and half of another
    found = ingest(Lake(lake.name, Dying(lake.files.root)), [runs])
    assert (found.count("added"), len(found.refused)) == (1, 2)
    assert "No space left" in found.refused[0].why
    assert not list(lake.files.root.rglob(".*.part"))
    rows = rollup(lake, "project").to_pylist()
    assert [row["runs"] for row in rows] == [1]
    one_j = rows[0]["energy_j"]
    assert sum(rollup(lake, "layer")["energy_j"].to_pylist()) == pytest.approx(one_j)
    assert {one.law for one in check_lake(lake)} == {"ORPHAN"}
    assert ingest(lake, [runs]).count("added") == 2
    assert check_lake(lake) == ()
    assert rollup(lake, "project")["energy_j"].to_pylist() == [pytest.approx(3 * one_j)]


def test_several_writers_and_their_workers_add_each_run_once_and_make_the_same_lake(store, fleet_lake, tmp_path):
    lake = open_lake(tmp_path / "lake")
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ingest, lake, [store / "llm"], project="llm", jobs=jobs) for jobs in (1, 1, 2)]
        found = [one.result() for one in waiting]
    assert not any(one.refused for one in found)
    assert sum(one.count("added") for one in found) == len(RUNS) / 4
    ours, theirs = content(lake.files.root), content(fleet_lake.files.root)
    assert ours == {path: data for path, data in theirs.items() if "project=llm/" in path or "/" not in path}


def test_a_lake_that_another_writer_is_just_making_is_waited_for(tmp_path):
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / ".lake.json.part").write_text("")  # begun, and not yet marked
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(open_lake(tmp_path / "lake").make)
        time.sleep(0.1)
        open_lake(tmp_path / "other").make()
        for made in (tmp_path / "other").iterdir():
            made.rename(tmp_path / "lake" / made.name)
        waiting.result()
    with pytest.raises(BundleError, match="not empty and no lake"):
        open_lake(tmp_path).make()


def test_a_bundle_that_was_changed_is_refused_and_named_and_the_others_go_on(runs, lake):
    path = runs / "b1" / "layer.csv"
    path.write_bytes(path.read_bytes().replace(b"blocks.0", b"blocks.9"))
    (runs / "b2" / "run.csv").unlink()
    found = ingest(lake, [runs])
    assert found.count("added") == 1
    assert ["layer.csv differs from MANIFEST.sha256" in found.refused[0].why, "run.csv" in found.refused[1].why] == [
        True, True,
    ]  # fmt: skip


def test_a_run_that_still_ran_is_refused(lake, tmp_path):
    write_bundle(sample_report(status="running"), tmp_path / "b")
    (refused,) = ingest(lake, [tmp_path / "b"]).refused
    assert "still running" in refused.why


def test_a_run_of_another_project_or_content_is_refused_and_replaced_only_when_asked(lake, tmp_path):
    write_bundle(priced(sample_report(), intensity_g_per_kwh=50), tmp_path / "old")
    write_bundle(priced(sample_report(), intensity_g_per_kwh=100), tmp_path / "new")
    ingest(lake, [tmp_path / "old"])
    (refused,) = ingest(lake, [tmp_path / "old"], project="other", replace=True).refused or (None,)
    assert refused is None or "already" in refused.why
    (refused,) = ingest(lake, [tmp_path / "new"]).refused
    assert "--replace" in refused.why
    old_g = rollup(lake, "project")["location_g"][0].as_py()
    assert ingest(lake, [tmp_path / "new"], replace=True).count("replaced") == 1
    assert rollup(lake, "project")["location_g"].to_pylist() == [pytest.approx(2 * old_g)]
    assert rollup(lake, "project")["runs"].to_pylist() == [1]
    assert check_lake(lake) == ()
    (refused,) = ingest(lake, [tmp_path / "old"], project="other", replace=True).refused
    assert "project 'default' already" in refused.why


def test_a_table_that_a_replaced_run_has_no_more_is_gone(lake, tmp_path):
    write_bundle(rich_report(), tmp_path / "old")
    write_bundle(sample_report(impacts=(), factors=(), windows=(), steps=()), tmp_path / "new")
    ingest(lake, [tmp_path / "old"])
    assert ingest(lake, [tmp_path / "new"], replace=True).count("replaced") == 1
    assert check_lake(lake) == ()
    assert rollup(lake, "scope2").num_rows == 0


def test_a_damaged_part_is_named_by_verify_and_healed_by_replace(runs, lake):
    ingest(lake, [runs])
    path = next(lake.files.root.glob("run/*/*/part-run-1.parquet"))
    path.write_bytes(path.read_bytes()[:-40])
    (broken,) = check_lake(lake)
    assert (broken.law, broken.run_id) == ("DAMAGED", path.relative_to(lake.files.root).as_posix())
    with pytest.raises(BundleError, match="fleet verify"):
        rollup(lake, "project")
    assert "is damaged" in ingest(lake, [runs]).refused[0].why
    assert ingest(lake, [runs], replace=True).count("replaced") == 1
    assert check_lake(lake) == ()


def change(root, table, **columns):
    """Put other values into a run's part."""
    path = next((root / table).glob("*/*/part-run-1.parquet"))
    table = pq.ParquetFile(path).read()
    rows = [{**row, **columns} for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


@pytest.mark.parametrize(
    ("law", "spoil"),
    [
        ("PARTS", lambda root: next(root.glob("window/*/*/part-run-1.parquet")).unlink()),
        ("LAYERS", lambda root: change(root, "layer", energy_self_j=1.0)),
        ("TOTAL", lambda root: change(root, "run", energy_it_j=1.0)),
        ("TOTAL", lambda root: change(root, "run", energy_it_j=None)),
        ("COPIES", lambda root: change(root, "run", lake_measured_j=1.0)),
        ("GRAMS", lambda root: change(root, "run", lake_location_g=1.0)),
        ("GRAMS", lambda root: change(root, "run", lake_location_g=None)),
    ],
)
def test_verify_finds_what_does_not_add_up_and_names_the_run(runs, lake, law, spoil):
    ingest(lake, [runs])
    spoil(lake.files.root)
    found = check_lake(lake)
    assert law in {one.law for one in found}
    assert {one.run_id for one in found} == {"run-1"}


def test_samples_come_along_when_asked(runs, lake):
    ingest(lake, [runs], samples=True)
    points = pl.scan_parquet(f"{lake.files.root}/sample/**/*.parquet").collect()
    assert points["run_id"].n_unique() == 3
    assert points.height == 3 * 723


@pytest.mark.parametrize("kind", ["mock", "memory"])
def test_the_same_lake_in_another_file_system_has_the_same_sums(kind, runs, lake):
    from pyarrow.fs import FileSystem

    if kind == "mock":
        system = FileSystem.from_uri("mock:///x")[0]
    else:
        system = PyFileSystem(FSSpecHandler(fsspec.filesystem("memory")))
        fsspec.filesystem("memory").store.clear()
    stored = open_lake("bucket/lake" if kind == "mock" else "/bucket/lake", system)
    assert ingest(stored, [runs]).count("added") == 3
    assert ingest(stored, [runs]).count("present") == 3
    ingest(lake, [runs])
    assert stored.runs() == lake.runs()
    for name in ("project", "layer", "device", "scope2"):
        assert rollup(stored, name).to_pylist() == rollup(lake, name).to_pylist()
    assert check_lake(stored) == ()
    with pytest.raises(ConfigError, match="folder"):
        views_script(stored)


def test_duckdb_fetches_nothing(runs, lake):
    ingest(lake, [runs])
    with connect(lake) as connection:
        names = ("autoinstall_known_extensions", "autoload_known_extensions")
        assert [connection.execute(f"SELECT current_setting('{name}')").fetchone() for name in names] == [(False,)] * 2


def test_a_folder_with_something_else_is_left_alone(runs, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(BundleError, match="not empty"):
        ingest(open_lake(tmp_path / "mine"), [runs])
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("place", ["s4://bucket/x", "http://example.org/x", "s3://"])
def test_an_address_of_no_known_kind_is_one_clear_error(place):
    with pytest.raises(ConfigError, match="lake"):
        open_lake(place)


def test_what_is_missing_is_one_clear_error(tmp_path, runs, lake, monkeypatch):
    with pytest.raises(ConfigError, match="no folder"):
        ingest(lake, [tmp_path / "nowhere"])
    with pytest.raises(BundleError, match="is no lake"):
        rollup(lake, "month")
    lake.make()
    with pytest.raises(BundleError, match="holds no runs"):
        rollup(lake, "month")
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ConfigError, match=r"pip install 'torchwatt\[fleet\]'"):
        rollup(lake, "month")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match="pip install pyarrow"):
        ingest(lake, [runs])


def test_a_lake_of_a_later_version_is_refused(lake, runs):
    lake.make()
    (lake.files.root / "torchwatt-lake.json").write_text('{"format": "torchwatt-lake", "version": 4}\n')
    with pytest.raises(BundleError, match="another version"):
        ingest(lake, [runs])


@examples(4)
@given(cut=st.integers(0, 4000), byte=st.integers(0, 255))
def test_a_spoilt_part_of_run_is_never_another_exception(made, cut, byte):
    lake, path, good = made
    path.write_bytes(good[:cut] + bytes([byte]) + good[cut + 1 :])
    try:
        rollup(lake, "project")
    except TorchwattError:
        pass
    finally:
        path.write_bytes(good)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_bundle(sample_report(), folder / "b")
    lake = open_lake(folder / "lake")
    ingest(lake, [folder / "b"])
    path = next(lake.files.root.glob("run/*/*/*.parquet"))
    return lake, path, path.read_bytes()


def test_the_command_line_ingests_sums_up_verifies_and_prints_sql(runs, tmp_path, capsys):
    from torchwatt.cli.command_parser import run_command

    where = str(tmp_path / "lake")
    assert run_command(["fleet", "ingest", where, str(runs)]) == 0
    assert capsys.readouterr().out == f"{where}: 3 added\n"
    assert run_command(["fleet", "rollup", where]) == 0
    assert "cpu+gpu+ram" in capsys.readouterr().out
    for name in ("x.csv", "x.parquet"):
        assert run_command(["fleet", "rollup", where, "--by", "model", "--out", str(tmp_path / name)]) == 0
    csv_rows = pl.read_csv(tmp_path / "x.csv")
    expected = rollup(open_lake(where), "model").to_pylist()
    assert csv_rows["energy_j"].to_list() == [row["energy_j"] for row in expected]
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == expected
    assert run_command(["fleet", "rollup", where, "--out", str(tmp_path / "x.csv")]) == 2
    assert run_command(["fleet", "rollup", where, "--out", str(tmp_path / "x.txt")]) == 2
    assert run_command(["fleet", "verify", where]) == 0
    capsys.readouterr()
    assert run_command(["fleet", "sql", where]) == 0
    sql = capsys.readouterr().out
    code = "import duckdb, sys; c = duckdb.connect(); c.execute(sys.stdin.read()); "
    code += "print(c.sql('SELECT runs FROM v_month').fetchall())"
    done = subprocess.run([sys.executable, "-c", code], input=sql, capture_output=True, text=True)
    assert done.stdout == "[(3,)]\n", done.stderr
    next((tmp_path / "lake").glob("layer/*/*/part-run-1.parquet")).unlink()
    assert run_command(["fleet", "verify", where]) == 1
    assert "run-1" in capsys.readouterr().out
    shutil.copytree(runs / "b0", runs / "b9")
    (runs / "b9" / "run.csv").write_text("x")
    assert run_command(["fleet", "ingest", where, str(runs)]) == 1


def test_a_roll_up_as_csv_starts_no_formula(tmp_path):
    from torchwatt.cli.command_parser import run_command

    write_bundle(sample_report(), tmp_path / "b")
    run_command(["fleet", "ingest", str(tmp_path / "lake"), str(tmp_path / "b"), "--project", "=cmd|' /C calc'!A0"])
    run_command(["fleet", "rollup", str(tmp_path / "lake"), "--out", str(tmp_path / "x.csv")])
    assert (tmp_path / "x.csv").read_text().splitlines()[1].startswith("'=cmd")


def test_a_part_is_plain_parquet(made):
    _, _, good = made
    names = pq.ParquetFile(BytesIO(good)).schema_arrow.names
    assert names[:2] == ["run_id", "schema_version"]
    assert names[-1] == "lake_sample_sha256"


def flip(path, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("samples", [True, False])
def test_samples_that_differ_from_the_manifest_keep_their_bundle_out(runs, lake, samples):
    flip(runs / "b1" / "sample.parquet")
    found = ingest(lake, [runs], samples=samples)
    (refused,) = found.refused
    assert "sample.parquet differs from MANIFEST.sha256" in refused.why
    assert not list(lake.files.root.rglob("part-run-1.parquet"))


def test_samples_of_another_run_stay_out_also_where_the_manifest_names_them(runs, lake):
    shutil.copy(runs / "b0" / "sample.parquet", runs / "b1" / "sample.parquet")
    resealed(runs / "b1")
    (refused,) = ingest(lake, [runs], samples=True).refused
    assert "samples of another run" in refused.why


def test_a_table_that_the_manifest_does_not_name_keeps_its_bundle_out(runs, lake):
    (runs / "b1" / "rank.csv").write_text("run_id,rank\n")
    (refused,) = ingest(lake, [runs]).refused
    assert "rank.csv differs from MANIFEST.sha256" in refused.why


@pytest.mark.parametrize("table", ["run", "device", "layer", "sample"])
def test_verify_opens_every_file_and_sees_one_bit(runs, lake, table):
    ingest(lake, [runs], samples=True)
    assert check_lake(lake) == ()
    path = next(lake.files.root.glob(f"{table}/*/*/part-run-1.parquet"))
    whole = path.read_bytes()
    for at in (0.1, 0.3):
        path.write_bytes(whole)
        flip(path, at)
        assert {one.law for one in check_lake(lake)} & {"DAMAGED", "SAMPLE"}, at
    path.unlink()
    assert check_lake(lake)


@pytest.mark.parametrize(
    "spoil", [lambda text: text.replace('"gpu:0"', '"gpu:1"'), lambda text: text.replace("]", "", 1)]
)
def test_verify_compares_what_the_rule_of_counting_is_asked_about(runs, lake, spoil):
    ingest(lake, [runs])
    change(lake.files.root, "run", lake_metered=spoil(open_metered(lake)))
    assert {(one.law, one.run_id) for one in check_lake(lake)} == {("METERED", "run-1")}


def test_a_run_that_cannot_be_counted_is_never_summed_up_silently(runs, lake):
    ingest(lake, [runs])
    change(lake.files.root, "run", lake_metered="[]")
    with pytest.raises(BundleError, match="fleet verify"):
        rollup(lake, "project")


def open_metered(lake):
    with connect(lake) as connection:
        return connection.execute("SELECT lake_metered FROM lake_run WHERE run_id = 'run-1'").fetchone()[0]


def test_folders_that_are_no_bundles_are_named(runs, lake, capsys):
    from torchwatt.cli.command_parser import run_command

    (runs / "b1" / "MANIFEST.sha256").unlink()
    (runs / "notes").mkdir()
    (runs / "notes" / "plan.txt").write_text("x")
    found = ingest(lake, [runs])
    assert [outcome.directory for outcome in found.refused] == [str(runs / "b1")]
    assert "no MANIFEST.sha256" in found.refused[0].why
    assert [outcome.directory for outcome in found.no_bundles] == [str(runs / "notes")]
    assert run_command(["fleet", "ingest", lake.name, str(runs)]) == 1
    told = capsys.readouterr().err
    assert f"refused {runs / 'b1'}" in told
    assert f"not a bundle: {runs / 'notes'}" in told


class Meeting(LocalFiles):
    """A disk on which another ingest begins to add the same run just before this one does."""

    def write(self, path, content, *, replace):
        if path.startswith("device/"):
            Meeting.other()
        return LocalFiles.write(self, path, content, replace=replace)


def test_two_contents_of_one_run_at_the_same_moment_never_mix(lake, tmp_path):
    write_bundle(priced(sample_report(), intensity_g_per_kwh=50), tmp_path / "first")
    write_bundle(sample_report(impacts=(), factors=(), windows=()), tmp_path / "second")
    lake.make()
    Meeting.other = lambda: ingest(lake, [tmp_path / "first"])
    (refused,) = ingest(Lake(lake.name, Meeting(lake.files.root)), [tmp_path / "second"]).refused
    assert "--replace" in refused.why
    assert check_lake(lake) == ()
    alone = open_lake(tmp_path / "alone")
    ingest(alone, [tmp_path / "first"])
    assert content(lake.files.root) == content(alone.files.root)
