"""The report where no JupyterLab is: in a marimo app, and in a page that Voila makes of a notebook."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.browser.conftest import MODEL, SHOWN, write
from tests.notebook.lab import free_port, picture, serving
from tests.notebook.places import places
from tests.support.heavy import one_of

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]

# Python's own numbers, in the digits that people see: what the page shows is compared with them.
TRUTH = """import os, pathlib
from torchwatt.views import format_energy
booked = run.layers[run.layers.provenance != "derived"]  # the others only contain modules
sums = booked.groupby(["fqn", "phase"]).energy_self_j.sum()
told = {"total": format_energy(run.energy_j), "layers": [[*key, format_energy(j)] for key, j in sums.items()]}
pathlib.Path(os.environ["TRUTH"]).write_text(json.dumps(told))"""
MEASURED = """with tw.profile(model, region="FRA", name="small <net>") as run:
    train(1)
    run.count("image", 64)"""
ROWS = """() => [...document.querySelectorAll('tr')].map(row => [...row.cells].map(cell => cell.textContent.trim()))"""
REPORT = "div:has(> div > span:text-is('small <net>')) >> nth=-1"
# The icons of Voila's page, which it asks for with or without us; here it does not get them.
VOILAS_OWN = "https://cdn.jsdelivr.net/npm/@fortawesome/"
INDENT = "\n    "


@pytest.fixture
def env(tmp_path):
    """Return an environment in which nothing is read from, or left in, the home directory."""
    home = {
        "HOME": str(tmp_path),
        **{f"XDG_{name}_HOME": str(tmp_path / name) for name in ("CONFIG", "STATE", "CACHE")},
    }
    return {**os.environ, **places(tmp_path), **home, "TRUTH": str(tmp_path / "truth.json")}


@pytest.fixture
def look(chromium):
    """Return a window on an address, once it shows the report; it may have asked nothing of another machine."""
    contexts, asked = [], []

    def open_(address, color_scheme="light"):
        contexts.append(chromium.new_context(viewport={"width": 1280, "height": 1500}, color_scheme=color_scheme))
        page = contexts[-1].new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda socket: asked.append(socket.url))
        page.route(f"{VOILAS_OWN}**", lambda route: route.abort())
        page.goto(address, timeout=120_000, wait_until="commit")
        page.locator(REPORT).wait_for(timeout=120_000)
        return page

    yield open_
    for context in contexts:
        context.close()
    local = {"data", "blob"}
    away = [url for url in asked if urlsplit(url).scheme not in local and urlsplit(url).hostname != "127.0.0.1"]
    assert [url for url in away if not url.startswith(VOILAS_OWN)] == []


def compare_with_python(page, env):
    """Compare total and layers, to the last digit that is shown."""
    with Path(env["TRUTH"]).open(encoding="utf-8") as file:
        told = json.load(file)
    shown = page.locator(REPORT).inner_text()
    assert told["total"] in shown
    assert "per image" in shown
    assert "CO2e" in shown
    column = {"forward": 4, "backward": 5}  # of the view of single modules, which has nine columns
    layers = [row for row in page.evaluate(ROWS) if len(row) == 9 and row[0] and " more x" not in row[0]]
    rows = {row[0].split()[0]: row for row in layers}
    compared = [(fqn, phase) for fqn, phase, joules in told["layers"] if phase in column and fqn in rows
                and rows[fqn][column[phase]] == joules]  # fmt: skip
    expected = [(fqn, phase) for fqn, phase, _ in told["layers"] if phase in column and fqn in rows]
    assert compared == expected
    assert len(compared) >= 16
    assert page.locator("img[alt^='power over time']").evaluate("image => image.complete && image.naturalWidth > 100")


@one_of(SHOWN, "marimo")
def test_a_marimo_app_shows_the_report_of_a_block(look, env, tmp_path):
    cells = (f"import torchwatt as tw\n{MODEL}\n{MEASURED}\nrun", TRUTH.replace("json.", "__import__('json')."))
    names = ("", "run")
    app = "import marimo\n\napp = marimo.App()\n"
    for argument, cell, returned in zip(names, cells, ("(run,)", ""), strict=True):
        app += f"\n\n@app.cell\ndef _({argument}):{INDENT}{cell.replace(chr(10), INDENT)}{INDENT}return {returned}\n"
    (tmp_path / "app.py").write_text(app, encoding="utf-8")
    (tmp_path / "CONFIG" / "marimo").mkdir(parents=True)
    (tmp_path / "CONFIG" / "marimo" / "marimo.toml").write_text('[display]\ntheme = "system"\n', encoding="utf-8")
    port = free_port()
    command = [sys.executable, "-m", "marimo", "run", str(tmp_path / "app.py"), "--headless", "--no-check",
               "--host=127.0.0.1", f"--port={port}"]  # fmt: skip
    with serving(command, f"http://127.0.0.1:{port}", "/health", env, tmp_path / "marimo.log") as base:
        for scheme in ("light", "dark"):
            page = look(base, scheme)
            page.wait_for_timeout(300)
            picture(page, f"marimo-{scheme}")
            compare_with_python(page, env)


@one_of(SHOWN, "voila")
def test_voila_shows_the_report_of_a_cell(look, env, tmp_path):
    (tmp_path / "page").mkdir()
    magic = f"%%energy -o run --region FRA --name 'small <net>'\n{MEASURED.partition(chr(10))[2].replace('    ', '')}"
    write(tmp_path / "page" / "energy.ipynb", f"%load_ext torchwatt\n{MODEL}", magic, TRUTH)
    port = free_port()
    command = [sys.executable, "-m", "voila", str(tmp_path / "page" / "energy.ipynb"), "--no-browser",
               "--Voila.ip=127.0.0.1", f"--port={port}"]  # fmt: skip
    with serving(command, f"http://127.0.0.1:{port}", "/voila/static/", env, tmp_path / "voila.log") as base:
        page = look(base)
        picture(page, "voila")
        compare_with_python(page, env)
