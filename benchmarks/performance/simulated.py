"""Simulated GPUs, where their library is found: all tools then read the same devices through the real pynvml."""

import importlib.util
import os
import tempfile
from pathlib import Path


def environment(gpus):
    """Return the environment of a child that sees so many simulated H100s, None where there is no simulator."""
    default = Path(__file__).resolve().parents[2].parent / "shared" / "simhw"
    folder = Path(os.environ.get("TORCHWATT_SIMHW", default))
    if not (folder / "simnvml.py").is_file():
        return None
    spec = importlib.util.spec_from_file_location("simnvml", folder / "simnvml.py")
    simnvml = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(simnvml)
    where = Path(tempfile.mkdtemp(prefix="performance-"))
    scenario = simnvml.Scenario()
    for _ in range(gpus):
        scenario.gpu("hopper", simnvml.Trace.const(250), noise_w=2.0)
    return scenario.env(where / "scenario", simnvml.build(where))
