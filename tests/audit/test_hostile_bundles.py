"""A bundle may be anybody's: whatever is in it, verify answers, and says so where a terminal can read it."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tests.support.bundles import cell, rich_report, sealed, tables_of
from tests.support.examples import examples
from tests.support.reports import HOSTILE, named_report
from torchwatt.audit import verify, write_bundle
from torchwatt.audit.seal import GIT_ATTRIBUTES
from torchwatt.audit.verification import file_checks
from torchwatt.core.errors import BundleError

CARELESS = examples(20, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def tables():
    return tables_of(rich_report())


def mangled(draw, data: bytes) -> bytes:
    at = draw(st.integers(0, len(data)))
    kind = draw(st.sampled_from(["cut", "flip", "insert", "repeat"]))
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        return data[:at] + bytes(255 - b for b in data[at : at + 1]) + data[at + 1 :]
    if kind == "insert":
        return data[:at] + draw(st.binary(min_size=1, max_size=20)) + data[at:]
    return data[:at] + data[at // 2 :]


def told(bundle) -> str:
    """Return what verify says; that a bundle is of another major version is an error and no finding."""
    try:
        return str(verify(bundle))
    except BundleError as error:
        if "this torchwatt checks" not in str(error):
            raise
        return ""


@CARELESS
@given(data=st.data())
def test_a_mangled_file_is_found_and_breaks_nothing(tmp_path_factory, data):
    bundle = write_bundle(rich_report(), tmp_path_factory.mktemp("any") / "audit")
    path = data.draw(st.sampled_from(sorted(path for path in bundle.iterdir() if path.name != GIT_ATTRIBUTES)))
    before = path.read_bytes()
    after = mangled(data.draw, before)
    path.write_bytes(after)
    assert verify(bundle).ok == (before == after)


@CARELESS
@given(data=st.data())
def test_a_mangled_table_that_was_sealed_again_breaks_nothing(tmp_path_factory, tables, data):
    name = data.draw(st.sampled_from(sorted(tables)))
    bundle = sealed(tables | {name: mangled(data.draw, tables[name])}, tmp_path_factory.mktemp("any") / "audit")
    told(bundle)


@CARELESS
@given(data=st.data(), text=st.text(max_size=12))
def test_any_text_in_any_cell_breaks_nothing(tmp_path_factory, tables, data, text):
    name = data.draw(st.sampled_from(sorted(name for name in tables if name.endswith(".csv"))))
    spoilt = dict(tables)
    columns = tables[name].decode().split("\n")[0].split(",")
    clean = text.replace("\n", " ").replace("\r", " ").encode(errors="replace").decode()
    cell(spoilt, name, 1, data.draw(st.sampled_from(columns)), clean)
    found = told(sealed(spoilt, tmp_path_factory.mktemp("any") / "audit"))
    assert all(line.isprintable() for line in found.split("\n"))


def test_names_cannot_write_on_the_auditors_terminal(tmp_path):
    tables = tables_of(named_report(*HOSTILE, "\x1b]0;owned\x07"))
    for row in range(1, 2 * len(HOSTILE)):
        cell(tables, "layer.csv", row, "device_id", "'\\u001b[31mgpu")
    found = str(verify(sealed(tables, tmp_path / "audit")))
    assert "REFERENCE layer.csv row 1 column device_id: \\x1b[31mgpu is not there" in found
    assert all(line.isprintable() for line in found.split("\n"))


def test_findings_are_counted_past_the_first_thousand(tmp_path, tables):
    spoilt = dict(tables)
    head, *lines = tables["layer.csv"].decode().splitlines()
    spoilt["layer.csv"] = "\n".join([head, *(line.replace(",40,", ",4x,") for line in lines * 40), ""]).encode()
    found = verify(sealed(spoilt, tmp_path / "audit"))
    assert found.count > 1000 == len(found.findings)
    assert f"and {found.count - 1000} more findings" in str(found)


def test_a_folder_that_is_no_bundle_is_an_error(tmp_path):
    with pytest.raises(BundleError, match="is no folder"):
        verify(tmp_path / "none")
    with pytest.raises(BundleError, match="no bundle"):
        verify(tmp_path)


def test_a_folder_without_a_manifest_is_refused_before_any_of_its_files_is_read(tmp_path, monkeypatch):
    (tmp_path / "large").write_bytes(b"x")
    monkeypatch.setattr(file_checks, "digest", lambda *_: pytest.fail("a file was read"))
    with pytest.raises(BundleError, match="no bundle"):
        verify(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_a_file_that_holds_more_than_its_size_says_is_read_up_to_the_limit(monkeypatch):
    monkeypatch.setattr(file_checks, "MAX_FILE_BYTES", 10)  # a file of /proc has the size 0
    with pytest.raises(OSError, match="more than 10 bytes"):
        file_checks.digest(Path("/proc/self/stat"))
