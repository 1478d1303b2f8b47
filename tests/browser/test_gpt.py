"""A GPT of 48 blocks, whose tree is folded: what a reader of the page adds up by hand is what the ledger holds."""

from __future__ import annotations

import json
from inspect import getsource

import pytest

from tests.browser import small_gpt
from tests.browser.conftest import choose_view
from tests.browser.test_live import REPORT, start
from tests.notebook.lab import keep_json, picture

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.heavy, pytest.mark.timeout(600)]

TRAIN = """%load_ext torchwatt
import json, torch
torch.set_num_threads(1)
gpt = Gpt(48)
optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-3)
def train(steps):
    for _ in range(steps):
        optimizer.zero_grad()
        gpt(torch.randint(64, (4, 16))).float().logsumexp(-1).mean().backward()
        optimizer.step()"""
LEDGER = """print(json.dumps({"run": run.energy_j, "rows": run.layers.energy_self_j.sum(),
    "root": run.layers[run.layers.fqn == "(root)"].energy_total_j.sum(), "modules": len(list(gpt.modules()))}))"""
# Every row that is drawn once all are open: its name, level, and what stands in "total" and "self".
ROWS = """() => [...document.querySelectorAll('.tw-root:not(.tw-live) .tw-table tbody tr')].map(row => ({
    key: row.dataset.key, level: Number(row.getAttribute('aria-level')),
    total: row.querySelector('[data-column=total]')?.textContent ?? '',
    self: row.querySelector('[data-column=self]')?.firstChild?.textContent ?? ''}))"""
UNITS = {"J": 1.0, "mJ": 1e-3, "µJ": 1e-6, "nJ": 1e-9, "kJ": 1e3}


def joules(text: str) -> float:
    number, _, unit = text.replace("\u00a0", " ").strip().partition(" ")
    return float(number) * UNITS[unit.split()[0]] if unit else 0.0


def test_the_rows_of_the_table_add_up_to_the_ledger(lab, notebook):
    lab.open(notebook(getsource(small_gpt), TRAIN, "%%energy -o run --region FRA\ntrain(40)", LEDGER))
    start(lab)
    lab.page.wait_for_selector(REPORT)
    picture(lab.page, "gpt")
    lab.page.wait_for_function("() => jupyterapp.shell.currentWidget.content.widgets[3].model.outputs?.toJSON().length")
    shown = lab.page.evaluate("() => jupyterapp.shell.currentWidget.content.widgets[3].model.outputs.toJSON()")
    ledger = json.loads("".join(shown[0]["text"]))
    choose_view(lab.page, "tree")
    lab.page.get_by_role("button", name="expand all").last.click()
    while (more := lab.page.locator(".tw-root:not(.tw-live) .tw-layers > .tw-button")).is_visible():
        more.click()
    rows = lab.page.evaluate(ROWS)
    keep_json("gpt-rows", {"ledger": ledger, "rows": rows})
    picture(lab.page, "gpt-open")
    assert ledger["modules"] > 480
    root = next(row["total"] for row in rows if row["key"] == "(root)")
    assert joules(root) == pytest.approx(ledger["root"], rel=0.01)
    tops = [joules(row["total"]) for row in rows if row["level"] == 1]
    assert sum(tops) == pytest.approx(ledger["run"], rel=0.01)
    assert ledger["rows"] == pytest.approx(ledger["run"], rel=1e-9)
    for at, row in enumerate(rows):
        after = next((n for n, one in enumerate(rows[at + 1 :], at + 1) if one["level"] <= row["level"]), len(rows))
        inside = [one for one in rows[at + 1 : after] if one["level"] == row["level"] + 1]
        if inside:
            added = joules(row["self"]) + sum(joules(one["total"]) for one in inside)
            assert added == pytest.approx(joules(row["total"]), rel=0.02), row
