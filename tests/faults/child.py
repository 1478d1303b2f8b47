"""Run the faults of one module in this process and print what each told: `python -m tests.faults.child NAME`.

Faults of GPUs need the simulated NVML in the place of the driver's library; faults of the machine set limits.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from tests.faults.registry import FAULTS

# What belongs together in a process: GPUs (with LD_LIBRARY_PATH on the simulator), the machine, and what needs torch.
PARTS = {
    "gpus": ("nvml", "gpu_readings"),
    "machine": ("machine",),
    "meters": ("powercap", "readings"),
    "user": ("user",),
}


def load(part: str) -> None:
    """Enter a part's faults into the table."""
    for module in PARTS[part]:
        importlib.import_module(f"tests.faults.{module}")


def print_all(part: str) -> None:
    """Run every fault of a part; print by name what was told, what went wrong, and how long it took."""
    load(part)
    sys.stdout.write("\n" + json.dumps(_run_all(part)) + "\n")


def _run_all(part: str) -> dict[str, dict[str, Any]]:
    modules = {f"tests.faults.{module}" for module in PARTS[part]}  # some import another part's, and enter its faults
    found: dict[str, dict[str, Any]] = {}
    for one in (fault for fault in FAULTS if fault.inject is not None and fault.inject.__module__ in modules):
        start_s, told, error = time.monotonic(), [], ""
        with tempfile.TemporaryDirectory(prefix="torchwatt-fault-") as folder:
            try:
                told = sorted(one.run(Path(folder)))
            except Exception:  # whatever it is, it is this fault's and the others go on
                error = traceback.format_exc()
        found[one.name] = {"told": told, "error": error, "seconds": round(time.monotonic() - start_s, 2)}
    return found


if __name__ == "__main__":
    print_all(sys.argv[1])
