"""Inject every fault and print the table of what the user sees and what is kept.

python -m tests.faults.table             runs them all and prints
python -m tests.faults.table --write     writes docs/faults.md as well, if all of them hold
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.faults import child
from tests.faults.event_codes import events_markdown
from tests.faults.registry import FAULTS, Fault, table
from tests.support import ready
from tests.support.nvml_simulator import library_folder

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "faults.md"
HEAD = """# Faults: what happens when something breaks

<!-- Written by `python -m tests.faults.table --write`, which injects every fault. Do not edit: change tests/faults. -->

Of each fault below this page says what the user sees and what is kept. Running the suite is what proves it: a word in
`backticks` is an event's code or the run's status and was told by that run, and every report of the suite is searched
for a *silent zero*. Everything metered there draws power all the time, so a 0 in a value, a data frame, a CSV file, the
text or the HTML page would be a number that was made up, and fails. What is not known is an empty cell, NaN or a dash,
and an event or a line under "not metered" says why.

    python -m tests.faults.table        injects them all and prints this table

"NVML" is a simulated driver library under the real `pynvml`; powercap is a folder of counters. Both are read by the
sampler's own loop, in virtual time where waiting would prove nothing.

[Every event code](#event-codes) is listed below the faults.
"""


def everything() -> list[Fault]:
    """Return the whole registry, in the order of the page."""
    for part in child.PARTS:
        child.load(part)
    order = ["GPUs", "CPU", "Readings", "Clocks", "The machine", "The user"]
    return sorted(FAULTS, key=lambda one: next(i for i, word in enumerate(order) if one.group.startswith(word)))


def page() -> str:
    """Return docs/faults.md."""
    return HEAD + table(everything()) + events_markdown()


def start(part: str) -> subprocess.Popen[str]:
    """Begin to run a part in a process of its own."""
    command, env = [sys.executable, "-m", "tests.faults.child", part], {**os.environ, **ready.ONE_THREAD}
    return subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def results(process: subprocess.Popen[str], timeout_s: float = 170.0) -> dict[str, dict[str, Any]]:
    """Return what a part found."""
    out, err = process.communicate(timeout=timeout_s)
    return _read(subprocess.CompletedProcess(process.args, process.returncode, out, err))


def gpu_results(timeout_s: float = 170.0) -> dict[str, dict[str, Any]]:
    """Run the part of GPUs, in a process that finds the simulator as the driver's library; return what it found."""
    path = os.pathsep.join(filter(None, (str(library_folder()), os.environ.get("LD_LIBRARY_PATH"))))
    env = {**os.environ, **ready.ONE_THREAD, "LD_LIBRARY_PATH": path}
    return _read(ready.call(child.print_all, "gpus", timeout_s=timeout_s, env=env))


def _read(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: list[str]) -> int:
    """Run all parts one after the other; print the table and what failed."""
    os.environ.setdefault("TORCHWATT_FAULT_SPANS", "1000000")  # the tests enter a tenth of it
    found: dict[str, dict[str, Any]] = {}
    for part in child.PARTS:
        found |= gpu_results(900) if part == "gpus" else results(start(part), 900)
    sys.stdout.write(page())
    for name, one in found.items():
        sys.stderr.write(f"{'FAILED' if one['error'] else 'ok':7}{one['seconds']:6.2f} s  {name}\n")
    broken = {name: one["error"] for name, one in found.items() if one["error"]}
    for name, error in broken.items():
        sys.stderr.write(f"\n{name}\n{error}\n")
    missing = {one.name for one in FAULTS if one.inject is not None} - set(found)
    assert not missing, missing
    if "--write" in arguments and not broken:
        PAGE.write_text(page(), encoding="utf-8")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
