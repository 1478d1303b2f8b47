"""What a person does with a report: sort, open, search, by mouse and by keyboard; panel, commands, history."""

from __future__ import annotations

import csv
import math

import pytest

from tests.browser.conftest import DONE, MODEL, SETUP, choose_view, picture_both, write
from tests.support.heavy import one_of

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]

REPORT = ".tw-root:not(.tw-live) .tw-head h3"
ROWS = ".jp-Notebook .tw-table tbody tr[data-key]"


def run_all(lab, name, reports=1):
    lab.open(name)
    lab.page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")
    lab.page.wait_for_function("n => document.querySelectorAll('.tw-badge').length === n", arg=reports)


@pytest.fixture(scope="module")
def reported(window, folder):
    """Run one profiled cell, save it, end its kernel; return the name of the notebook."""
    cells = (SETUP, "%%energy -o run\ntrain(1)", "print(run.energy_j)")
    write(folder / "reported.ipynb", *cells)
    lab = window.get()
    run_all(lab, "reported.ipynb")
    lab.page.wait_for_function("() => jupyterapp.shell.currentWidget.content.widgets[2].model.outputs.length > 0")
    lab.command("docmanager:save")
    lab.clear()
    return "reported.ipynb"


def keys(lab):
    return lab.page.locator(ROWS).evaluate_all("all => all.map(one => one.dataset.key)")


def test_the_table_sorts_opens_and_searches_by_mouse_and_keyboard(lab, reported):
    lab.open(reported, kernel=False)
    page = lab.page
    page.wait_for_selector(REPORT)
    choose_view(page, "tree")
    page.get_by_role("button", name="collapse all").click()
    few = keys(lab)
    page.get_by_role("button", name="expand all").click()
    assert len(keys(lab)) > len(few) + 15
    page.get_by_role("button", name="layer", exact=True).click()
    inside = [key for key in keys(lab) if key.isdigit()]
    assert inside == sorted(inside, key=int)
    page.get_by_label("search layers").fill("0.2")
    assert keys(lab) == ["(root)", "0", "0.2"]
    page.get_by_label("search layers").fill("")
    page.get_by_role("button", name="collapse all").click()
    page.locator(f"{ROWS}[data-key='(root)']").click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("() => document.activeElement.dataset.key") == "0.0"
    # The notebook did not take the keys for its own: no cell was added, cut or run.
    assert len(lab.cells()) == 3


def test_the_icicle_is_walked_and_looked_into_by_keyboard(lab, reported):
    lab.open(reported, kernel=False)
    page = lab.page
    page.wait_for_selector(REPORT)
    choose_view(page, "tree")
    page.locator(".tw-icicle-map [data-key='(root)']").focus()
    page.keyboard.press("ArrowDown")
    first = page.evaluate("() => document.activeElement.dataset.key")
    assert first in {"0", "1", "2", "3", "4", "5"}
    assert page.locator(f"{ROWS}[data-key='{first}'][aria-selected]").count() == 1
    page.keyboard.press("Enter")
    assert page.locator(".tw-icicle-map [data-key='(root)']").count() == 0
    assert first in page.get_by_role("button", name="all layers").inner_text()
    page.keyboard.press("Escape")
    assert page.locator(".tw-icicle-map [data-key='(root)']").count() == 1


@one_of(DONE, "panel")
def test_the_panel_lists_compares_and_jumps(lab, notebook):
    blank = "x = 0\n" * 60
    cells = (SETUP, "%%energy --name first\ntrain(0.5)", blank, "%%energy --name second\ntrain(1.2)")
    run_all(lab, notebook(*cells), reports=2)
    lab.command("torchwatt:show-panel")
    page = lab.page
    page.wait_for_function("() => document.querySelectorAll('.tw-runs li').length === 2")
    assert [line.split()[0] for line in page.locator(".tw-runs li button").all_inner_texts()] == ["first", "second"]
    page.get_by_label("show first").check()
    page.wait_for_selector(".tw-compare")
    compared = page.locator(".tw-compare").inner_text()
    assert "the whole run" in compared
    assert page.locator(".tw-compare td[data-run='B − A']").first.inner_text() != ""
    picture_both(lab, "panel")
    page.locator(".tw-runs li button").first.click()
    page.wait_for_function("() => jupyterapp.shell.currentWidget.content.activeCellIndex === 1")


@one_of(DONE, "commands")
def test_the_commands_profile_a_cell_and_all_cells(lab, notebook):
    lab.open(notebook(MODEL, "train(0.5)", "train(0.3)"))
    page = lab.page
    page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")
    page.wait_for_function("() => jupyterapp.shell.currentWidget.content.widgets[2].model.executionCount === 3")
    page.evaluate("() => { jupyterapp.shell.currentWidget.content.activeCellIndex = 1 }")
    lab.command("torchwatt:profile-cell")
    page.wait_for_function("() => document.querySelectorAll('.tw-badge').length === 1")
    sources = page.evaluate(
        "() => jupyterapp.shell.currentWidget.content.widgets.map(c => c.model.sharedModel.getSource())"
    )
    assert sources[1:3] == ["%load_ext torchwatt", "%%energy\ntrain(0.5)"]
    lab.command("torchwatt:profile-all")
    page.wait_for_function("() => document.querySelectorAll('.tw-badge').length >= 3")


def test_the_palette_offers_the_commands(lab, notebook):
    lab.open(notebook("1"))
    box = lab.page.locator(".lm-CommandPalette-input")
    for _ in range(20):
        lab.command("apputils:activate-command-palette")
        lab.page.wait_for_timeout(500)
        if box.is_visible():  # a notebook that becomes ready takes the focus, and the palette closes
            break
    box.fill("energy")
    offered = lab.page.locator(".lm-CommandPalette-itemLabel")
    offered.filter(has_text="Profile this cell's energy").wait_for()
    assert offered.filter(has_text="Export energy CSV").count() == 1


def test_the_csv_adds_up_to_the_run(lab, reported):
    lab.open(reported, kernel=False)
    lab.page.wait_for_selector(REPORT)
    with lab.page.expect_download() as download:
        lab.command("torchwatt:export-csv")
    with download.value.path().open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    total = float("".join(o["text"] for o in lab.cells()[2]["outputs"]))
    assert math.fsum(float(row["energy_self_j"]) for row in rows) == pytest.approx(total, rel=1e-4)


@one_of(DONE, "history")
def test_every_cell_is_measured_between_on_and_off_and_the_history_lists_and_jumps(lab, notebook):
    cells = (SETUP, "%energy on", "train(0.4)", "train(0.4)", "%energy off", "train(0.2)", "%energy history")
    run_all(lab, notebook(*cells), reports=2)
    page = lab.page
    page.wait_for_selector(".tw-history tbody tr")
    names = page.locator(".tw-history tbody tr td:first-child").all_inner_texts()
    assert names == ["In [3]", "In [4]"]
    page.locator(".tw-history button").last.click()
    page.wait_for_function("() => jupyterapp.shell.currentWidget.content.activeCellIndex === 3")


def test_plugins_can_be_disabled_by_themselves(lab):
    plugins = lab.page.evaluate("() => [...jupyterapp.listPlugins()].filter(id => id.startsWith('torchwatt:'))")
    assert sorted(plugins) == [
        f"torchwatt:{name}" for name in ("badge", "commands", "mime", "panel", "sessions", "settings", "status")
    ]
