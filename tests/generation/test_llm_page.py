"""docs/llm.md: its programs run and print what stands below them, and its tables name what there is."""

import contextlib
import io
import os
import re

import pytest
import torch

import torchwatt as tw
from tests.conftest import REPOSITORY
from tests.support.lazy_module import skip_without
from torchwatt.core.requests import generation_figures
from torchwatt.reports.dataframes import TOKEN_COLUMNS

os.environ.setdefault("HF_HUB_OFFLINE", "1")
skip_without("transformers", reason="the page is about its generate")

PAGE = (REPOSITORY / "docs" / "llm.md").read_text(encoding="utf-8")

BOUNDARY = "cpu + ram (modelled)"  # of the machine that printed the page


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def words(text):
    """Return the lines without their numbers of seconds and joules; counts are those of the program."""
    return [[word for word in line.split() if not re.fullmatch(r"\d+\.\d{3,}", word)] for line in text.splitlines()]


def names(heading):
    """Return the names in the first column of the table below a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]


def run(block, **names):
    printed, found = io.StringIO(), dict(names)
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "docs/llm.md", "exec"), found)  # noqa: S102  our own page
    return printed.getvalue(), found["run"]


@pytest.mark.usefixtures("one_thread")
def test_the_first_program_prints_what_stands_below_it():
    (shown,) = blocks("text")
    printed, measured = run(blocks("python")[0])
    printed = printed.replace(measured.report.boundary, BOUNDARY)  # of other machines
    assert words(printed.strip()) == words(shown.strip())
    figures = measured.generation["all"]
    assert figures["energy"] == pytest.approx(measured.tokens.energy_j.sum())


@pytest.mark.usefixtures("one_thread")
def test_the_ceiling_of_the_device_and_the_part_that_layers_reached():
    layer = torch.nn.Linear(256, 256)
    with tw.profile(layer, overhead_budget=1.0, live="off") as measured:
        for _ in range(20):
            layer(torch.rand(256, 256))
    block = blocks("python")[1]
    assert "measure_flop_ceiling" in block
    run(block, tw=tw, run=measured)
    assert len(measured.flop_utilisation(tw.measure_flop_ceiling(seconds=0.1)))


@pytest.mark.usefixtures("one_thread")
def test_a_loop_of_ones_own():
    _, measured = run(blocks("python")[2])
    first = measured.tokens.drop_duplicates("request")
    assert list(zip(first.input_tokens, first.output_tokens, strict=True)) == [(20, 16)] * 10
    assert (measured.tokens.time_s > 0).all()


def test_the_tables_name_every_column_and_every_figure():
    assert names("Requests") == list(TOKEN_COLUMNS)
    assert names("Figures") == [figure.name for figure in generation_figures(())]
