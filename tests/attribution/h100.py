"""Reader of our own recordings of an H100; see recorded/h100/README.md."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np

from torchwatt.core.meter import Channel, Series
from torchwatt.core.terms import POWER_SAMPLES, Domain

FOLDER = Path(__file__).parent / "recorded" / "h100"
GPU = Domain("gpu", 0)
INSTANT = Channel(GPU, "power", "power", "W", 1e-3, 4_000_000, "nvml_power_instant")
RING = Channel(GPU, "power_fine", "power", "W", 1e-3, 20_000_000, POWER_SAMPLES)
ENERGY = Channel(GPU, "energy", "counter", "J", 1e-3, 50_000_000, "nvml_energy_counter")


def _rows(name: str) -> list[list[str]]:
    with gzip.open(FOLDER / f"{name}.csv.gz", "rt") as file:
        return list(csv.reader(file))[1:]


def _series(channel: Channel, rows: list[list[str]], scale: float) -> Series:
    t_ns = np.array([int(row[0]) for row in rows], dtype=np.int64)
    return Series(channel, t_ns, np.array([float(row[1]) for row in rows]) * scale, np.zeros_like(t_ns))


def instant(load: str) -> Series:
    return _series(INSTANT, _rows(f"{load}-polls"), 1e3)


def ring(load: str) -> Series:
    return _series(RING, _rows(f"{load}-ring"), 1e3)


def counter(load: str) -> Series:
    return _series(ENERGY, _rows(f"{load}-counter"), 1.0)


def edges_ns(load: str) -> np.ndarray:
    return np.array([[int(cell) for cell in row] for row in _rows(f"{load}-busy")], dtype=np.int64).ravel()
