"""What the first screen answers, at every width, in both themes, by keyboard, and with a screen reader."""

from __future__ import annotations

import re
from itertools import product
from xml.etree import ElementTree as ET

import pytest

from tests.browser.conftest import THEMES, check_axe, choose_view
from tests.browser.model_reports import EVENTFUL, SLOW_DATA, model_report, write_reports
from tests.notebook.lab import picture
from tests.support.heavy import heavy_unless, some_of
from torchwatt.views.html_report import to_html_page
from torchwatt.views.number_format import format_energy
from torchwatt.views.report_payload import to_payload

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]

MODELS = ("gpt-8", "gpt-48", "resnet")
WIDTHS = (390, 900, 1280)
HEIGHT = 800
VIEWS = ("hottest", "blocks", "tree", "type")
PLACES = [*(f"{width}" for width in WIDTHS), "1280 with the panel"]
REPORT = ".jp-OutputArea .tw-report"
# Every text with digits that is wider than what holds it, and everything that is wider than the report.
CUT = """() => { const shown = one => one.checkVisibility({contentVisibilityAuto: true, opacityProperty: true});
    const holders = '.tw-root :is(td, th, li, .tw-figure-value, .tw-figure-detail, .tw-answer, .tw-meters, .tw-note,'
        + ' .tw-foot)';
    const cut = [...document.querySelectorAll(holders)].filter(one => shown(one) && /\\d/.test(one.textContent)
        && !one.matches('.tw-name') && one.scrollWidth > one.clientWidth + 1);
    const wide = [...document.querySelectorAll('.tw-root')].filter(one => one.scrollWidth > one.clientWidth + 1);
    return [...cut, ...wide].map(one => `${one.className} ${one.textContent.slice(0, 60)}`) }"""
# The answer, as far as it is on the first screen.
SEEN = """height => [...document.querySelectorAll('.jp-OutputArea .tw-report :is(.tw-answer, .tw-hint, .tw-meters)')]
    .filter(one => one.getBoundingClientRect().bottom <= height).map(one => one.innerText).join('\\n')
    .replaceAll('\\u00a0', ' ')"""
OPEN = "() => document.querySelectorAll('.tw-root details').forEach(one => { one.open = !one.matches('.tw-export') })"


@pytest.fixture
def shown(lab, folder):
    """Return a function that opens a notebook with the reports of models, and waits until they are drawn."""

    def open_(*models: str, width: int = 1280, panel: bool = False):
        write_reports(folder / "reports.ipynb", *(model_report(model) for model in models))
        lab.page.set_viewport_size({"width": width, "height": HEIGHT})
        lab.open("reports.ipynb", kernel=False)
        lab.page.locator(f"{REPORT} .tw-layers-view").first.wait_for(state="attached")
        if panel:
            lab.command("torchwatt:show-panel")
            lab.page.locator(".tw-panel .tw-layers-view").wait_for()
        return lab.page

    yield open_
    lab.theme(THEMES["light"])


USUAL = {(EVENTFUL, "390", "light"), ("gpt-48", "1280 with the panel", "dark")}


@pytest.mark.parametrize(
    ("model", "place", "theme"), heavy_unless(lambda case: case in USUAL, product((*MODELS, EVENTFUL), PLACES, THEMES))
)
def test_no_digit_is_cut_at_any_width_in_any_view(lab, shown, model, place, theme):
    page = shown(model, width=int(place.split()[0]), panel="panel" in place)
    lab.theme(THEMES[theme])
    name = f"{model}-{place.replace(' ', '-')}-{theme}"
    picture(page, name)
    for view in VIEWS:
        choose_view(page, view)
        assert page.evaluate(CUT) == [], (view, place)
        picture(page, f"{name}-{view}")
    page.evaluate(OPEN)
    for _ in range(60):  # what was folded is drawn in the next frames, on a busy machine later
        page.wait_for_timeout(300)
        if not (cut := page.evaluate(CUT)):
            break
    assert cut == [], place


@pytest.mark.parametrize("model", heavy_unless(lambda model: model == "gpt-48", MODELS))
def test_the_first_screen_answers_the_ten_second_questions(shown, model):
    page = shown(model)
    report, payload = model_report(model), to_payload(model_report(model))
    page.evaluate("() => { for (const one of document.querySelectorAll('.tw-more')) one.open = false; }")
    text = page.evaluate(SEEN, HEIGHT)
    picture(page, f"first-screen-{model}")
    named = text.partition("Most of it: ")[2].split(",")[0]
    shares = [group["share"] for group in payload["groups"]["hottest"] if group["name"] in named]
    assert re.fullmatch(r".+ \d+ %", named)  # which group uses most
    assert all(round(100 * share) <= int(named.split()[-2]) for share in shares)
    assert f"{payload['rates'][0]['value']} per step" in text  # how many joules a step
    groups = payload["groups"]["type"]
    waiting = [group for group in groups if group["name"] == "(data)" and group["share"] >= 0.01]
    assert bool(waiting) == ("waiting for data" in text)  # is anything waiting
    assert ("90 % of repeats" in text) == (payload["energy"]["interval_90_j"] is not None)  # how sure is it
    assert "all of it modelled" in text  # what was measured, what estimated
    assert format_energy(report.energy_j) in text


def test_the_first_screen_says_that_the_run_waited_for_data(shown):
    page = shown(SLOW_DATA)
    report = model_report(SLOW_DATA)
    data = next(group for group in to_payload(report)["groups"]["type"] if group["name"] == "(data)")
    seconds = {entry.time_self_s for ledger in report.counted for entry in ledger.entries if entry.fqn == "(data)"}
    seen = page.evaluate(SEEN, HEIGHT)
    picture(page, "first-screen-slow-data")
    assert f"waiting for data {100 * data['share']:.0f} %" in seen
    assert f"Waiting for data took {100 * max(seconds) / report.duration_s:.0f} % of the time" in seen
    assert max(seconds) > 1.0  # the program slept for 1.2 s


@pytest.mark.usefixtures("axe")
@pytest.mark.parametrize("theme", some_of(THEMES, 1))
def test_axe_finds_nothing_in_report_and_panel(lab, shown, theme):
    page = shown("gpt-8", "resnet", panel=True)
    lab.theme(THEMES[theme])
    page.evaluate(OPEN)
    page.wait_for_timeout(300)
    for view in VIEWS:
        choose_view(page, view)
        check_axe(page, ".tw-root")
    page.get_by_label("show gpt-8").check()
    page.wait_for_selector(".tw-panel .tw-compare")
    check_axe(page, ".tw-panel .tw-root")


# The page, and every table of layers that is open.
FITS = """() => document.documentElement.scrollWidth <= innerWidth
    && [...document.querySelectorAll('[cellpadding]')].every(one => one.getBoundingClientRect().right <= innerWidth
    && [...one.querySelectorAll('td')].every(
        cell => cell.scrollWidth <= cell.clientWidth + 1))"""

# Names of rows whose "~" has a line for itself.
LONE = """() => [...document.querySelectorAll('td span')]
    .filter(one => one.textContent === '~' && one.checkVisibility())
    .map(one => [one.getBoundingClientRect().left, one.closest('td')])
    .filter(([left, cell]) => left < cell.getBoundingClientRect().left + 12).map(([, cell]) => cell.textContent)"""


@pytest.mark.usefixtures("axe")
@pytest.mark.parametrize("theme", some_of(THEMES, 1))
def test_axe_finds_nothing_in_the_page(chromium, tmp_path, theme):
    (tmp_path / "report.html").write_text(to_html_page(model_report(EVENTFUL)), encoding="utf-8")
    page = chromium.new_page(color_scheme=theme, bypass_csp=True)
    page.goto((tmp_path / "report.html").as_uri())
    assert page.locator("main h1").count() == 1
    page.evaluate("() => document.querySelectorAll('details').forEach(one => { one.open = true })")
    check_axe(page, "html")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        picture(page, f"page-{width}-{theme}")
        assert page.evaluate(FITS), width
        assert page.evaluate(LONE) == [], width
    page.close()


FOLD = "All figures"
FOCUS = """() => { const one = document.activeElement; const root = one.closest('.tw-report');
    return !root ? '' : one.tagName === 'INPUT' ? `input ${one.type}` : one.tagName === 'TR' ? 'row'
        : one.tagName === 'SUMMARY' ? one.textContent.split(',')[0].split(' (')[0] : one.tagName.toLowerCase() }"""


def test_everything_is_reached_and_used_by_the_keyboard(lab, shown):
    page = shown("gpt-8")
    page.locator(f"{REPORT} .tw-export summary").focus()
    order = []
    for _ in range(30):
        order.append(page.evaluate(FOCUS))
        page.keyboard.press("Tab")
    wanted = ["Export", "Details", "input radio", "input search", "row", FOLD, "How this was measured"]
    assert [each for each in dict.fromkeys(order) if each in wanted] == wanted
    page.locator(f"{REPORT} .tw-switch input:checked").focus()
    chosen = []
    for _ in range(4):
        page.keyboard.press("ArrowRight")
        chosen.append(page.locator(f"{REPORT} .tw-switch input:checked").get_attribute("value"))
    assert sorted(chosen) == sorted(VIEWS)
    choose_view(page, "blocks")
    rows = page.locator(f"{REPORT} .tw-groups tbody tr")
    rows.first.focus()
    page.keyboard.press("ArrowDown")
    card = page.locator(f"{REPORT} [role=tooltip]:visible")
    assert rows.nth(1).get_attribute("data-name") in card.inner_text()
    page.keyboard.press("Escape")
    assert card.count() == 0
    page.locator(f"{REPORT} .tw-details > summary").focus()
    page.keyboard.press("Enter")
    page.locator(f"{REPORT} .tw-box").first.wait_for(state="hidden")
    page.keyboard.press("Enter")
    page.locator(f"{REPORT} .tw-box").first.wait_for()
    assert page.locator(f"{REPORT} .tw-power").get_attribute("aria-label")
    assert len(lab.cells()) == 1  # the notebook took no key for its own


def test_views_and_pictures_are_taken_along(lab, shown):
    page = shown("gpt-8")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    menu = page.locator(f"{REPORT} .tw-export")

    def click(label):
        menu.locator("summary").click()
        menu.get_by_role("button", name=label).click()

    click("Copy as Markdown")
    page.locator(f"{REPORT} [role=status]", has_text="copied").wait_for()
    table = page.evaluate("() => navigator.clipboard.readText()")
    assert to_payload(model_report("gpt-8"))["answer"]["sentences"][0].split(" (")[0] in table
    assert "| `blocks." in table
    for kind, begin in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):
        with page.expect_download() as download:
            click(f"Save icicle as {kind}")
        data = download.value.path().read_bytes()
        assert data.startswith(begin)
        assert len(data) > 2000
        if kind == "SVG":
            drawn = ET.fromstring(data)  # noqa: S314  # our own
            assert len(drawn.findall(".//{http://www.w3.org/2000/svg}rect")) > 20
