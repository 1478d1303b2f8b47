"""Simulated NVIDIA GPUs, read through the real `pynvml`: a libnvidia-ml.so.1 of our own, and scenarios for it."""

from tests.support.nvml_simulator.build_library import SCENARIO, library_folder
from tests.support.nvml_simulator.power_trace import PowerFile, PowerTrace
from tests.support.nvml_simulator.scenario import Scenario, begin_now, gpu_uuid, origin_ns, slice_uuid

__all__ = [
    "SCENARIO",
    "PowerFile",
    "PowerTrace",
    "Scenario",
    "begin_now",
    "gpu_uuid",
    "library_folder",
    "origin_ns",
    "slice_uuid",
]
