"""The end of a cell in the live view: it says that the report is being made, and so does a tab that was hidden."""

from __future__ import annotations

import pytest

from tests.browser.conftest import SETUP
from tests.browser.test_live import LIVE, REPORT, start
from tests.notebook.lab import picture

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.heavy, pytest.mark.timeout(300)]

# Making this cell's report takes two seconds more, so that a browser that is busy shows the sentence as well.
SLOW = """import torchwatt.session.session as sessions
made = sessions.build_report
def build_slowly(*args, **kwargs):
    time.sleep(2)
    return made(*args, **kwargs)
sessions.build_report = build_slowly"""
SAID = """() => { window.said = new Set();
    window.saying = setInterval(() => {
        const text = document.querySelector('.tw-live .tw-status')?.textContent;
        if (text) said.add(text);
    }, 50); }"""
# A browser draws no frame of a tab that nobody sees.
HIDE = """() => { window.frames_ = []; window.draw_ = window.requestAnimationFrame;
    window.requestAnimationFrame = call => frames_.push(call); }"""
SHOW = """() => { window.requestAnimationFrame = draw_; const count = frames_.length;
    for (const call of frames_.splice(0)) requestAnimationFrame(call);
    return count; }"""


def test_a_view_says_that_its_report_is_being_made(lab, notebook):
    lab.open(notebook(SETUP, SLOW, "%%energy -o run --region FRA\ntrain(4)"))
    lab.page.evaluate(SAID)
    start(lab)
    lab.page.wait_for_selector(LIVE)
    lab.page.wait_for_function("() => said.has('making the report')")
    picture(lab.page, "making-the-report")
    assert not lab.page.query_selector(".tw-live .tw-stale")
    lab.page.wait_for_selector(REPORT)


def test_a_tab_that_was_hidden_shows_the_report_when_it_is_seen_again(lab, notebook):
    lab.open(notebook(SETUP, "%%energy -o run --region FRA\ntrain(8)", "print(run.report.step_count)"))
    start(lab)
    lab.page.wait_for_selector(LIVE)
    lab.page.evaluate(HIDE)
    lab.page.wait_for_timeout(4000)
    held = lab.page.evaluate(SHOW)
    assert 0 < held < 40  # one frame waits for all messages of a view, not one for each
    lab.page.wait_for_selector(REPORT)
