"""What the live view costs: CPU of the kernel, and of the browser's main thread, while a cell trains.

    PYTHONPATH=. python benchmarks/live_view.py [--seconds N]

A real JupyterLab in Chromium runs a cell that trains for some seconds. The kernel's cost is the CPU time that the
operating system counts for the two threads that the view uses: the one that looks and sends, and the one that ipykernel
sends with. The browser's is the time its main thread spent in tasks, against the same page with `--no-live`.
"""

import argparse
import ast
import tempfile
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
    seconds = parser.parse_args().seconds
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
