import json
from dataclasses import replace
from math import fsum

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.reports import HOSTILE, bare_report, named_report, sample_report
from tests.views import golden
from torchwatt.core.meter import Event
from torchwatt.reports.report_result import MAX_HTML_BYTES
from torchwatt.views import MIME, format_energy, to_html_fragment, to_payload, to_text
from torchwatt.views.report_payload import MAX_PAYLOAD_BYTES, json_number


def test_golden_payload():
    golden.check("payload.json", json.dumps(to_payload(sample_report()), indent=1, allow_nan=False) + "\n")


def test_its_type_says_its_version():
    value = to_payload(sample_report())
    assert f"application/vnd.{value['schema']}.v{value['version']}+json" == MIME


@pytest.mark.parametrize(
    "report", [sample_report(), bare_report(), named_report(*HOSTILE)], ids=["full", "bare", "odd"]
)
def test_it_is_json_and_comes_back_the_same(report):
    value = to_payload(report)
    assert json.loads(json.dumps(value, allow_nan=False)) == value


@given(st.integers(1, 10**9).map(lambda n: n / 2 * 1e-6) | st.floats(1e-6, 3e6))
@example(0.50050004)
def test_a_number_that_is_sent_is_shown_as_python_shows_it(energy_j):
    assert format_energy(json_number(energy_j)) == format_energy(energy_j)


def test_missing_is_null():
    value = to_payload(bare_report())
    assert value["energy"] == {
        "value_j": None,
        "interval_90_j": None,
        "systematic_j": None,
        "systematic_text": "",
        "provenance": None,
        "text": "—",
    }
    assert value["carbon"]["value_g"] is None
    assert "region=" in value["carbon"]["how"]
    assert value["layers"] == value["curves"] == []


def test_the_tree_points_back_and_adds_up():
    value = to_payload(sample_report())
    rows = value["layers"]
    assert all(row["parent"] is None or row["parent"] < index for index, row in enumerate(rows))
    tops = fsum(fsum(row["total_j"].values()) for row in rows if row["parent"] is None)
    reserved = fsum(fsum(row["self_j"].values()) for row in value["reserved"])
    assert tops + reserved == pytest.approx(value["energy"]["value_j"], rel=1e-4)


def test_a_huge_report_stays_small_and_says_what_it_folded():
    names = [f"model.layers.{i}." + "x" * 900 for i in range(3000)]
    events = tuple(Event(i, "warning", "X" * 900, "y" * 900, "z" * 9000) for i in range(3000))
    value = to_payload(named_report(*names))
    assert len(json.dumps(value)) < MAX_PAYLOAD_BYTES
    assert value["folded"] is None
    (folded,) = [row for row in value["layers"] if "folded" in row]
    assert folded["folded"] > 2000
    assert folded["fqn"] == f"model.layers.({folded['folded']} smaller)"
    assert value["layers"][folded["parent"]]["fqn"] == "model.layers"
    assert fsum(fsum(row["self_j"].values()) for row in value["layers"]) == pytest.approx(9000.0)
    assert len(json.dumps(to_payload(sample_report(events=events)))) < MAX_PAYLOAD_BYTES


def test_no_host_name_leaves_in_a_notebook():
    assert "node-17" not in json.dumps(to_payload(sample_report()))


@pytest.mark.parametrize("length", [1, 900])
def test_a_report_adds_less_than_200_kb_to_a_notebook_and_loses_no_joule(length):
    names = [f"model.layers.{i}.{kind}{'x' * length}" for i in range(300) for kind in ("q", "k", "v", "o", "up")]
    events = tuple(Event(i, "warning", "X" * 900, "y" * 900, "z" * 9000) for i in range(3000))
    report = replace(named_report(*names), events=events)
    html = to_html_fragment(report, max_bytes=MAX_HTML_BYTES)
    texts = (to_text(report), html, json.dumps(to_payload(report)))
    assert sum(len(part.encode()) for part in texts) < 200_000
    assert " smaller)" in html
