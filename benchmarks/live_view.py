"""What the live view costs: CPU of the kernel, and of the browser's main thread, while a cell trains.

    PYTHONPATH=. python benchmarks/live_view.py [--seconds N]
    PYTHONPATH=. python benchmarks/live_view.py --ages [--seconds N]

A real JupyterLab in Chromium runs a cell that trains for some seconds. The kernel's cost is the CPU time that the
operating system counts for the two threads that the view uses: the one that looks and sends, and the one that ipykernel
sends with. The browser's is the time its main thread spent in tasks, against the same page with `--no-live`.

With `--ages` there is no browser: the messages of the thread are kept, and it prints how old joules, steps and layers
become before the next message, for 300, 1,000 and 5,000 modules and for steps of 0.2 ms, 10 ms and 2 s, and what share
of a CPU the thread took.
"""

import argparse
import ast
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import nbformat
from playwright.sync_api import sync_playwright
from tests.browser.conftest import CHROMIUM, MODEL
from tests.notebook.lab import CHROMIUM_FLAGS, Lab, server

# Nanoseconds on a CPU, by thread name: field 1 of schedstat.
MEASURE = """
import threading
def cpu_s(name):
    ids = [t.native_id for t in threading.enumerate() if t.name.startswith(name)]
    return sum(int(open(f"/proc/self/task/{i}/schedstat").read().split()[0]) for i in ids) / 1e9
"""
CELL = """%%energy --region FRA {option}
sending = cpu_s("IOPub")
train({seconds})
cost = {{"looks": cpu_s("torchwatt-live"), "sends": cpu_s("IOPub") - sending}}"""


class Kept:
    """Stands for the place in a notebook: keeps when messages came, and as of when joules and layers were."""

    def __init__(self):
        self.messages = []

    def update(self, widget):
        """Show the widget; there is none."""

    def send(self, message):
        """Take a message."""
        layers = message.get("layers")
        self.messages.append((time.monotonic(), message["t_s"], message["as_of_s"], layers and layers["as_of_s"]))

    def end(self):
        """Close."""


def chain(modules, wait_s):
    """Return a model of about so many modules, and a function that takes one step of at least `wait_s`."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(max(modules // 4, 1))]
    model = nn.Sequential(*blocks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step():
        end_s = time.monotonic() + wait_s
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        while time.monotonic() < end_s:
            torch.randn(64, 64) @ torch.randn(64, 64)
        optimizer.step()

    return model, step


def ages(label, modules, wait_s, seconds):
    """Train for some seconds and print how old what is shown became."""
    import torchwatt as tw
    from torchwatt.notebook import live_widget
    from torchwatt.notebook.live_updater import LiveUpdater

    model, step = chain(modules, wait_s)
    kept, steps = Kept(), 0
    live_widget.LiveWidget = lambda _begin: kept
    with tw.profile(model, live="off") as run:
        beats = LiveUpdater(run, kept, None)
        beats.start()
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            step()
            steps += 1
        beats.stop()
        spent_s, failures = beats.spent_s, beats.failures
    came = [(at, at + as_of - t) for at, t, as_of, _ in kept.messages]
    layers = [(at, at + as_of - t) for at, t, _, as_of in kept.messages if as_of is not None]
    print(
        f"{label:32} {steps:7} steps  joules and steps {oldest(came):5.2f} s  layers {oldest(layers):5.2f} s  "
        f"thread {spent_s / seconds:.2%} of a CPU{''.join(failures)}",
        flush=True,
    )


def oldest(came):
    """Return how old in seconds a message's content is when the next one comes, at most."""
    return max((later - as_of for (_, as_of), (later, _) in pairwise(came)), default=float("nan"))


def tasks_s(session):
    """Return the seconds that the page's main thread has spent in tasks."""
    found = session.send("Performance.getMetrics")["metrics"]
    return next(one["value"] for one in found if one["name"] == "TaskDuration")


def write(folder, seconds, option):
    cells = [f"%load_ext torchwatt\n{MODEL}\n{MEASURE}", CELL.format(seconds=seconds, option=option), "print(cost)"]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    name = f"run{option}.ipynb"
    nbformat.write(made, folder / name)
    return name


def run(browser, base, name, seconds):
    """Return the kernel's seconds as printed, and the share of the browser's main thread while the cell ran."""
    lab = Lab(browser, base, height=1400)
    lab.open(name)
    session = lab.page.context.new_cdp_session(lab.page)
    session.send("Performance.enable")
    lab.page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")
    lab.page.wait_for_function("() => document.querySelector('.tw-status-item')?.textContent")  # the cell runs
    lab.page.wait_for_timeout(1000)
    before_s, wait_s = tasks_s(session), max(seconds - 5, 1)
    lab.page.wait_for_timeout(wait_s * 1000)
    share = (tasks_s(session) - before_s) / wait_s
    lab.page.wait_for_function("() => jupyterapp.shell.currentWidget.content.widgets[2].model.outputs.length > 0")
    cost = "".join(output["text"] for output in lab.cells()[2]["outputs"])
    lab.close()
    return ast.literal_eval(cost), share


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--ages", action="store_true")
    asked = parser.parse_args()
    seconds = asked.seconds
    if asked.ages:
        for modules in (300, 1_000, 5_000):
            ages(f"{modules} modules", modules, 0.0, seconds)
        for words, wait_s in (("steps of 0.2 ms or more", 0.0), ("steps of 10 ms", 0.01), ("steps of 2 s", 2.0)):
            ages(words, 4, wait_s, seconds)
        return
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        notebooks, home = Path(folder) / "notebooks", Path(folder) / "home"
        notebooks.mkdir()
        home.mkdir()
        with server(notebooks, home, extension=True) as base:
            browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(CHROMIUM_FLAGS))
            for option in ("", "--no-live"):
                told, share = run(browser, base, write(notebooks, seconds, option), seconds)
                parts = ", ".join(f"{name} {value / seconds:.2%}" for name, value in told.items())
                kernel = sum(told.values()) / seconds
                label = "live view at 4 Hz" if not option else "--no-live"
                print(f"{label:18} kernel CPU {kernel:.2%} ({parts}); browser main thread {share:.1%}", flush=True)
            browser.close()


if __name__ == "__main__":
    main()
