"""A real JupyterLab on this machine, and a real browser that looks at it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen
from uuid import uuid4

from playwright.sync_api import Browser, Page, Route

from tests.notebook.places import places

# `TORCHWATT_PICTURES=1` keeps what pages show, to be looked at: no test depends on it, and each takes a moment.
PICTURES = Path(__file__).resolve().parents[2] / "test-output" if os.environ.get("TORCHWATT_PICTURES") else None
PATIENCE_S = 150  # of a busy machine with two cores
_NEWS = "@jupyterlab/apputils-extension:announcements"
LABEXTENSION = Path(__file__).resolve().parents[2] / "src" / "torchwatt" / "labextension"
# What a browser does by itself stays off: only what the page asks for may be seen.
CHROMIUM_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
    "--disable-features=LocalNetworkAccessChecks",  # a page that Playwright has changed comes from no network
)  # fmt: skip
_READY = """() => { const w = jupyterapp.shell.currentWidget; const s = w?.sessionContext;
    return w?.context?.isReady && s?.isReady && s?.session?.kernel?.status === 'idle' }"""
_CELLS = """() => jupyterapp.shell.currentWidget.content.widgets.map(
    cell => ({trusted: cell.model.trusted, outputs: cell.model.outputs ? cell.model.outputs.toJSON() : []}))"""


@contextmanager
def server(notebooks: Path, home: Path, *, module: str = "jupyterlab") -> Iterator[str]:
    """Run JupyterLab over a folder, with our extension as built in this checkout; yield its address."""
    env = {**os.environ, **places(home)}
    found = home / "labextensions"  # before one that is installed
    found.mkdir()
    (found / "torchwatt").symlink_to(LABEXTENSION)
    env["JUPYTER_PATH"] = str(home)
    settings = Path(env["JUPYTER_CONFIG_DIR"]) / "labconfig"
    settings.mkdir()
    (settings / "page_config.json").write_text(json.dumps({"disabledExtensions": {_NEWS: True}}), encoding="utf-8")
    port = free_port()
    command = [  # of JupyterLab and of Notebook 7: both are applications of one server
        sys.executable, "-m", module, "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True",
        f"--ServerApp.root_dir={notebooks}", "--LabApp.expose_app_in_browser=True",
        "--LabApp.extension_manager=readonly",
    ]  # fmt: skip
    with serving(command, f"http://127.0.0.1:{port}", "/api/status", env, home / "server.log") as base:
        yield base


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(command: Sequence[str], base: str, answers: str, env: Mapping[str, str], log: Path) -> Iterator[str]:
    """Run a server until the block ends; yield its address once the path `answers` does."""
    with log.open("wb") as out, subprocess.Popen(command, env=env, stdout=out, stderr=out) as process:
        try:
            _wait_for(f"{base}{answers}", process, log)
            yield base
        finally:
            process.terminate()  # ends its kernels, too
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urlopen(address, timeout=5) as answer:  # noqa: S310  # our own server
                if answer.status == 200:
                    return
        except HTTPError:  # it answers, though it has no such page
            return
        except (URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"{address} does not answer:\n{log.read_text(errors='replace')[-3000:]}")


def picture(page: Page, name: str, **options: Any) -> None:
    """Keep what the page shows, if somebody wants to look at it."""
    if PICTURES is not None:
        page.screenshot(path=PICTURES / f"{name}.png", **options)


def keep_json(name: str, content: Any) -> None:
    """Keep what a picture was made of, beside it."""
    if PICTURES is not None:
        PICTURES.mkdir(exist_ok=True)
        (PICTURES / f"{name}.json").write_text(json.dumps(content, indent=1))


# Opens the details of each report as it appears, unless a test keeps them folded: what most look at is inside of them.
UNFOLD = """new MutationObserver(() => {
    if (window.keepFolded) return;
    for (const one of document.querySelectorAll('.tw-more:not([data-unfolded])')) {
        one.open = true;
        one.dataset.unfolded = '';
    } }).observe(document, {subtree: true, childList: true})"""


_CONFIG = re.compile(r'(<script id="jupyter-config-data"[^>]*>)(.*?)(</script>)', re.DOTALL)


def _without_extension(route: Route) -> None:
    answer = route.fetch()
    begin, config, end = _CONFIG.split(answer.text(), 1)[1:4]
    given = json.loads(config)
    others = [one for one in given["federated_extensions"] if one["name"] != "torchwatt"]
    assert len(others) < len(given["federated_extensions"])
    page = _CONFIG.sub(lambda _: begin + json.dumps({**given, "federated_extensions": others}) + end, answer.text())
    route.fulfill(response=answer, body=page)


class Lab:
    """One browser window on JupyterLab, which keeps the addresses of everything it asked for.

    Args:
        browser: The browser.
        base: The server's address.
        height: Of the window in pixels.
        extension: With our extension, if the server has it.
    """

    def __init__(self, browser: Browser, base: str, *, height: int = 900, extension: bool = True) -> None:
        self._base = base
        self._context = browser.new_context(viewport={"width": 1280, "height": height})
        self._context.set_default_timeout(PATIENCE_S * 1000)
        self.options: list[str] = []
        self.page: Page = self._context.new_page()
        self.page.on("request", lambda request: self.options.append(request.url))
        self.page.on("websocket", lambda socket: self.options.append(socket.url))
        self.page.add_init_script(UNFOLD)
        if not extension:
            self.page.route(f"{base}/lab/workspaces/*", _without_extension)
        # A workspace of its own: no tabs of an earlier test come back.
        self.page.goto(f"{base}/lab/workspaces/{uuid4().hex}")
        self.page.wait_for_function("() => window.jupyterapp?.started")
        self.page.evaluate("() => jupyterapp.restored.then(() => jupyterapp.shell.collapseLeft())")

    def close(self) -> None:
        """Close the window."""
        self._context.close()

    def clear(self) -> None:
        """End all kernels, and close all that is open without asking what to do with changes."""
        self.page.evaluate("""async () => {
            for (const one of [...jupyterapp.shell.widgets('main')]) one.dispose();
            jupyterapp.shell.collapseRight();
            window.keepFolded = false;
            await jupyterapp.serviceManager.sessions.shutdownAll(); }""")

    def open(self, name: str, *, kernel: bool = True) -> None:
        """Open a notebook, with a kernel or with none."""
        wanted = {} if kernel else {"kernelPreference": {"shouldStart": False, "canStart": False}}
        self.command("docmanager:open", path=name, factory="Notebook", **wanted)
        self.page.wait_for_selector(".jp-Notebook .jp-Cell:visible")  # JupyterLab draws the visible ones only
        if kernel:
            self.page.wait_for_function(_READY)

    def command(self, name: str, /, **arguments: Any) -> None:
        """Execute a command of JupyterLab, as its menus do."""
        self.page.evaluate(
            "([name, args]) => jupyterapp.commands.execute(name, args).then(() => null)", [name, arguments]
        )

    def run_all(self) -> list[dict[str, Any]]:
        """Run all cells and return them once the last one has its output. The status of a kernel is not asked."""
        self.page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            cells = self.cells()
            if cells[-1]["outputs"] or any(o["output_type"] == "error" for c in cells for o in c["outputs"]):
                return cells
            self.page.wait_for_timeout(200)
        raise TimeoutError("the last cell has no output")

    def cells(self) -> list[dict[str, Any]]:
        """Return for each cell of the notebook whether it is trusted, and its outputs."""
        found: list[dict[str, Any]] = self.page.evaluate(_CELLS)
        return found

    def has_kernel(self) -> bool:
        """Return whether the notebook has a kernel."""
        return bool(self.page.evaluate("() => !!jupyterapp.shell.currentWidget.sessionContext.session?.kernel"))

    def theme(self, name: str) -> None:
        """Change the colours of the page."""
        self.command("apputils:change-theme", theme=name)
        self.page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=name)
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")  # it covers the page meanwhile

    def elsewhere(self) -> list[str]:
        """Return what was asked of other machines."""
        local = ("data", "blob", "about")
        return [u for u in self.options if urlsplit(u).scheme not in local and urlsplit(u).hostname != "127.0.0.1"]
