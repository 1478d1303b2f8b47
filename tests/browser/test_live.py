"""A cell while it runs: in a real JupyterLab, with the kernel busy."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest

from tests.browser.conftest import DONE, SETUP, SHOWN, TRAIN_ON, choose_view, picture_both
from tests.notebook.lab import picture
from tests.support.heavy import one_of
from torchwatt.notebook.live_updater import MAX_PERIOD_S

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]

LIVE, REPORT = ".tw-live", ".tw-root:not(.tw-live) .tw-head h3"
WATCH = """() => { window.beats = [];
    const ours = list => list.filter(one => one.target.matches('.tw-live'));
    window.watching?.disconnect();
    window.watching = new MutationObserver(list => ours(list).forEach(() => beats.push(performance.now())));
    watching.observe(document.body, {subtree: true, attributes: true, attributeFilter: ['data-beats']}); }"""
# What Python shows of the modules, in the digits that people see: its own numbers are the reference.
TRUTH = """from torchwatt.views import format_energy
booked = run.layers[run.layers.provenance != "derived"]  # the others only contain modules
sums = booked.groupby(["fqn", "phase"]).energy_self_j.sum()
print(json.dumps([[f, p, format_energy(j)] for (f, p), j in sums.items()]))
print(format_energy(run.energy_j), "|", format_energy(run.layers.energy_self_j.sum()))"""


def start(lab):
    lab.page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")


def text_of(cell):
    return "".join(o["text"] for o in cell["outputs"] if o["output_type"] == "stream")


def outputs(lab, index):
    return lab.cells()[index]["outputs"]


def wait_for_outputs(lab, index):
    lab.page.wait_for_function(
        "i => jupyterapp.shell.currentWidget.content.widgets[i].model.outputs.length > 0", arg=index
    )


@pytest.fixture
def running(lab, notebook):
    """Return a window in which the second cell of a notebook has begun to train for some seconds."""

    def begin(*sources):
        lab.open(notebook(*sources))
        lab.page.evaluate(WATCH)
        start(lab)
        lab.page.wait_for_selector(LIVE)
        return lab

    return begin


@pytest.mark.alone  # counts the updates and their gaps
@pytest.mark.heavy
def test_the_view_moves_while_the_kernel_is_busy_and_ends_as_the_report_with_pythons_numbers(running):
    lab = running(SETUP, "%%energy -o run --region FRA\ntrain(10)", TRUTH)
    page = lab.page
    page.wait_for_function("() => beats.length >= 2")
    assert re.fullmatch(r"[\d.]+ [mk]?W", page.locator("[data-figure='power now'] .tw-figure-value").inner_text())
    page.get_by_role("button", name="Expand").click()
    assert "CO2e" in page.locator("[data-figure='carbon so far']").inner_text()
    page.locator(f"{LIVE} .tw-table tbody tr[data-key='(root)']").wait_for()
    assert page.locator(f"{LIVE} .tw-box").count() > 3
    assert re.search(r"⚡ [\d.]+ [mk]?W", page.locator(".tw-status-item").inner_text())
    picture(page, "live-light")
    page.wait_for_selector(REPORT)
    at = page.evaluate("() => beats")
    gaps = [b - a for a, b in pairwise(at)]
    assert len(at) >= 5, f"{len(at)} updates in {at[-1] - at[0]:.0f} ms"
    assert max(gaps) < 1_000 * MAX_PERIOD_S + 700
    wait_for_outputs(lab, 2)
    assert page.locator(LIVE).count() == 0
    compare_with_python(lab)
    picture_both(lab, "report")


def compare_with_python(lab):
    page = lab.page
    truth, total = text_of(lab.cells()[2]).splitlines()
    assert page.locator("[data-figure=energy] .tw-figure-value").inner_text().startswith(total.split(" | ")[0])
    assert total.split(" | ")[0] == total.split(" | ")[1]
    choose_view(page, "tree")
    page.get_by_role("button", name="expand all").click()
    compared = 0
    for fqn, phase, shown in json.loads(truth):
        row = page.locator(f".tw-table tr[data-key='{fqn}']")
        children = row.get_attribute("aria-expanded") is not None
        if phase in {"forward", "backward"} and not children:
            assert row.locator(f"[data-column={phase}]").inner_text() == shown, (fqn, phase)
            compared += 1
    assert compared >= 20


@one_of(DONE, "exception")
def test_an_exception_leaves_the_report_and_stops_run_all(running):
    lab = running(SETUP, "%%energy -o run\ntrain(2)\n1 / 0", "print('not reached')")
    lab.page.wait_for_selector(REPORT)
    lab.page.wait_for_selector(
        ".jp-RenderedText[data-mime-type='application/vnd.jupyter.error'], .jp-OutputArea-output pre"
    )
    assert "aborted" in lab.page.locator(".tw-status").inner_text()
    assert [o["ename"] for o in outputs(lab, 1) if o["output_type"] == "error"] == ["ZeroDivisionError"]
    assert outputs(lab, 2) == []


@one_of(DONE, "interrupt")
def test_an_interrupt_leaves_the_report_and_stops_run_all(running):
    lab = running(SETUP, f"%%energy -o run\n{TRAIN_ON}", "print('not reached')")
    lab.page.wait_for_function("() => beats.length >= 2")
    lab.command("notebook:interrupt-kernel")
    lab.page.wait_for_selector(REPORT)
    assert "KeyboardInterrupt" in lab.page.locator(".tw-status").inner_text()
    lab.page.wait_for_timeout(500)
    assert outputs(lab, 2) == []


@one_of(DONE, "restart")
def test_a_restart_of_the_kernel_says_that_it_is_gone(running):
    lab = running(SETUP, f"%%energy -o run\n{TRAIN_ON}")
    lab.page.wait_for_function("() => beats.length >= 4")
    lab.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    lab.page.wait_for_function("() => document.querySelector('.tw-live')?.textContent.includes('the kernel is gone')")
    assert re.search(r"[\d.]+ [mk]?J", lab.page.locator(f"{LIVE} [data-figure='energy so far']").inner_text())
    lab.page.wait_for_function("() => !document.querySelector('.tw-status-item')?.offsetParent")


@one_of(DONE, "reload")
def test_the_panel_and_the_status_bar_find_a_running_kernel_again_after_a_reload(running):
    lab = running(SETUP, "%%energy -q\ntrain(1)", f"%%energy -o run\n{TRAIN_ON}")
    lab.command("docmanager:save")
    lab.page.reload()
    lab.page.wait_for_function("() => window.jupyterapp?.started")
    lab.page.wait_for_function("() => document.querySelector('.tw-status-item')?.textContent.includes('W')")
    lab.command("notebook:interrupt-kernel")
    lab.command("torchwatt:show-panel")
    lab.page.wait_for_function("() => document.querySelectorAll('.tw-runs li').length >= 2")


@one_of(SHOWN, "by profile()")
def test_with_profile_shows_the_same_without_the_magic(running):
    lab = running(
        f"import torchwatt as tw\n{SETUP.partition(chr(10))[2]}",
        "with tw.profile(model, name='plain') as run:\n    train(2)",
    )
    lab.page.wait_for_selector(REPORT)
    assert lab.page.locator(REPORT).inner_text() == "plain"
    assert len(outputs(lab, 1)) == 1


@one_of(SHOWN, "without a live view")
def test_no_live_shows_the_report_only(lab, notebook):
    lab.open(notebook(SETUP, "%%energy --no-live\ntrain(2)", "1"))
    lab.page.evaluate("""() => { window.liveViews = 0;
        new MutationObserver(() => { liveViews += document.querySelectorAll('.tw-live').length; })
        .observe(document.body, {subtree: true, childList: true}); }""")
    start(lab)
    lab.page.wait_for_selector(REPORT)
    assert lab.page.evaluate("() => liveViews") == 0


@one_of(SHOWN, "in a cleared output")
def test_a_loop_that_clears_its_output_does_not_lose_the_report(lab, notebook):
    loop = "for i in range(4):\n    train(0.4)\n    clear_output(wait=True)\n    print(i)"
    lab.open(notebook(SETUP, f"%%energy\nfrom IPython.display import clear_output\n{loop}", "1"))
    start(lab)
    wait_for_outputs(lab, 2)
    lab.page.wait_for_selector(REPORT)
