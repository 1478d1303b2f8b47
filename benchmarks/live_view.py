"""What the live view costs the kernel while a cell runs, and how long the browser's main thread works for it.

    python benchmarks/live_view.py [--seconds 10] [--pairs 4] [--no-browser]

A kernel trains a small model; the view's own threads are metered by the system's clock of each, as a share of one core.
In the browser the main thread's tasks are added up (`Performance.getMetrics`, TaskDuration) while the cell runs, with
the view and without, in turns. Chromium draws by software here.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nbformat.v4 import new_code_cell, new_notebook

CHROMIUM = "/usr/bin/chromium"
RUN_CELL = """async index => {
    jupyterapp.shell.currentWidget.content.activeCellIndex = index;
    await jupyterapp.commands.execute('notebook:run-cell') }"""
TRAIN = """%load_ext torchwatt
import json, threading, time, torch
torch.set_num_threads(1)
model = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(12)])
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
spent = {}
def thread_cpu_s():
    import os
    found = {}
    for thread in threading.enumerate():
        if "torchwatt-live" in thread.name and thread.native_id:
            fields = open(f"/proc/self/task/{thread.native_id}/stat").read().rpartition(")")[2].split()
            found[thread.name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found
def train(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        optimizer.zero_grad(); model(torch.randn(64, 256)).square().mean().backward(); optimizer.step()
        spent.update(thread_cpu_s())"""


def kernel_share(seconds):
    """Return the view's threads' CPU seconds per second, in a kernel without a browser."""
    from tests.notebook.kernel import Kernel

    with Kernel() as kernel:
        kernel.run(TRAIN)
        kernel.run(f"%%energy -o run\ntrain({seconds})")
        return sum(kernel.value("spent").values()) / seconds


def main_thread(pairs, seconds):
    """Return the shares of the browser's main thread with the view and without."""
    from playwright.sync_api import sync_playwright
    from tests.notebook.lab import CHROMIUM_FLAGS, Lab, server

    shares = {"live": [], "no live": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cells = [TRAIN, *(f"%%energy {'' if live else '--no-live'}\ntrain({seconds})" for live in (1, 0) * pairs)]
        notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
        (folder / "bench.ipynb").write_text(json.dumps(notebook))
        with tempfile.TemporaryDirectory() as home, sync_playwright() as play, ready(server, folder, home) as address:
            chromium = play.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
            lab = Lab(chromium, address, height=1500)
            lab.open("bench.ipynb")
            session = lab.page.context.new_cdp_session(lab.page)
            session.send("Performance.enable")
            for index in range(len(cells)):
                before = task_s(session)
                lab.page.evaluate(RUN_CELL, index)
                if index:
                    shares["live" if index % 2 else "no live"].append((task_s(session) - before) / seconds)
    return shares


def ready(server, folder, home):
    return server(folder, Path(home), extension=True)


def task_s(session):
    metrics = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
    return metrics["TaskDuration"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--no-browser", action="store_true")
    asked = parser.parse_args()
    print(f"kernel: the live view's threads took {kernel_share(asked.seconds):.2%} of a core")
    if asked.no_browser or not Path(CHROMIUM).exists():
        print("browser: not measured")
        return
    for name, shares in main_thread(asked.pairs, asked.seconds).items():
        print(f"browser's main thread, {name}: {statistics.median(shares):.2%}")


if __name__ == "__main__":
    main()
