"""The first look: a strip while a cell runs, a card when it has ended, and what the cell prints always in sight."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import nbformat
import pytest

from tests.browser.conftest import SETUP, THEMES, check_axe, ours, write
from tests.browser.test_live import LIVE, start
from tests.notebook.kernel import MIME
from tests.notebook.lab import picture, server
from tests.support.heavy import some_of

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]

STRIP_PX, CARD_PX, GAP_PX, LINE_PX = 120, 240, 40, 20
CARD = ".tw-report"
PRINTING = """%%energy -o run --region FRA
import time
end, n = time.monotonic() + 9, 0
while time.monotonic() < end:
    train(0.2, rest_s=0.02)
    n += 1
    run.count("image", 64)
    print("log line", n, flush=True)"""
# Heights of our view, and where it and the newest line of the log are in the window.
PLACES = """selector => {
    const box = node => { const {top, bottom, height} = node.getBoundingClientRect(); return {top, bottom, height}; };
    const logs = [...document.querySelectorAll('.jp-OutputArea-output pre')].filter(
        one => one.textContent.includes('log line'));
    return {view: box(document.querySelector(selector)), log: box(logs[logs.length - 1]), window: innerHeight}; }"""


def check_order(places, most_px):
    """Check that a view is low, and that the log begins right below it, in the window."""
    assert 0 < places["view"]["height"] <= most_px
    assert -1 <= places["log"]["top"] - places["view"]["bottom"] <= GAP_PX
    assert places["log"]["top"] + LINE_PX <= places["window"]


@pytest.mark.usefixtures("axe")
def test_the_log_stays_in_sight_under_the_strip_and_under_the_card(lab, notebook):
    lab.open(notebook("%load_ext torchwatt", SETUP, PRINTING))
    page = lab.page
    start(lab)
    page.wait_for_selector(f"{LIVE} [data-figure='per image']")
    page.wait_for_function("() => document.querySelectorAll('.tw-live .tw-top-group:not([hidden])').length > 1")
    page.set_viewport_size({"width": 1280, "height": 900})
    check_order(page.evaluate(PLACES, ".tw-live .tw-strip"), STRIP_PX)
    for theme in reversed(THEMES.values()):
        lab.theme(theme)
        check_axe(page, ".tw-live .tw-strip")
    assert page.locator(".tw-live .tw-strip").is_visible()  # the cell still runs
    text = page.locator(".tw-live .tw-strip").inner_text()
    assert "power now" in text
    assert "energy so far" in text
    picture(page, "strip")
    page.wait_for_selector(CARD)
    page.evaluate("() => { for (const one of document.querySelectorAll('.tw-more')) one.open = false; }")
    page.wait_for_timeout(300)
    check_order(page.evaluate(PLACES, CARD), CARD_PX)
    picture(page, "card")


@pytest.mark.heavy
def test_the_log_stays_in_sight_in_notebook_7(chromium, folder, tmp_path):
    write(folder / "strip7.ipynb", SETUP, PRINTING)
    with server(folder, tmp_path, module="notebook") as base:
        page = chromium.new_context(viewport={"width": 1280, "height": 900}).new_page()
        faults = []
        page.on("pageerror", lambda error: faults.append(str(error)) if ours(error) else None)
        page.goto(f"{base}/notebooks/strip7.ipynb?{uuid4().hex}")
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=120_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_selector(f"{LIVE} [data-figure='per image']", timeout=120_000)
        check_order(page.evaluate(PLACES, ".tw-live .tw-strip"), STRIP_PX)
        page.wait_for_selector(CARD, timeout=120_000)
        check_order(page.evaluate(PLACES, CARD), CARD_PX)
        picture(page, "card-notebook-7")
        assert faults == []
        page.context.close()


@pytest.fixture
def golden(folder):
    """Return the name of a notebook with the report of the view tests, and one that differs a little."""
    payload = json.loads((Path(__file__).parents[1] / "views" / "golden" / "payload.json").read_text())
    other = {**payload, "run_id": "other", "name": "the same model, with a rather long name"}
    cells = [
        nbformat.v4.new_code_cell(str(n), outputs=[nbformat.v4.new_output("display_data", {MIME: one})])
        for n, one in enumerate((payload, other))
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "golden.ipynb")
    return "golden.ipynb"


def test_a_report_is_folded_until_somebody_opens_it(lab, golden):
    lab.page.evaluate("() => { window.keepFolded = true; }")
    lab.open(golden, kernel=False)
    card = lab.page.locator(CARD).first
    card.wait_for()
    assert not card.locator(".tw-power").is_visible()
    card.locator(".tw-more > summary").focus()
    lab.page.keyboard.press("Enter")
    card.locator(".tw-power .u-over").wait_for()


def test_the_power_is_read_and_zoomed_by_mouse_and_keyboard(lab, golden):
    lab.open(golden, kernel=False)
    page = lab.page
    power = page.locator(f"{CARD} .tw-power").first
    power.locator(".u-over").wait_for()
    power.scroll_into_view_if_needed()
    power.locator(".u-over").hover(position={"x": 300, "y": 60})
    readout, everything = power.locator(".tw-readout"), power.get_by_role("button", name="Show all")
    page.wait_for_function("() => document.querySelector('.tw-readout')?.textContent.includes('gpu:0')")
    text = readout.inner_text()
    assert "of 40" in text
    assert "train" in text
    assert "mostly blocks.*" in text
    assert not everything.is_visible()
    power.focus()
    for key in ("+", "+", "ArrowRight"):
        page.keyboard.press(key)
    everything.wait_for()
    assert readout.inner_text() != text
    page.keyboard.press("0")
    everything.wait_for(state="hidden")
    box = power.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 400, box["y"] + 50, steps=5)
    page.mouse.up()
    everything.click()
    everything.wait_for(state="hidden")
    for line in ("utilisation", "temperature"):
        power.get_by_label(line).check()
    assert "°C" in power.inner_text() or power.locator("canvas").count() == 1
    page.locator(f"{CARD} .tw-power .tw-bands rect[data-row=stages]").first.click()
    everything.wait_for()
    picture(page, "power")


@pytest.mark.parametrize("width", some_of(["180", "220", "330", "500"], 1))
def test_the_comparison_does_not_wrap_and_marks_what_is_not_clear(lab, golden, width):
    lab.open(golden, kernel=False)
    page = lab.page
    page.wait_for_selector(CARD)
    lab.command("torchwatt:show-panel")
    page.get_by_label("show train tiny GPT").check()
    page.get_by_label("show the same model, with a rather long name").check()
    page.wait_for_selector(".tw-compare")
    page.evaluate(
        """px => {
            const panel = document.querySelector('.tw-compare').closest('.jp-SidePanel, .lm-StackedPanel');
            const split = jupyterapp.shell._hsplitPanel;
            const place = split.widgets.findIndex(one => one.node.contains(panel));
            const sizes = split.widgets.map(one => one.node.offsetWidth);
            const more = px - sizes[place];
            sizes[place] += more;
            sizes[1] -= more;
            split.setRelativeSizes(sizes);
        }""",
        max(int(width), 250),
    )
    if int(width) < 250:  # JupyterLab's least width of a side panel
        page.evaluate("px => { document.querySelector('.tw-compare').parentElement.style.width = `${px}px`; }", width)
    whole = page.locator(".tw-compare tbody[data-name='the whole run']").inner_text()
    assert "no clear difference" in whole
    assert "/step" in whole
    heights = page.locator(".tw-compare :is(td > div, .tw-name)").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect().height)"
    )
    assert max(heights) < (24 if int(width) > 200 else 40)  # narrower than the panel opens, a name takes a second line
    cut = page.locator(".tw-compare td > div").evaluate_all(
        "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.textContent)"
    )
    assert cut == []
    picture(page, f"comparison-{width}")
