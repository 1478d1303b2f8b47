import hashlib
from dataclasses import replace
from math import fsum, isclose, nan

import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.support.reports import HOSTILE, RUN_ID, UUID, bare_report, named_report, sample_report
from torchwatt.audit import TABLES, read_bundle, write_bundle
from torchwatt.audit.formula import evaluate
from torchwatt.audit.seal import GIT_ATTRIBUTES, MANIFEST
from torchwatt.audit.table_rows import rows_by_table
from torchwatt.core.errors import BundleError
from torchwatt.core.ledger import Ledger
from torchwatt.core.meter import Event, Unavailable
from torchwatt.core.terms import PROVENANCES

CSV_TABLES = [table for table in TABLES if table.format == "csv" and not table.optional]


@pytest.fixture
def folder(tmp_path):
    return write_bundle(sample_report(), tmp_path / "audit")


def frame(folder, table):
    if table == "sample":
        return pd.read_parquet(folder / "sample.parquet")
    return pd.read_csv(folder / f"{table}.csv", keep_default_na=False, na_values=[""])


# Laws


def test_layers_add_up_to_devices_and_devices_to_the_run(folder):
    layer, device = frame(folder, "layer"), frame(folder, "device")
    counted = device[device.counted]
    by_device = layer.groupby("device_id").energy_self_j.agg(fsum)
    for row in counted.itertuples():
        assert isclose(by_device[row.device_id], row.energy_j, rel_tol=1e-9)
    assert set(by_device.index) == set(counted.device_id)
    run = frame(folder, "run").iloc[0]
    assert isclose(fsum(counted.energy_j), run.energy_it_j, rel_tol=1e-9)
    assert abs(run.closure_residual_j) < 1e-9 * run.energy_it_j


def test_the_last_sample_of_a_counted_device_is_its_energy(folder):
    last = frame(folder, "sample").groupby("device_id", observed=True).energy_j.last()
    for row in frame(folder, "device").itertuples():
        if row.counted:
            assert isclose(last[row.device_id], row.energy_j, rel_tol=1e-9)


def test_power_times_time_is_energy(folder):
    for _, curve in frame(folder, "sample").groupby("device_id", observed=True):
        again_j = (curve.power_w * curve.t_ns.diff() / 1e9).sum()
        assert isclose(again_j, curve.energy_j.iloc[-1], rel_tol=1e-9)


def test_formulas_recompute_to_the_last_digit(folder):
    bundle = read_bundle(folder)
    energies = {f"device:{row['device_id']}": row["energy_j"] for row in bundle["device"]}
    energies["run"] = bundle.run["energy_it_j"]
    factors = {row["factor_id"]: row for row in bundle["factor"]}
    assert bundle["impact"]
    for row in bundle["impact"]:
        used = [factors[name] for name in row["factor_ids"].split(";")]
        values = {f["kind"]: f["value"] for f in used} | {"energy_j": energies[row["subject"]]}
        assert evaluate(row["formula"], values) == pytest.approx(row["value"], rel=1e-12)
        order = PROVENANCES.index
        assert order(row["weakest_input"]) >= max(order(f["provenance"]) for f in used)


def test_same_report_same_bytes(tmp_path):
    report = sample_report()
    turned = replace(
        report,
        ledgers=tuple(replace(x, entries=x.entries[::-1]) for x in report.ledgers[::-1]),
        events=report.events[::-1], factors=report.factors[::-1], impacts=report.impacts[::-1],
        curves=report.curves[::-1], meters=report.meters[::-1], unavailable=report.unavailable[::-1],
    )  # fmt: skip
    one, two = write_bundle(report, tmp_path / "one"), write_bundle(turned, tmp_path / "two")
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_every_energy_says_how_it_is_known(folder):
    bundle = read_bundle(folder)
    for table in ("device", "layer", "hourly"):
        for row in bundle[table]:
            energy_j = row.get("energy_self_j", row.get("energy_j"))
            assert energy_j is None or row["provenance"] in PROVENANCES
    assert bundle.run["energy_it_provenance"] == "modelled"


def test_what_is_written_is_what_is_read(folder):
    rows, bundle = rows_by_table(sample_report()), read_bundle(folder)
    for table in CSV_TABLES:
        key = list(table.key)
        wanted = sorted(rows[table.name], key=lambda row: [row[name] for name in key])
        assert len(wanted) == len(bundle[table.name])
        for want, got in zip(wanted, bundle[table.name], strict=True):
            assert {name: want.get(name) or None for name in table.header if want.get(name) != 0} == {
                name: got[name] or None for name in table.header if got[name] != 0
            }


def test_rows_have_no_column_that_the_schema_does_not_know():
    for report in (sample_report(), bare_report()):
        rows = rows_by_table(report)
        for table in CSV_TABLES:
            assert {name for row in rows[table.name] for name in row} <= set(table.header), table.name


# Missing, hostile and private


def test_missing_is_empty_and_never_zero(tmp_path):
    bundle = read_bundle(write_bundle(bare_report(), tmp_path / "audit"))
    assert bundle.run["energy_it_j"] is None
    assert bundle.run["energy_it_provenance"] is None
    assert [row["energy_j"] for row in bundle["device"]] == [None, None]
    assert {row["unavailable_reason"] for row in bundle["device"]} == {"no NVIDIA driver", "no powercap"}
    assert bundle["layer"] == bundle["hourly"] == bundle["impact"] == ()


def test_a_domain_that_failed_on_the_way_is_one_row_with_energy_and_reason(tmp_path):
    report = sample_report(unavailable=(Unavailable("gpu:0", "fell off the bus"), Unavailable("gpu:0", "twice")))
    bundle = read_bundle(write_bundle(report, tmp_path / "audit"))
    (row,) = (row for row in bundle["device"] if row["device_id"] == "gpu:0")
    assert row["energy_j"] > 0
    assert row["unavailable_reason"] == "fell off the bus; twice"


def test_a_metered_domain_inside_another_is_not_counted(tmp_path):
    report = sample_report()
    less = replace(report, ledgers=report.ledgers[:1], impacts=())
    bundle = read_bundle(write_bundle(less, tmp_path / "audit"))
    counted = {row["device_id"]: row["counted"] for row in bundle["device"] if row["energy_j"]}
    assert counted == {"gpu:0": True, "cpu:0": False, "ram": False}
    assert bundle.run["energy_it_j"] == pytest.approx(less.ledgers[0].energy_j)


def test_hostile_names_survive_and_stay_harmless(tmp_path):
    folder = write_bundle(named_report(*HOSTILE), tmp_path / "audit")
    assert {row["fqn"] for row in read_bundle(folder)["layer"]} == set(HOSTILE)
    data = (folder / "layer.csv").read_bytes()
    assert data.count(b"\n") == 1 + 2 * len(HOSTILE)
    assert b"\r" not in data
    cells = pd.read_csv(folder / "layer.csv", dtype=str, keep_default_na=False).to_numpy().ravel()
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t", "＝"))]


@examples(12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.text(st.characters(), min_size=1), min_size=1, max_size=4, unique=True))
def test_any_names_survive(tmp_path_factory, names):
    folder = write_bundle(named_report(*names), tmp_path_factory.mktemp("any") / "audit")
    bundle = read_bundle(folder)
    assert {row["fqn"] for row in bundle["layer"]} == set(names)
    assert {row["subject"] for row in bundle["event"]} == set(names)


def test_identifiers_are_hashed_and_differ_from_run_to_run(tmp_path, folder):
    text = "".join(path.read_bytes().decode(errors="replace") for path in folder.iterdir())
    assert UUID not in text
    assert "node-17" not in text
    assert read_bundle(folder).run["host_hash"] == hashlib.sha256(f"{RUN_ID}:node-17".encode()).hexdigest()
    other = read_bundle(write_bundle(sample_report(run_id="other"), tmp_path / "other"))
    hashes = [
        next(r["device_hash"] for r in b["device"] if r["device_id"] == "gpu:0") for b in (other, read_bundle(folder))
    ]
    assert len(set(hashes)) == 2


# The folder


def test_a_full_folder_is_not_touched(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(BundleError, match=r"audit.*another folder"):
        write_bundle(sample_report(), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path):
    (tmp_path / "empty").mkdir()
    write_bundle(sample_report(), tmp_path / "empty")
    write_bundle(sample_report(), tmp_path / "a" / "b" / "c")
    hidden = {path.name for path in tmp_path.rglob("*") if path.name.startswith(".")}
    assert hidden == {GIT_ATTRIBUTES}


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "audit").write_text("mine")
    with pytest.raises(BundleError, match="audit"):
        write_bundle(sample_report(), tmp_path / "audit")
    with pytest.raises(BundleError, match="audit"):
        write_bundle(sample_report(), tmp_path / "audit" / "below")
    assert (tmp_path / "audit").read_text() == "mine"


def test_a_number_that_is_none_leaves_nothing_behind(tmp_path):
    with pytest.raises(BundleError, match=r"run.*tracing_cost_s"):
        write_bundle(sample_report(tracing_cost_s=nan), tmp_path / "audit")
    assert list(tmp_path.iterdir()) == []


def test_two_rows_for_one_slot_are_refused(tmp_path):
    ledger = sample_report().ledgers[0]
    twice = Ledger(ledger.domain, 2 * ledger.energy_j, ledger.entries * 2, "counter", "measured", 1.0, 1.0)
    with pytest.raises(BundleError, match="two rows"):
        write_bundle(sample_report(ledgers=(twice,)), tmp_path / "audit")


def test_files_are_utf8_with_lf_and_a_manifest(folder):
    lines = (folder / MANIFEST).read_text().splitlines()
    assert len(lines) == sum(not table.optional for table in TABLES) + 2  # and the two descriptions
    for line in lines:
        digest, name = line.split("  ")
        data = (folder / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
        if name.endswith(".parquet"):
            continue
        assert not data.startswith(b"\xef\xbb\xbf")
        assert b"\r" not in data


def test_events_are_in_time_order_with_utc_times(folder):
    events = read_bundle(folder)["event"]
    assert [event["t_ns"] for event in events] == [3_100_000_000, 12_400_000_000]
    assert b"2026-11-24T06:00:03.223456Z" in (folder / "event.csv").read_bytes()


def test_an_event_without_words_does_not_lose_the_bundle(tmp_path):
    report = bare_report(events=(Event(0, "info", "X", "", ""),))
    assert len(read_bundle(write_bundle(report, tmp_path / "audit"))["event"]) == 1
