"""`attribute`, `recover` and `merge` write as `run` does: never over anything but a page or, when asked, a bundle."""

import argparse

import pytest

from tests.support.bundles import offline_report
from torchwatt.audit import verify
from torchwatt.cli import attribute_command, report_commands
from torchwatt.cli.report_commands import ReportOutputs, add_output_options
from torchwatt.core.errors import ConfigError


def lines(report, *args):
    parser = argparse.ArgumentParser()
    add_output_options(parser)
    return list(ReportOutputs.asked_for(parser.parse_args([str(arg) for arg in args])).write(report))


@pytest.fixture
def report():
    return offline_report()


def test_a_second_run_goes_beside_the_first_and_says_so(report, tmp_path):
    target = tmp_path / "audit"
    assert lines(report, "--csv", target) == [f"written: {target}"]
    said = lines(report, "--csv", target)
    assert said == [f"{target} is not empty: this run is in {target}-2", f"written: {target}-2"]
    assert verify(f"{target}-2").ok


def test_overwrite_replaces_a_bundle_and_nothing_else(report, tmp_path):
    target, other = tmp_path / "audit", tmp_path / "thesis"
    lines(report, "--csv", target)
    assert lines(report, "--csv", target, "--overwrite") == [f"written: {target}"]
    assert verify(target).ok
    other.mkdir()
    (other / "chapter.txt").write_text("years")
    with pytest.raises(ConfigError, match="is not a bundle"):
        lines(report, "--csv", other, "--overwrite")
    assert [path.name for path in other.iterdir()] == ["chapter.txt"]


def test_a_page_is_overwritten_and_folders_on_the_way_are_named(report, tmp_path):
    page = tmp_path / "new" / "report.html"
    assert lines(report, "--html", page) == [
        f"created the folder {tmp_path / 'new'} for html={str(page)!r}", f"written: {page}"
    ]  # fmt: skip
    assert lines(report, "--html", page) == [f"written: {page}"]


@pytest.mark.parametrize(
    ("add_parser", "args"),
    [
        (attribute_command.add_attribute_parser, ["attribute", "--trace", "t.json", "--out", "audit", "--overwrite"]),
        (report_commands.add_recover_parser, ["recover", "journal", "--csv", "audit", "--overwrite"]),
        (report_commands.add_merge_parser, ["merge", "job", "--csv", "audit", "--overwrite"]),
    ],
)
def test_each_command_has_the_options(add_parser, args):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    asked = parser.parse_args(args)
    assert (asked.csv, asked.overwrite) == ("audit", True)
