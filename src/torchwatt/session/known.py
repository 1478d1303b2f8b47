"""Inputs of the attribution that a session has before it evaluates readings: calibrations, CUDA use, replays."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from torchwatt.attribution.kernel import SensorModel
from torchwatt.attribution.known import CONTEXT_REL, CudaUse, Known, Replay
from torchwatt.core.errors import ConfigError
from torchwatt.core.meter import Event, Meter
from torchwatt.core.replay import ReplayedPower
from torchwatt.core.terms import Slot
from torchwatt.core.trace import Trace
from torchwatt.sensors.calibrations import calibration_key, calibrations_file, load_calibrations
from torchwatt.sensors.readers.users import has_cuda_library
from torchwatt.tracing import cuda_domains


def calibrated_sensors(meters: Sequence[Meter]) -> tuple[dict[str, SensorModel], list[Event]]:
    """Return saved calibrations of these GPUs by channel key; a damaged file adds an event and is not changed."""
    powers = [(meter, channel) for meter in meters for channel in meter.channels if channel.quantity == "power"]
    keyed = [(calibration_key(meter, channel.sensor), channel.key) for meter, channel in powers]
    channels_by_key = {key: channel for key, channel in keyed if key is not None}
    if not channels_by_key:
        return {}, []
    try:
        calibrations = load_calibrations(calibrations_file())
        return {
            channels_by_key[key]: SensorModel.from_json(calibrations[key])
            for key in channels_by_key
            if key in calibrations
        }, []
    except ConfigError as error:
        return {}, [Event(time.monotonic_ns(), "warning", "CALIBRATION_UNREADABLE", "run", str(error))]


def cuda_use(meters: Sequence[Meter]) -> CudaUse | None:
    """Return this process's use of CUDA as torch reports it; None without a GPU.

    If torch cannot report it, CUDA counts as used, so that no card is excluded because of a missing answer.
    """
    uuids = {uuid: str(meter.domain) for meter in meters if (uuid := meter.fact("uuid"))}
    if not uuids:
        return None
    try:
        started, domains = cuda_domains(uuids)
    except Exception:  # an unsupported torch version
        return CudaUse(initialised=True, library=True)
    return CudaUse(started, has_cuda_library(os.getpid()), domains)


def known_of(
    priors: Known,
    replays: Sequence[ReplayedPower],
    work: Mapping[Slot, tuple[float, float]],
    trace: Trace,
) -> Known:
    """Add replayed layers' power, and each slot's operations and bytes in the whole run, to `known`."""
    looped: dict[str, list[Replay]] = {}
    idle_w = dict(priors.idle_w)
    for replayed in replays:
        # The context (caches, clocks) may contribute as much uncertainty as the loop itself.
        sd_rel = float(np.hypot(CONTEXT_REL, replayed.sd_w / replayed.power_w)) if replayed.power_w > 0 else CONTEXT_REL
        looped.setdefault(str(replayed.domain), []).extend(
            Replay(slot, replayed.power_w, sd_rel) for slot in replayed.slots
        )
        if replayed.quiet_w is not None:
            idle_w[str(replayed.domain)] = replayed.quiet_w
    calls = np.bincount(trace.slot, trace.calls, len(trace.slots)) if len(trace) else np.zeros(len(trace.slots))
    count = dict(zip(trace.slots, calls.tolist(), strict=True))
    run_work: dict[str | Slot, tuple[float, float]] = {
        slot: (flops * count[slot], moved * count[slot]) for slot, (flops, moved) in work.items() if count.get(slot)
    }
    return replace(
        priors,
        idle_w=idle_w,
        replays={domain: tuple(slot_replays) for domain, slot_replays in looped.items()},
        work=run_work,
    )
