"""The live view of hundreds of modules: steps, joules and layers move all the time, and no key harms anything."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

from tests.browser.conftest import choose_view
from tests.browser.test_live import LIVE, REPORT, start
from tests.notebook.kernel import MIME
from tests.notebook.lab import keep_json, picture

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(400)]

BIG = """%load_ext torchwatt
import json, time, torch
from torch import nn
torch.set_num_threads(1)
block = lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
model = nn.Sequential(*[block() for _ in range(80)], nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
done, longest = 0, 0.0
def train(seconds):
    global done, longest
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        optimizer.zero_grad()
        model(torch.randn(32, 64)).square().mean().backward()
        optimizer.step()
        done, longest = done + 1, max(longest, time.monotonic() - began)
        if done % 50 == 0:
            print("step", done, flush=True)
print(len(list(model.modules())))"""
# What the view shows, four times a second: its ages in seconds, steps, joules, and the joules of the model.
SAMPLE = """() => { window.seen = []; clearInterval(window.sampling);
    const number = one => parseFloat(one?.textContent ?? '');
    window.sampling = setInterval(() => {
        const live = document.querySelector('.tw-live');
        if (!live || live.dataset.age === undefined) return;
        const figure = name => live.querySelector(`[data-figure='${name}'] .tw-figure-value`);
        seen.push({t: performance.now() / 1000, age: Number(live.dataset.age),
            layersAge: live.dataset.layersAge === '' ? null : Number(live.dataset.layersAge),
            beats: Number(live.dataset.beats ?? 0), steps: number(figure('steps')),
            root: live.querySelector("tr[data-key='(root)'] [data-column=total]")?.textContent ?? '',
            stale: live.querySelectorAll('.tw-stale').length});
    }, 250); }"""
NOW_S = "() => performance.now() / 1000"

PLACES = (
    "tbody tr .tw-fqn",
    "td.tw-number",
    ".tw-box",
    ".tw-sort",
    ".tw-button",
    "h4",
    ".tw-legend",
    ".tw-figure",
    "summary",
)
KEYS = ("d", "d", "x", "a", "b", "m", "y", "r", "c", "v", "z", "0", "0", "ArrowDown", "ArrowUp", "Enter", "Delete")


@pytest.mark.alone  # ages of what is shown
@pytest.mark.heavy
@pytest.mark.parametrize("seconds", [8, 60])
def test_steps_and_layers_of_hundreds_of_modules_move_all_the_time(lab, notebook, seconds):
    lab.open(
        notebook(BIG, f"%%energy -o run --region FRA\ntrain({seconds})", "print(done, run.report.step_count, longest)")
    )
    lab.page.evaluate(SAMPLE)
    start(lab)
    lab.page.wait_for_selector(LIVE)
    lab.page.get_by_role("button", name="Expand").click()
    lab.page.wait_for_timeout(1000 * seconds * 2 // 3)
    pictured_s = lab.page.evaluate(NOW_S)
    picture(lab.page, f"alive-{seconds}")  # a page draws nothing else meanwhile
    drawn_s = lab.page.evaluate(NOW_S)
    lab.page.wait_for_selector(REPORT)
    seen = lab.page.evaluate("() => { clearInterval(sampling); return seen }")
    keep_json(f"alive-{seconds}", seen)
    last = max(one["beats"] for one in seen)
    ended = next(one["t"] for one in seen if one["beats"] == last)  # the run is over, and its report is being made
    moving = [one for one in seen if one["t"] - seen[0]["t"] > 3 and one["t"] <= ended]
    parts = [[one for one in moving if one["t"] < pictured_s], [one for one in moving if one["t"] > drawn_s + 0.5]]
    settled = parts[0] + parts[1]
    assert len(settled) >= 2 * (seconds - 4)
    ages = sorted(one["age"] for one in settled)
    assert ages[len(ages) * 9 // 10] <= 2.5, ages[-20:]
    assert ages[-1] <= 3
    layers = [one["layersAge"] for one in settled]
    assert None not in layers
    assert max(layers) <= 10, max(layers)
    longest = {
        name: max(longest_stillness([(one["t"], one[name]) for one in part]) for part in parts if part)
        for name in ("steps", "root")
    }
    done, reported, longest_s = map(float, "".join(o["text"] for o in lab.cells()[2]["outputs"]).split())
    assert done == reported
    assert longest["steps"] <= longest_s + 2, longest
    assert longest["root"] <= 10, longest
    assert 0.8 * done <= seen[-1]["steps"] <= done + 1  # between two counts it is an estimate, as `LiveLayers` says


def longest_stillness(samples):
    """Return for how many seconds a value stayed the same at most."""
    changes = [samples[0][0], *(b[0] for a, b in pairwise(samples) if a[1] != b[1]), samples[-1][0]]
    return max(b - a for a, b in pairwise(changes))


def test_no_key_in_a_report_reaches_the_notebook(lab, folder):
    """Delete, cut, insert, change, move, run: what the notebook's command mode has single keys for."""
    payload = json.loads((Path(__file__).parents[1] / "views" / "golden" / "payload.json").read_text())
    output = nbformat.v4.new_output("display_data", {MIME: payload, "text/plain": "a report"})
    cells = [
        nbformat.v4.new_code_cell("1"),
        nbformat.v4.new_code_cell("2", outputs=[output]),
        nbformat.v4.new_code_cell("3"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "keys.ipynb")
    lab.open("keys.ipynb", kernel=False)
    page = lab.page
    page.wait_for_selector(".tw-table tbody tr")
    choose_view(page, "tree")
    before = sources(page)
    for place in PLACES:
        page.locator(f".tw-root {place}").first.click(force=True, timeout=10_000)
        for key in KEYS:
            page.keyboard.press(key)
        page.wait_for_timeout(100)
        assert sources(page) == before, place
        assert page.locator(".jp-Dialog").count() == 0, place
    page.locator(".tw-search").press_sequentially("ddxabm")
    assert sources(page) == before
    page.locator(".jp-InputArea-prompt").first.click()  # outside of the view they do what they always did
    page.keyboard.press("b")
    assert len(sources(page)) == len(before) + 1


def sources(page):
    """Return type and text of each cell."""
    return page.evaluate("""() => jupyterapp.shell.currentWidget.content.widgets.map(
        cell => [cell.model.type, cell.model.sharedModel.source])""")
