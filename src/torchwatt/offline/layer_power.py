"""`replay`: measures the power of each kind of layer by running it alone in a loop."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt
from typing import TYPE_CHECKING, Any

from torchwatt.attribution.metered_curve import MeteredCurve, build_metered_curve
from torchwatt.core.errors import ConfigError
from torchwatt.core.meter import Meter, Recording
from torchwatt.core.terms import Phase
from torchwatt.core.trace import ReplayedPower
from torchwatt.core.units import NS_PER_S
from torchwatt.sensors import Feed, Sampler, discover
from torchwatt.tracing.user_process import synchronize

if TYPE_CHECKING:
    from torch import nn

    from torchwatt.offline.layer_replay import LayerWorkload

# Drop the first 1.2 s of a load (Yang, Adamek, Armour, arXiv 2312.02741): a 1 s average has then forgotten the pause.
SETTLE_S = 1.2
# Longer does not help: the bias of running alone limits the accuracy, not noise.
MEASURE_S = 0.5
COOL_S = 0.2
IDLE_S = 1.0


@dataclass(frozen=True, slots=True)
class ReplayTiming:
    """Seconds that each loop settles, is measured and pauses, and the number of rounds."""

    settle_s: float = SETTLE_S
    measure_s: float = MEASURE_S
    cool_s: float = COOL_S
    rounds: int = 2


@dataclass(slots=True, eq=False)
class _LayerLoops:
    work: LayerWorkload
    phase: Phase
    windows: list[tuple[int, int, int]] = field(default_factory=list)  # start_ns, end_ns, loops


def replay(
    model: nn.Module,
    call: Callable[[], Any],
    *,
    timing: ReplayTiming = ReplayTiming(),
    seed: int = 0,
    powercap_root: str | os.PathLike[str] | None = None,
    feed: Feed | None = None,
) -> tuple[ReplayedPower, ...]:
    """Run each kind of leaf layer of a model in a loop, forward and backward separately, and meter its power.

    The layers' inputs are captured while `call` runs once. Copies are run, in random order, the second round in the
    reverse order of the first, so that slow heating cancels. The model itself is not changed. It takes about
    (number of kinds) x 2 x rounds x 2 s. Pass the result to `profile(model, replays=...)`.

    Raises:
        ConfigError: No layer was called, or no meter measures: the load model has no per-layer information.
    """
    from torchwatt.offline.layer_replay import capture_workloads

    meters = feed or Sampler(discover(powercap_root=powercap_root))
    if not any(_is_measured(meter) for meter in meters.meters):
        raise ConfigError("replay needs a measured domain, and all domains here are modelled; see `torchwatt doctor`")
    jobs = [_LayerLoops(work, phase) for work in capture_workloads(model, call) for phase in ("forward", "backward")]
    meters.start()
    try:
        quiet = _measure_idle()
        _run_all(jobs, timing, random.Random(seed))  # noqa: S311  order, not secrecy
    finally:
        recording = meters.stop()
    return tuple(_replayed_powers(jobs, quiet, recording))


def _is_measured(meter: Meter) -> bool:
    return meter.provenance == "measured" and any(c.quantity != "gauge" for c in meter.channels)


def _measure_idle() -> tuple[int, int]:
    start_ns = time.monotonic_ns()
    time.sleep(IDLE_S)
    return start_ns, time.monotonic_ns()


def _run_all(jobs: list[_LayerLoops], timing: ReplayTiming, order: random.Random) -> None:
    order.shuffle(jobs)
    for number in range(timing.rounds):
        for job in jobs if number % 2 == 0 else reversed(jobs):
            _run(job, timing)


def _run(job: _LayerLoops, timing: ReplayTiming) -> None:
    once = job.work.loop(job.phase)
    if once is None:
        return
    _loop_for(once, timing.settle_s)
    start_ns = time.monotonic_ns()
    loops = _loop_for(once, timing.measure_s)
    job.windows.append((start_ns, time.monotonic_ns(), loops))
    time.sleep(timing.cool_s)


def _loop_for(once: Callable[[], None], seconds: float) -> int:
    """Repeat `once` for some time and return the count; synchronizes every 16 loops to bound the device queue."""
    end_ns = time.monotonic_ns() + round(seconds * NS_PER_S)
    loops = 0
    while time.monotonic_ns() < end_ns:
        once()
        loops += 1
        if loops % 16 == 0:
            synchronize()
    synchronize()
    return loops


def _replayed_powers(jobs: list[_LayerLoops], quiet: tuple[int, int], recording: Recording) -> list[ReplayedPower]:
    outcomes = [build_metered_curve(meter, recording) for meter in recording.meters if _is_measured(meter)]
    curves = [outcome for outcome in outcomes if isinstance(outcome, MeteredCurve)]
    results = [_replayed_power(job, outcome, quiet) for outcome in curves for job in jobs]
    return [result for result in results if result is not None]


def _replayed_power(job: _LayerLoops, metered_domain: MeteredCurve, quiet: tuple[int, int]) -> ReplayedPower | None:
    """Return the mean power over a job's windows; None if none of them was metered."""
    curve = metered_domain.curve
    means_w = [mean_w for a, b, _ in job.windows if (mean_w := curve.mean_w(a, b)) is not None]
    if not means_w:
        return None
    seconds = sum(b - a for a, b, _ in job.windows) / NS_PER_S
    loops = sum(n for _, _, n in job.windows)
    reading_w = curve.u_j * sqrt(len(means_w)) / seconds
    between_w = statistics.stdev(means_w) / sqrt(len(means_w)) if len(means_w) > 1 else 0.0
    return ReplayedPower(
        domain=curve.domain,
        slots=job.work.slots(job.phase),
        power_w=statistics.fmean(means_w),
        sd_w=sqrt(reading_w**2 + between_w**2),
        seconds=seconds,
        loops=loops,
        call_s=seconds / max(loops, 1),
        quiet_w=curve.mean_w(*quiet),
    )
