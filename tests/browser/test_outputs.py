"""Reports inside `ipywidgets.Output` and `interact`, as the browser shows them."""

from __future__ import annotations

import pytest

from tests.browser.conftest import SHOWN, picture_both
from tests.browser.test_live import REPORT, start
from tests.support.heavy import one_of

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]

MODEL = """import time, torch, ipywidgets as widgets, torchwatt as tw
from torch import nn
model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
def work(n):
    for _ in range(n):
        model(torch.ones(4, 8)).sum().backward()
        time.sleep(0.02)"""
OUTPUT = """out = widgets.Output()
display(out)
with out:
    with tw.profile(model):
        work(10)"""
INTERACT = """def f(n=10):
    with tw.profile(model):
        work(n)
    print('worked', n)
widgets.interact(f, n=(5, 20));"""
INSIDE = ".jupyter-widgets-output-area, .widget-output"


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(OUTPUT, marks=one_of(SHOWN, "in Output"), id="Output"),
        pytest.param(INTERACT, marks=one_of(SHOWN, "in interact"), id="interact"),
    ],
)
def test_a_report_is_visible_inside_a_widget_that_takes_output(lab, notebook, cell, request):
    lab.open(notebook(MODEL, cell))
    start(lab)
    area = lab.page.locator(INSIDE).filter(has=lab.page.locator(REPORT)).first
    area.locator(REPORT).wait_for(timeout=90_000)
    assert area.locator(REPORT).count() == 1
    assert "energy" in area.inner_text()
    assert area.locator("table tbody tr").count() > 2  # the layers, below *Details*
    picture_both(lab, f"outputs-{request.node.callspec.id}")
