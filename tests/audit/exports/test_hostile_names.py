"""Names that no file format likes: every export holds them, and every reader of ours reads them back."""

from dataclasses import replace
from io import BytesIO

import openpyxl
import pytest

from tests.audit.exports.test_boamps import DECLARED
from tests.support.heavy import heavy_unless, some_of
from tests.support.priced_bundles import priced
from tests.support.reports import HOSTILE, named_report, sample_report
from torchwatt.audit import verify, write_bundle
from torchwatt.audit.exports import FORMATS, export
from torchwatt.audit.fleet import open_lake
from torchwatt.audit.fleet.ingestion import ingest
from torchwatt.cli.command_parser import run_command

LONG = ("x" * 131_073, "\x01" * 200_000, '"' * 150_000, "\u00e9\u2028" * 80_000, "\ud800" * 140_000, "a,b\n" * 9**5)
STAGE = {"lifecycle_stage": "pretraining"}
MUST_DECLARE = {"boamps": DECLARED, "huggingface": {"zone": "FRA"}, "sci-ai": STAGE, "spdx": STAGE, "cyclonedx": STAGE}
NAMES = ["\x00\x01\x0b\x1f", "\ud800", "\ufffe\uffff", "\x1b]0;owned\x07", "=cmd()", "x" * 40_000, "]]>&<", *HOSTILE]


def test_a_bundle_of_the_longest_names_is_read_by_our_own_commands(tmp_path, capsys):
    bundle = write_bundle(named_report(*LONG, *HOSTILE), tmp_path / "bundle")
    assert verify(bundle).ok, str(verify(bundle))[:1000]
    assert run_command(["verify", str(bundle)]) == 0
    assert run_command(["show", str(bundle), "--all"]) == 0
    assert all(line.isprintable() for line in capsys.readouterr().out.split("\n"))


@pytest.mark.parametrize("number", some_of([str(n) for n in range(len(NAMES))], 6))
@pytest.mark.parametrize("to", heavy_unless(lambda to: to != "spdx", FORMATS))  # its package is in requirements-all.txt
def test_any_name_of_a_run_is_exported(to, number, tmp_path):
    name = NAMES[int(number)]
    report = priced(replace(sample_report(), name=name), intensity_g_per_kwh=50)
    bundle = write_bundle(report, tmp_path / "bundle")
    declared = MUST_DECLARE.get(to, {})
    out = export([bundle], to, tmp_path / "out", declared)
    assert out.exists()
    if to == "xlsx":
        sheet = openpyxl.load_workbook(BytesIO(out.read_bytes()))["runs"]
        assert sheet["B2"].data_type == "s"
        assert len(sheet["B2"].value) >= min(len(name), 5) - 1


def test_a_name_with_half_of_a_surrogate_pair_goes_into_a_lake(tmp_path):
    write_bundle(named_report("\ud800", "fc"), tmp_path / "runs" / "one")
    assert ingest(open_lake(tmp_path / "lake"), [tmp_path / "runs"]).count("added") == 1


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1", "cp1252"])
def test_a_terminal_that_lacks_characters_shows_a_bundle(encoding, tmp_path, monkeypatch):
    import io
    import sys

    bundle = write_bundle(named_report("\u5c64.\u91cd\u307f", "caf\u00e9"), tmp_path / "bundle")
    code, _, errors = encoding.partition(":")
    stream = io.TextIOWrapper(io.BytesIO(), encoding=code, errors=errors or "strict")
    monkeypatch.setattr(sys, "stdout", stream)
    assert run_command(["show", str(bundle), "--all"]) == 0
    stream.flush()
    assert b"\\u5c64" in stream.buffer.getvalue()


@pytest.mark.parametrize(
    "name", ["a\x1b[31m", "line\nOK: all", "\u202egpj.exe", "\x9b2J"], ids=["ansi", "line", "bidi", "c1"]
)
def test_a_folders_own_name_is_text_on_the_terminal(name, tmp_path, capsys):
    """Whoever sends a bundle names its folder as well."""
    bundle = write_bundle(priced(sample_report(), intensity_g_per_kwh=50), tmp_path / name / name)
    lake = str(tmp_path / name / "lake")
    for argv, code in (
        (["verify", str(bundle)], 0),
        (["reprice", str(bundle), "--intensity", "60", "--scenario", "x"], 0),
        (["export", str(bundle), "--to", "codecarbon", "--out", str(tmp_path / name / "out.csv")], 0),
        (["fleet", "ingest", lake, str(bundle)], 0),
        (["fleet", "rollup", lake, "--out", str(tmp_path / name / "sums.csv")], 0),
        (["fleet", "verify", lake], 0),
        (["fleet", "sql", lake], 0),
    ):
        assert run_command(argv) == code, argv
        told = capsys.readouterr()
        lines = (told.out + told.err).split("\n")
        assert all(line.isprintable() for line in lines), argv
        assert "OK: all" not in {line.strip() for line in lines}, argv
