"""A notebook that was saved: without a kernel, from somebody else, and in Notebook 7."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest

from tests.browser.conftest import SETUP, SHOWN, ours, picture_both, write
from tests.notebook.lab import UNFOLD, server
from tests.support.heavy import one_of

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]

REPORT = ".tw-root:not(.tw-live) .tw-head h3"
NUMBERS = "() => [...document.querySelectorAll('.tw-figure-value, .tw-table td')].map(one => one.textContent)"
MAX_GROWTH = 200_000


@pytest.fixture(scope="module")
def saved(window, folder):
    """Run two profiled cells, save, end the kernel; return what the page showed."""
    cells = [SETUP, "%%energy --region FRA --name small\ntrain(0.6)", "%%energy --region FRA --name large\ntrain(1.5)"]
    write(folder / "saved.ipynb", *cells)
    before = (folder / "saved.ipynb").stat().st_size
    lab = window.get(height=2600)
    lab.open("saved.ipynb")
    lab.page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")
    lab.page.wait_for_function("() => document.querySelectorAll('.tw-badge').length === 2")
    shown = {"numbers": lab.page.evaluate(NUMBERS), "badges": badges(lab)}
    lab.command("docmanager:save")
    lab.clear()
    return {**shown, "growth": (folder / "saved.ipynb").stat().st_size - before}


def badges(lab):
    lab.page.wait_for_function("() => document.querySelectorAll('.tw-badge').length === 2")
    return lab.page.locator(".tw-badge").all_inner_texts()


def test_report_and_badges_are_there_without_a_kernel(saved, lab):
    lab.open("saved.ipynb", kernel=False)
    lab.page.wait_for_selector(REPORT)
    assert badges(lab) == saved["badges"]
    assert lab.page.evaluate(NUMBERS) == saved["numbers"]
    assert not lab.has_kernel()
    for badge in saved["badges"]:
        assert " J" in badge or " mJ" in badge
        assert "CO2e" in badge
        assert "% of the notebook" in badge
    lab.page.locator(".tw-badge").first.scroll_into_view_if_needed()
    picture_both(lab, "badge")


def test_a_report_adds_little_to_the_file(saved):
    assert 0 < saved["growth"] / 2 < MAX_GROWTH


def test_a_notebook_that_is_not_trusted_shows_every_number(saved, lab, folder):
    document = json.loads((folder / "saved.ipynb").read_text(encoding="utf-8"))
    document["cells"][1]["source"] = ["# Sent by mail"]
    (folder / "mailed.ipynb").write_text(json.dumps(document), encoding="utf-8")
    lab.open("mailed.ipynb", kernel=False)
    lab.page.wait_for_selector(REPORT)
    badges(lab)
    assert not any(cell["trusted"] for cell in lab.cells() if cell["outputs"])
    assert lab.page.evaluate(NUMBERS) == saved["numbers"]


@one_of(SHOWN, "notebook 7")
def test_notebook_7_draws_the_report_and_the_badges(saved, chromium, folder, tmp_path):
    with server(folder, tmp_path, module="notebook") as base:
        context = chromium.new_context(viewport={"width": 1280, "height": 1500})
        page = context.new_page()
        page.add_init_script(UNFOLD)
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)) if ours(error) else None)
        page.goto(f"{base}/notebooks/saved.ipynb?{uuid4().hex}")
        page.wait_for_selector(REPORT, timeout=120_000)
        page.wait_for_function("() => document.querySelectorAll('.tw-badge').length === 2")
        assert page.evaluate(NUMBERS) == saved["numbers"]
        assert errors == []
        context.close()
