"""What the live view costs: CPU of the kernel and of the browser's main thread while a cell trains, and its messages.

    PYTHONPATH=. python benchmarks/live_view.py [--seconds N] [--modules N]
    PYTHONPATH=. python benchmarks/live_view.py --ages [--seconds N]

A real JupyterLab in Chromium runs a cell that trains for some seconds. The kernel's cost is the CPU time that the
operating system counts for all threads that begin with the cell (the view's is among them), and for the one that
ipykernel sends with. The browser's is the CPU time of its main thread's tasks. The same cell runs with `--no-live`. The
payload is the largest message that the page got from the kernel, and what the notebook then keeps of the cell. Each is
printed beside its limit; the exit status is 1 if one is exceeded.

With `--ages` there is no browser: the messages of the thread are kept, and it prints how old joules, steps and layers
become before the next message, for 300, 1,000 and 5,000 modules and for steps of 0.2 ms, 10 ms and 2 s, and what share
of a CPU the thread took.
"""

import argparse
import ast
import json
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import nbformat
from playwright.sync_api import sync_playwright
from tests.browser.conftest import CHROMIUM, MODEL
from tests.notebook.lab import CHROMIUM_FLAGS, Lab, server

# Nanoseconds on a CPU: field 1 of schedstat. Our threads are in no list of Python's: they are those that the system has
# begun since the cell before.
MEASURE = """
import os, threading
model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range({modules} // 4)])
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
def train(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        optimizer.zero_grad()
        model(torch.randn(64, 8)).square().mean().backward()
        optimizer.step()
train(0.5)
earlier = set(os.listdir("/proc/self/task"))
def cpu_s(ids):
    return sum(int(open(f"/proc/self/task/{i}/schedstat").read().split()[0]) for i in ids) / 1e9
def io_threads():
    return {str(t.native_id) for t in threading.enumerate() if t.name.startswith("IOPub")}
"""
CELL = """%%energy --region FRA {option}
sending = cpu_s(io_threads())
train({seconds})
ours = set(os.listdir("/proc/self/task")) - earlier
cost = {{"looks": cpu_s(ours), "sends": cpu_s(io_threads()) - sending}}"""
MAX_KERNEL, MAX_BROWSER, MAX_PAYLOAD_BYTES = 0.01, 0.10, 200_000


class Kept:
    """Stands for the place in a notebook: keeps when messages came, and as of when joules and layers were."""

    def __init__(self):
        self.messages = []

    def update(self, widget):
        """Show the widget; there is none."""

    def send(self, message):
        """Take a message."""
        text = message.get("layers_text")
        layers_s = json.loads(text)["as_of_s"] if text else None
        self.messages.append((time.monotonic(), message["t_s"], message["as_of_s"], layers_s))

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
    """Return the CPU seconds that the page's main thread has spent in tasks."""
    found = session.send("Performance.getMetrics")["metrics"]
    return next(one["value"] for one in found if one["name"] == "TaskDuration")


def write(folder, seconds, modules, option):
    measure = MEASURE.replace("{modules}", str(modules))
    cells = [f"%load_ext torchwatt\n{MODEL}\n{measure}", CELL.format(seconds=seconds, option=option), "print(cost)"]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    name = f"run{option}.ipynb"
    nbformat.write(made, folder / name)
    return name


@dataclass(frozen=True)
class Cost:
    """The kernel's seconds by thread, the part of the browser's main thread, and bytes."""

    kernel_s: dict
    browser: float
    message_bytes: int
    saved_bytes: int


def run(browser, base, name, seconds):
    """Return what the notebook of that name costs while its cell runs."""
    lab, messages = Lab(browser, base, height=1400), [0]
    lab.page.on(
        "websocket", lambda socket: socket.on("framereceived", lambda frame: messages.append(len(frame)))
    )  # a kernel's
    lab.open(name)
    session = lab.page.context.new_cdp_session(lab.page)
    session.send("Performance.setTimeDomain", {"timeDomain": "threadTicks"})  # of the CPU: others may run meanwhile
    session.send("Performance.enable")
    lab.page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")
    lab.page.wait_for_function("() => document.querySelector('.tw-status-item')?.textContent")  # the cell runs
    lab.page.wait_for_timeout(1000)
    before_s, wait_s = tasks_s(session), max(seconds - 5, 1)
    lab.page.wait_for_timeout(wait_s * 1000)
    share = (tasks_s(session) - before_s) / wait_s
    lab.page.wait_for_function("() => jupyterapp.shell.currentWidget.content.widgets[2].model.outputs.length > 0")
    cells = lab.cells()
    cost = "".join(output["text"] for output in cells[2]["outputs"])
    lab.close()
    return Cost(ast.literal_eval(cost), share, max(messages), len(json.dumps(cells[1]["outputs"])))


def show(label, cost, seconds):
    """Print a cost beside its limits; return whether it is within them."""
    kernel = sum(cost.kernel_s.values()) / seconds
    parts = ", ".join(f"{name} {value / seconds:.2%}" for name, value in cost.kernel_s.items())
    payload = max(cost.message_bytes, cost.saved_bytes)
    print(
        f"{label:32} kernel CPU {kernel:.2%} ({parts}; limit {MAX_KERNEL:.0%})  "
        f"browser main thread {cost.browser:.1%} (limit {MAX_BROWSER:.0%})  "
        f"largest message {cost.message_bytes / 1000:.0f} KB, saved output {cost.saved_bytes / 1000:.0f} KB "
        f"(limit {MAX_PAYLOAD_BYTES / 1000:.0f} KB)",
        flush=True,
    )
    return kernel <= MAX_KERNEL and cost.browser <= MAX_BROWSER and payload < MAX_PAYLOAD_BYTES


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--modules", type=int, default=1_000)
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
        with server(notebooks, home) as base:
            browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(CHROMIUM_FLAGS))
            within = True
            for option, words in (("", "live view"), ("--no-live", "--no-live")):
                cost = run(browser, base, write(notebooks, seconds, asked.modules, option), seconds)
                within &= show(f"{words}, {asked.modules} modules", cost, seconds)
            browser.close()
    raise SystemExit(0 if within else 1)


if __name__ == "__main__":
    main()
