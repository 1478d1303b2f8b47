import re
from dataclasses import replace

import pytest

from tests.support.reports import HOSTILE, bare_report, named_report, sample_report
from tests.views import golden
from torchwatt.core.meter import Event
from torchwatt.core.plain_text import to_encodable
from torchwatt.views import VIEWS, to_text
from torchwatt.views.layer_sums import PROVENANCE_GLYPHS
from torchwatt.views.report_summary import describe_cost


def test_golden_text():
    golden.check("report.txt", to_text(sample_report()))


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_lines_fit_and_columns_align(width):
    lines = to_text(sample_report(), width=width).splitlines()
    assert max(map(len, lines)) <= width
    rules = [n for n, line in enumerate(lines) if line == "-" * width]
    table = lines[rules[0] + 1 : rules[1]]
    assert len(table) == 17
    assert len({line.index(" %") for line in table}) == 1
    assert len({len(line) for line in table}) == 1


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("width", [88, 100, 140])
def test_no_name_and_no_digit_is_cut_in_any_view(view, width):
    text = to_text(sample_report(), width=width, by=view)
    table = text[text.index("layers, ") : text.index("How this was measured")]
    assert max(map(len, table.splitlines())) <= width
    assert "..." not in table


@pytest.mark.parametrize("max_layers", [3, 20])
@pytest.mark.parametrize("view", VIEWS)
def test_in_sixty_columns_names_of_rows_that_are_no_module_are_whole(view, max_layers):
    text = to_text(sample_report(), width=60, by=view, max_layers=max_layers)
    table = text[text.index("layers, ") : text.index("How this was measured")]
    assert max(map(len, table.splitlines())) <= 60
    assert "all of the above" in table
    assert not re.search(r"\.\.\.\S*\)|\(\S*\.\.\.", table)
    if view == "tree" and max_layers == 3:
        assert len(re.findall(r"^ *\(\d+ smaller\) ", table, re.MULTILINE)) == 3


def test_it_is_ascii_but_for_three_signs_and_the_glyphs():
    signs = set(re.findall(r"[^\x00-\x7f]", to_text(sample_report())))
    assert signs <= {"±", "—", "·", *PROVENANCE_GLYPHS.values()}
    assert not set(to_encodable(to_text(sample_report()), "ascii")) & set(PROVENANCE_GLYPHS.values())


def test_a_terminal_without_the_glyphs_shows_letters_that_differ():
    letters = [to_encodable(glyph, "ascii") for glyph in PROVENANCE_GLYPHS.values()]
    assert len(set(letters)) == len(letters) == 7
    assert all(len(letter) == 1 for letter in letters)


def test_the_answer_comes_first_and_how_it_was_measured_last():
    text = to_text(sample_report())
    lines = text.splitlines()
    assert lines[1].startswith("7.40 kJ (90 % of repeats: 7.18 to 7.62 kJ) in 24.0 s, 170 J per training step")
    assert text.index("Most of it:") < text.index("layers, blocks") < text.index("How this was measured")
    after = text[text.index("How this was measured") :]
    for word in ("NVIDIA H200", "DRAM 0 and PSYS", "no dram zone in powercap", "138 mg CO2e", "SHARED_DEVICE", "310 W"):
        assert word in after
        assert word not in text[: text.index("How this was measured")]


def test_each_layer_has_its_forward_and_backward_joules():
    text = to_text(sample_report(), by="hottest")
    probe = next(line for line in text.splitlines() if line.startswith("frozen_probe"))
    assert re.search(r"18\.3 J +—", probe)


def test_folded_lines_say_how_many_joules_they_hold():
    text = to_text(sample_report(), max_layers=3, by="hottest")
    assert re.search(r"15 more +4\.27 kJ", text)
    tree = to_text(sample_report(), max_layers=3, by="tree")
    assert re.search(r"\(root\) +6\.30 kJ +36\.6 J", tree)  # of all modules, also those that are not listed
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
