import pytest

from tests.support.reports import sample_report
from torchwatt.audit import TABLES, read_bundle, write_bundle
from torchwatt.core.errors import BundleError


@pytest.fixture
def folder(tmp_path):
    return write_bundle(sample_report(), tmp_path / "audit")


def spoil(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("layer.csv", b"energy_self_j", b"energy_j", r"layer\.csv.*'energy_self_j', found 'energy_j'"),
        ("layer.csv", b",time_share,", b",time_share,extra,", r"layer\.csv row 1: 32 cells under 31 columns"),
        ("layer.csv", b",time_share,", b",,", r"layer\.csv row 1, column method: is required"),
        ("device.csv", b"1713.1114000000005", b"1,5", r"device\.csv row 1"),
        ("device.csv", b"1713.1114000000005", b"NaN", r"device\.csv row 1, column energy_j: expected a number"),
        ("device.csv", b"true", b"yes", r"device\.csv row 1, column counted"),
        ("run.csv", b"06:00:00.123456Z", b"06:00:00.123456", r"run\.csv row 1, column started_at"),
        ("run.csv", b"2.2.0", b"3.0.0", r"schema 3\.0\.0"),
        ("event.csv", b",1,12400000000", b",0,12400000000", r"event\.csv row 2: the same run_id, event_index as row 1"),
        ("event.csv", b"wrapped", b"wr\xffpped", r"event\.csv: not UTF-8"),
        ("event.csv", b"the counter", b'"the counter', r"event\.csv"),
        ("event.csv", b"run_id", b"\xef\xbb\xbfrun_id", r"event\.csv: column 1 should be 'run_id'"),
    ],
)  # fmt: skip
def test_a_spoilt_bundle_is_named(folder, file, old, new, said):
    spoil(folder / file, old, new)
    with pytest.raises(BundleError, match=said):
        read_bundle(folder)


@pytest.mark.parametrize("table", [table.name for table in TABLES if table.format == "csv" and not table.optional])
def test_a_missing_file_is_named(folder, table):
    (folder / f"{table}.csv").unlink()
    with pytest.raises(BundleError, match=rf"{table}\.csv: No such file"):
        read_bundle(folder)


def test_an_empty_file_is_named(folder):
    (folder / "factor.csv").write_bytes(b"")
    with pytest.raises(BundleError, match=r"factor\.csv: column 1 should be 'factor_id', found None"):
        read_bundle(folder)


def test_columns_that_a_later_version_added_at_the_end_are_left_out(folder):
    path = folder / "run.csv"
    head, row, _ = path.read_text().split("\n")
    path.write_text(f"{head},later\n{row},x\n")
    assert "later" not in read_bundle(folder).run
