import re
from dataclasses import replace

import pytest

from tests.support.reports import HOSTILE, bare_report, named_report, sample_report
from tests.views import golden
from torchwatt.core.meter import Event
from torchwatt.views import to_text
from torchwatt.views.report_summary import describe_cost


def test_golden_text():
    golden.check("report.txt", to_text(sample_report()))


@pytest.mark.parametrize("width", [88, 100, 140])
def test_lines_fit_and_columns_align(width):
    lines = to_text(sample_report(), width=width).splitlines()
    assert max(map(len, lines)) <= width
    table = [line for line in lines if re.search(r" (forward|backward) ", line)]
    assert len({re.search(r" (forward|backward) ", line).start() for line in table}) == 1


def test_it_is_ascii_but_for_three_signs():
    assert set(re.findall(r"[^\x00-\x7f]", to_text(sample_report()))) <= {"±", "—", "·"}


def test_every_layer_has_a_forward_and_a_backward_line():
    text = to_text(sample_report())
    assert text.count(" forward ") == text.count(" backward ") == 18
    after = text[text.index("frozen_probe") :].splitlines()
    assert after[1].split()[:2] == ["backward", "—"]


def test_folded_lines_say_how_many_joules_they_hold():
    text = to_text(sample_report(), max_layers=3)
    assert re.search(r"\(15 smaller\) +4\.87 kJ", text)
    assert re.search(r"\(root\) +forward +24\.4 J .* 2\.09 kJ", text)  # of all modules, also those that are not listed
    assert "(optimizer)" in text
    assert re.search(r"all of the above .* 100\.0 %", text)


def test_without_meters_there_are_dashes_and_no_zeros():
    text = to_text(bare_report())
    assert "energy     — · nothing was metered" in text
    assert "0 J" not in text
    assert "no NVIDIA driver" in text
    assert "region=" in text


def test_carbon_says_how_to_get_it():
    text = to_text(sample_report(impacts=(), factors=()))
    assert "No carbon: give region=" in text


@pytest.mark.parametrize(
    ("traced", "said"), [(9, "9 of 40 steps traced, the others filled in from them"), (40, "40 of 40 steps traced")]
)
def test_how_many_steps_were_traced_is_said(traced, said):
    assert describe_cost(replace(sample_report(), traced_steps=traced)).endswith(said)


def test_no_escape_sequence_reaches_the_terminal():
    text = to_text(named_report(*HOSTILE), max_layers=50)
    assert not [char for char in text if not char.isprintable() and char != "\n"]


def test_a_flood_of_warnings_is_cut_and_counted():
    events = tuple(Event(i, "warning", "X", "gpu:0", "again") for i in range(100))
    assert "... and 88 more warnings" in to_text(sample_report(events=events))
