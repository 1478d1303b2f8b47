"""The report in a real JupyterLab: as it runs, saved, opened again without a kernel, and in a notebook not trusted."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import nbformat
import pytest

from tests.support.reports import sample_report
from torchwatt.views import to_html_page

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).resolve().parents[2]
PICTURES = REPOSITORY / "test-output"
CHROMIUM = "/usr/bin/chromium"
REQUIRE = "TORCHWATT_REQUIRE_BROWSER"
REPORT = ".jp-OutputArea-output.jp-RenderedHTMLCommon:has(img[alt^='power over time'])"
SCALE = {"n": 1e-9, "µ": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6}


@pytest.fixture(scope="module")
def chromium():
    if not os.access(CHROMIUM, os.X_OK):
        if os.environ.get(REQUIRE):
            pytest.fail(f"{REQUIRE} is set, but there is no {CHROMIUM}: apt-get install chromium")
        pytest.skip(f"no {CHROMIUM}: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    from tests.notebook.lab import CHROMIUM_FLAGS

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="module")
def address(chromium, folder, tmp_path_factory):
    from tests.notebook.lab import server

    with server(folder, tmp_path_factory.mktemp("home")) as base:
        yield base


@pytest.fixture(scope="module")
def window(chromium, address):
    """Return one window for all tests: JupyterLab takes seconds to start in it. Nothing in it asks another machine."""
    from tests.notebook.lab import Lab

    made = Lab(chromium, address, height=2400)
    yield made
    made.close()
    assert made.elsewhere() == []


@pytest.fixture
def open_notebook(window):
    def open_(name):
        window.clear()
        window.open(name, kernel=False)
        window.page.locator(REPORT).wait_for()
        return window

    return open_


@pytest.fixture(scope="module")
def ran(window, folder):
    """Run the example to its first report, save it, and end its kernel; return what the page and `run` showed."""
    notebook = nbformat.read(REPOSITORY / "examples" / "energy.ipynb", as_version=4)
    # Up to its first report, and learned to the end, in another test: here it is about what is seen.
    last = next(i for i, cell in enumerate(notebook.cells) if cell.source.startswith("%%energy"))
    notebook.cells = notebook.cells[: last + 1]
    notebook.cells[last].source = notebook.cells[last].source.replace("range(12)", "range(2)")
    notebook.cells.append(nbformat.v4.new_code_cell("print(repr(run.energy_j))"))
    nbformat.write(notebook, folder / "energy.ipynb")
    window.open("energy.ipynb")
    cells = window.run_all()
    text = window.page.locator(REPORT).inner_text()
    window.page.screenshot(path=_picture("lab-light"))
    window.theme("JupyterLab Dark")
    window.page.screenshot(path=_picture("lab-dark"))
    window.theme("JupyterLab Light")
    window.command("docmanager:save")
    window.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    return {"cells": cells, "text": text, "asked": list(window.options), "elsewhere": window.elsewhere()}


def _picture(name: str) -> Path:
    PICTURES.mkdir(exist_ok=True)
    return PICTURES / f"{name}.png"


def _drawn(lab):
    """Return of each element of the report its name, its own text, and what the browser computed of its look."""
    return lab.page.locator(REPORT).evaluate(
        """report => [...report.querySelectorAll('*')].map(element => {
            const look = getComputedStyle(element), place = element.getBoundingClientRect();
            const own = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join('|');
            return [element.tagName, own, look.backgroundImage, look.backgroundColor, look.fontSize, look.fontWeight,
                look.display, look.opacity, look.border, Math.round(place.width), Math.round(place.height)];
        })"""
    )


def test_run_all_shows_the_report_with_the_total_of_the_run(ran):
    errors = [o for cell in ran["cells"] for o in cell["outputs"] if o["output_type"] == "error"]
    assert errors == []
    energy_j = float("".join(ran["cells"][-1]["outputs"][0]["text"]))
    shown = re.search(r"([\d.]+) ([nµmkM]?)J", ran["text"])
    decimals = len(shown[1].partition(".")[2])
    assert f"{energy_j / SCALE[shown[2]]:.{decimals}f}" == shown[1]
    for word in ("forward", "backward", "Conv2d", "per image", "FRA", "CO2e", "modelled"):
        assert word in ran["text"]


def test_nothing_is_asked_of_another_machine(ran):
    assert len(ran["asked"]) > 10
    assert ran["elsewhere"] == []


def test_the_saved_report_is_there_without_a_kernel(ran, open_notebook):
    lab = open_notebook("energy.ipynb")
    assert lab.page.locator(REPORT).inner_text().split() == ran["text"].split()
    assert not lab.has_kernel()
    assert all(cell["trusted"] for cell in lab.cells() if cell["outputs"])


def test_a_notebook_that_is_not_trusted_looks_the_same(ran, open_notebook, folder):
    # A notebook is trusted by its content: one changed line makes it somebody else's.
    saved = json.loads((folder / "energy.ipynb").read_text(encoding="utf-8"))
    saved["cells"][0]["source"] = ["# Sent by mail"]
    (folder / "mailed.ipynb").write_text(json.dumps(saved), encoding="utf-8")
    own = _drawn(open_notebook("energy.ipynb"))
    mailed = open_notebook("mailed.ipynb")
    assert not any(cell["trusted"] for cell in mailed.cells() if cell["outputs"])
    drawn = _drawn(mailed)
    assert drawn == own
    assert sum("linear-gradient" in look[2] for look in drawn) > 10
    curve = mailed.page.locator(REPORT).locator("img")
    assert curve.evaluate("image => image.complete && image.naturalWidth > 100")
    mailed.page.screenshot(path=_picture("untrusted-light"))
    mailed.theme("JupyterLab Dark")
    mailed.page.screenshot(path=_picture("untrusted-dark"))


def test_a_report_of_a_failed_cell_stands_above_its_error(window, folder):
    cells = ["%load_ext torchwatt\nimport time", "%%energy -o run\ntime.sleep(0.3)\n1 / 0", "print('ran')"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}  # without one, JupyterLab asks
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata={"kernelspec": kernel}
    )
    nbformat.write(notebook, folder / "fails.ipynb")
    window.clear()
    window.open("fails.ipynb")
    ran = window.run_all()
    window.page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").wait_for()
    window.page.screenshot(path=_picture("failed-cell"))
    window.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    assert [o["output_type"] for o in ran[1]["outputs"]] == ["display_data", "error"]
    assert ran[2]["outputs"] == []


def test_the_page_in_a_file_opens_without_a_network(chromium, folder):
    target = folder / "page.html"

    target.write_text(to_html_page(sample_report()), encoding="utf-8")
    for scheme in ("light", "dark"):
        context = chromium.new_context(viewport={"width": 1100, "height": 900}, color_scheme=scheme, offline=True)
        page = context.new_page()
        page.goto(target.as_uri())
        assert "7.40 kJ" in page.locator("body").inner_text()
        page.screenshot(path=_picture(f"page-{scheme}"), full_page=True)
        context.close()
