"""Simulated GPUs: all tools then read the same devices through the real pynvml."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.nvml_simulator import Scenario, library_folder


def environment(gpus):
    """Return the environment of a child that sees so many simulated H100s, None where there is no C compiler."""
    try:
        library_folder()
    except FileNotFoundError:
        return None
    scenario = Scenario()
    for _ in range(gpus):
        scenario.gpu("hopper", 250, noise_w=2.0)
    return scenario.environment(Path(tempfile.mkdtemp(prefix="performance-")) / "scenario")
