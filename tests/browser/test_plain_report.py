"""The report in a JupyterLab without our extension: as it runs, saved, without a kernel, and not trusted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest

from tests.notebook.lab import Lab, picture
from tests.support.reports import sample_report
from torchwatt.views import to_html_page

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).resolve().parents[2]
REPORT = ".jp-OutputArea-output.jp-RenderedHTMLCommon:has(img[alt^='power over time'])"
SCALE = {"n": 1e-9, "µ": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6}


@pytest.fixture(scope="module")
def plain_window(chromium, address):
    """Return one window for all tests, without our extension. Nothing in it asks another machine."""
    made = Lab(chromium, address, height=2400, extension=False)
    yield made
    made.close()
    assert made.elsewhere() == []


@pytest.fixture
def open_notebook(plain_window):
    def open_(name):
        plain_window.clear()
        plain_window.open(name, kernel=False)
        plain_window.page.locator(REPORT).wait_for()
        return plain_window

    return open_


@pytest.fixture(scope="module")
def ran(plain_window, folder):
    """Run the example to its first report, save it, and end its kernel; return what the page and `run` showed."""
    notebook = nbformat.read(REPOSITORY / "examples" / "energy.ipynb", as_version=4)
    # Up to its first report, and learned to the end, in another test: here it is about what is seen.
    last = next(i for i, cell in enumerate(notebook.cells) if cell.source.startswith("%%energy"))
    notebook.cells = notebook.cells[: last + 1]
    notebook.cells[last].source = notebook.cells[last].source.replace("range(12)", "range(2)")
    notebook.cells.append(nbformat.v4.new_code_cell("print(repr(run.energy_j))"))
    nbformat.write(notebook, folder / "energy.ipynb")
    plain_window.open("energy.ipynb")
    cells = plain_window.run_all()
    text = plain_window.page.locator(REPORT).inner_text()
    picture(plain_window.page, "lab")
    plain_window.command("docmanager:save")
    plain_window.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    return {"cells": cells, "text": text, "asked": list(plain_window.options), "elsewhere": plain_window.elsewhere()}


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
    picture(mailed.page, "untrusted")


def test_a_report_of_a_failed_cell_stands_above_its_error(plain_window, folder):
    cells = ["%load_ext torchwatt\nimport time", "%%energy -o run\ntime.sleep(0.3)\n1 / 0", "print('ran')"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}  # without one, JupyterLab asks
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata={"kernelspec": kernel}
    )
    nbformat.write(notebook, folder / "fails.ipynb")
    plain_window.clear()
    plain_window.open("fails.ipynb")
    ran = plain_window.run_all()
    plain_window.page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").wait_for()
    picture(plain_window.page, "failed-cell")
    plain_window.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")
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
        picture(page, f"page-{scheme}", full_page=True)
        context.close()
