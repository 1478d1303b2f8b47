"""Readers of the public GPU_Power_Benchmark recordings: NVML polls, and a 4.87 kHz meter beside them."""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from torchwatt.core.meter import Channel, Series
from torchwatt.core.terms import Domain

HOUR_NS = 3_600_000_000_000
INSTANT = Channel(Domain("gpu", 0), "power", "power", "W", 1e-2, 10_000_000, "nvml_power_instant")


@dataclass(frozen=True)
class BesideMeter:
    """Polls and meter on one clock; the meter's watts are those of slot and cables together."""

    power: Series
    meter_ns: np.ndarray
    meter_w: np.ndarray
    edges_ns: np.ndarray


def polls(folder: Path, name: str) -> Series:
    with gzip.open(folder / f"{name}_nvidia_smi.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file, skipinitialspace=True))
    t = [datetime.strptime(r["timestamp"], "%Y/%m/%d %H:%M:%S.%f").replace(tzinfo=UTC).timestamp() for r in rows]
    t_ns = np.round(np.array(t) * 1e3).astype(np.int64) * 1_000_000
    raw = np.round(np.array([float(r["power.draw.instant [W]"]) for r in rows]) * 100)
    return Series(INSTANT, t_ns, raw, np.zeros_like(t_ns))


def beside_meter(folder: Path, name: str) -> BesideMeter:
    power = polls(folder, name)
    table = np.loadtxt(folder / f"{name}_external_meter.csv.gz", delimiter=",", skiprows=1)
    meter_ns = np.round(table[:, 0] * 1e6).astype(np.int64)
    edges_ns = np.loadtxt(folder / f"{name}_load_edges_epoch_us.csv", skiprows=1, dtype=np.int64) * 1000
    # nvidia-smi wrote local time, the meter wrote the epoch: whole hours apart.
    hours_ns = round((power.t_ns[0] - meter_ns[0]) / HOUR_NS) * HOUR_NS
    return BesideMeter(replace(power, t_ns=power.t_ns - hours_ns), meter_ns, table[:, 3], edges_ns)
