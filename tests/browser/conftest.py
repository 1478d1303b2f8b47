"""JupyterLab with our extension in Chromium; a notebook of a few cells that trains for some seconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.notebook.lab import LABEXTENSION, PICTURES, Lab, picture, server

REQUIRE = "TORCHWATT_REQUIRE_BROWSER"
CHROMIUM = Path("/usr/bin/chromium")

THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
AXE = Path(__file__).resolve().parents[2] / "extension" / "node_modules" / "axe-core" / "axe.min.js"
AXE_RUN = """async where => (await axe.run(where)).violations.map(
    one => [one.id, one.nodes.slice(0, 5).map(node => [node.target.join(' '), node.failureSummary])])"""

MODEL = """import json, time, torch
from torch import nn
torch.set_num_threads(1)
block = lambda: nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
model = nn.Sequential(*[block() for _ in range(5)], nn.Linear(256, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
def train(seconds, rest_s=0.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        optimizer.zero_grad()
        model(torch.randn(64, 256)).square().mean().backward()
        optimizer.step()
        time.sleep(rest_s)"""
# Until somebody interrupts it; it leaves the processor to what the test looks at.
TRAIN_ON = "train(100, rest_s=0.05)"
# Like cases, of which the commit chooses one for `make test`: where a report is shown, and what is done in a notebook.
SHOWN = (
    "by profile()", "without a live view", "in a cleared output", "in Output", "in interact", "marimo", "voila",
    "notebook 7",
)  # fmt: skip
DONE = ("exception", "interrupt", "restart", "reload", "panel", "commands", "history")
SETUP = f"%load_ext torchwatt\n{MODEL}"


def _missing(reason: str) -> None:
    if os.environ.get(REQUIRE):
        pytest.fail(f"{REQUIRE} is set, but {reason}")
    pytest.skip(reason)


# For this folder only: as long as the driver runs, so does its event loop, which others must not find.
@pytest.fixture(scope="package")
def chromium() -> Iterator[Any]:
    if not os.access(CHROMIUM, os.X_OK):
        _missing(f"there is no {CHROMIUM}: apt-get install chromium")
    if not (LABEXTENSION / "package.json").is_file():
        _missing("the JupyterLab extension is not built: make front")
    from playwright.sync_api import sync_playwright

    from tests.notebook.lab import CHROMIUM_FLAGS

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="package")
def address(chromium: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(folder, tmp_path_factory.mktemp("home")) as base:
        yield base


HEIGHT = 1500


class Window:
    """One window for the tests of a worker, because JupyterLab takes seconds to start; a new one after a failure."""

    def __init__(self, browser: Any, address: str) -> None:
        self._browser, self._address = browser, address
        self._lab: Lab | None = None
        self.faults: list[str] = []

    def get(self, height: int = HEIGHT) -> Lab:
        """Return the window, so many pixels high: JupyterLab draws the cells that are visible."""
        if self._lab is None:
            self._lab = Lab(self._browser, self._address, height=HEIGHT)
            self._lab.page.on("pageerror", lambda error: self.faults.append(str(error)) if ours(error) else None)
        self._lab.page.set_viewport_size({"width": 1280, "height": height})
        return self._lab

    def close(self) -> None:
        if self._lab is not None:
            self._lab.close()
            self._lab = None


@pytest.fixture(scope="package")
def window(chromium: Any, address: str) -> Iterator[Window]:
    made = Window(chromium, address)
    yield made
    made.close()


@pytest.fixture
def lab(window: Window, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Return a window with nothing open in it, of which no request and no error may leave the page."""
    found, failed = window.get(), request.session.testsfailed
    window.faults.clear()
    yield found
    assert found.options
    assert found.elsewhere() == []
    assert window.faults == []
    if request.session.testsfailed > failed:
        window.close()
    else:
        found.clear()


@pytest.fixture
def notebook(folder: Path, request: pytest.FixtureRequest) -> Callable[..., str]:
    """Return a maker of notebooks, named after the test."""

    def make(*sources: str) -> str:
        name = f"{request.node.name[:60]}.ipynb"
        write(folder / name, *sources)
        return name

    return make


def write(path: Path, *sources: str) -> None:
    """Write a notebook of code cells."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    made.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, path)


def ours(error: Any) -> bool:
    """Return whether an error was raised in our code: other extensions raise some of their own, with or without us."""
    stack = str(error.stack)
    return "/torchwatt/" in stack or "blob:" in stack  # a widget's module has a blob for its address


def picture_both(lab: Lab, name: str) -> None:
    """Keep what the page shows, in both themes, if somebody wants to look at it."""
    if PICTURES is not None:
        for theme, suffix in (("JupyterLab Dark", "dark"), ("JupyterLab Light", "light")):
            lab.theme(theme)
            lab.page.wait_for_timeout(300)  # the plot is drawn again in the new colours
            picture(lab.page, f"{name}-{suffix}")


@pytest.fixture
def axe() -> None:
    if not AXE.is_file():
        _missing("axe-core is not installed: make front")


def check_axe(page: Any, where: str) -> None:
    """Check that axe-core finds nothing; the fixture `axe` skips the test where it is not installed."""
    if not page.evaluate("() => !!window.axe"):
        page.add_script_tag(path=AXE)
    assert page.evaluate(AXE_RUN, where) == []


def choose_view(page: Any, view: str) -> None:
    """Switch each report on the page to one of the views of its layers: hottest, blocks, tree or type."""
    for radio in page.locator(f".tw-switch input[value={view}]").all():
        radio.evaluate("one => one.click()")
