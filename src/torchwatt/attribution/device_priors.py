"""Prior information on devices, independent of their readings; all of it optional."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from torchwatt.attribution.design_matrix import WorkColumns
from torchwatt.attribution.posterior import Moments, compute_moments
from torchwatt.attribution.sensor_response import SensorModel
from torchwatt.core.meter import FloatArray
from torchwatt.core.terms import Slot
from torchwatt.core.trace import Activity

# Mean power of a layer in its own loop against the same layer in its run: caches and clocks differ.
REPLAY_CONTEXT_REL = 0.05


@dataclass(frozen=True, slots=True)
class SlotReplay:
    """Mean power of a slot that was run in its own loop; `sd_rel` is the uncertainty due to its context."""

    slot: Slot
    power_w: float
    sd_rel: float = REPLAY_CONTEXT_REL


@dataclass(frozen=True, slots=True)
class CudaUse:
    """This process's use of CUDA, at its end.

    `domains` are the devices on which it held memory, `library` whether CUDA's driver library is loaded.
    """

    initialised: bool = False
    library: bool | None = None
    domains: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class DevicePriors:
    """By domain name, such as "gpu:0": sensor families, idle watts, replays. Calibrated sensors by channel key.

    `work` has operations and bytes: of one record by signature, or of the whole run by slot.
    """

    sensors: Mapping[str, SensorModel] = field(default_factory=dict)
    families: Mapping[str, str] = field(default_factory=dict)
    idle_w: Mapping[str, float] = field(default_factory=dict)
    replays: Mapping[str, tuple[SlotReplay, ...]] = field(default_factory=dict)
    work: Mapping[str | Slot, tuple[float, float]] = field(default_factory=dict)
    cuda: CudaUse | None = None  # None: not queried
    named: frozenset[str] = frozenset()  # devices that the user named: they count in any case
    baseline: bool = True  # the readings before the run are an idle baseline, and give the static power


NO_PRIORS = DevicePriors()


def compute_work_rates(
    work: Mapping[str | Slot, tuple[float, float]], activity: Activity, columns: WorkColumns
) -> FloatArray | None:
    """Return (C, 2) operations and bytes per second of each column, as parts of the largest; None where unknown.

    A column without a known rate gets the mean of the others, so that the slope has no effect on it.
    """
    if not work:
        return None
    total = np.zeros((columns.count, 2))
    has_rate = np.zeros(columns.count, dtype=np.bool_)
    time_s = columns.seconds.sum(axis=0)
    records = np.bincount(columns.of_record, minlength=columns.count)
    for column in range(columns.count):
        each = work.get(activity.signatures[columns.signature[column]]) if len(activity.signature) else None
        if each is not None:
            total[column], has_rate[column] = np.asarray(each) * records[column], True
    for slot, in_slot in enumerate(columns.seconds):
        run_work = work.get(columns.slots[slot])
        mine = (in_slot > 0) & ~has_rate
        if run_work is not None and mine.any():
            total[mine] = np.asarray(run_work) * (in_slot[mine] / in_slot[mine].sum())[:, None]
            has_rate |= mine
    if has_rate.sum() < 3:
        return None
    rate = total / np.maximum(time_s, 1e-12)[:, None]
    rate /= np.maximum(rate[has_rate].max(axis=0), 1e-12)
    rate[~has_rate] = rate[has_rate].mean(axis=0)
    return np.asarray(rate, dtype=np.float64)


def build_replay_moments(replays: tuple[SlotReplay, ...], columns: WorkColumns) -> Moments | None:
    """Return replays as pseudo-observations of the slots' mean powers, weighted by 1 / sd^2; None without any."""
    rows, power_w, weight = [], [], []
    for replay in replays:
        in_slot = columns.seconds[columns.slots.index(replay.slot)] if replay.slot in columns.slots else np.zeros(1)
        if in_slot.sum() > 0:
            rows.append(np.append(in_slot / in_slot.sum(), 0.0))
            power_w.append(replay.power_w)
            weight.append((replay.sd_rel * replay.power_w) ** -2)
    return compute_moments(np.array(rows), np.array(power_w), np.array(weight)) if rows else None
