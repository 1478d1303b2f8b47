"""The profilers that are compared, each as a context manager over one block of steps.

A tool's duty is what it delivers, so that like is set beside like: `total` one figure for the block, `curve` power over
time, `step` a figure for each step, `layers` a figure for each layer.
"""

import contextlib
import importlib.util
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "6")


@dataclass(frozen=True)
class Tool:
    """How one profiler is imported and put around steps; `per_step` adds its marks to a step."""

    module: str
    duty: str
    block: Callable[[Any], Any]
    per_step: Callable[[Any, Callable[[], None]], Callable[[], None]] = lambda _, step: step

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


@contextlib.contextmanager
def bare(_model):
    yield None


def torchwatt(**options):
    @contextlib.contextmanager
    def block(model):
        import torchwatt as tw

        with tw.profile(model, **options) as run:
            yield run

    return block


@contextlib.contextmanager
def journaled(model):
    import torchwatt as tw

    folder = tempfile.mkdtemp()
    try:
        with tw.profile(model, journal=f"{folder}/journal") as run:
            yield run
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def codecarbon(every_s):
    @contextlib.contextmanager
    def block(_model):
        from codecarbon import OfflineEmissionsTracker

        logging.getLogger("codecarbon").disabled = True
        tracker = OfflineEmissionsTracker(
            country_iso_code="FRA",
            output_methods=[],
            log_level="critical",
            allow_multiple_runs=True,
            measure_power_secs=every_s,
        )
        tracker.start()
        try:
            yield None
        finally:
            tracker.stop()

    return block


@contextlib.contextmanager
def zeus_window(_model):
    from zeus.monitor import ZeusMonitor

    monitor = ZeusMonitor()
    monitor.begin_window("block", sync_execution=False)
    try:
        yield monitor
    finally:
        monitor.end_window("block", sync_execution=False)


def zeus_step(monitor, step):
    def marked():
        monitor.begin_window("step", sync_execution=False)
        step()
        monitor.end_window("step", sync_execution=False)

    return marked


@contextlib.contextmanager
def zeus_curve(_model):
    from zeus.monitor.power import PowerMonitor

    monitor = PowerMonitor(update_period=0.02)
    try:
        yield monitor
    finally:
        monitor.stop()


@contextlib.contextmanager
def carbontracker(_model):
    from carbontracker.tracker import CarbonTracker

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tracker = CarbonTracker(epochs=1, epochs_before_pred=0, update_interval=1, verbose=0, ignore_errors=False)
        tracker.epoch_start()
        try:
            yield tracker
        finally:
            tracker.epoch_end()
            tracker.stop()


@contextlib.contextmanager
def torch_profiler(_model):
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_modules=True):
        yield None


TOOLS = {
    "bare": Tool("torch", "none", bare),
    "torchwatt, sampling only": Tool("torchwatt", "curve", torchwatt(layers="off")),
    "torchwatt, layers": Tool("torchwatt", "layers", torchwatt()),
    "torchwatt, layers, budget 0.001": Tool("torchwatt", "layers", torchwatt(overhead_budget=0.001)),
    "torchwatt, layers, journal": Tool("torchwatt", "layers", journaled),
    "codecarbon, 15 s": Tool("codecarbon", "total", codecarbon(15)),
    "codecarbon, 1 s": Tool("codecarbon", "total", codecarbon(1)),
    "carbontracker, 1 s": Tool("carbontracker", "total", carbontracker),
    "zeus, one window": Tool("zeus", "total", zeus_window),
    "zeus, a window a step": Tool("zeus", "step", zeus_window, zeus_step),
    "zeus, power at 50 Hz": Tool("zeus", "curve", zeus_curve),
    "torch.profiler": Tool("torch", "layers", torch_profiler),
}
