"""The samples of a bundle, read back device by device."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from io import TextIOWrapper
from math import isfinite
from pathlib import Path

import numpy as np

from torchwatt.core.errors import BundleError

MOST_POINTS = 50_000_000  # of all curves: a file that claims more is not read into memory
Points = tuple[str, np.ndarray, np.ndarray, np.ndarray]


def read_samples(folder: Path) -> Iterator[Points]:
    """Yield each device's name and points: t_ns since the start, power_w (NaN is missing), energy_j.

    Raises:
        BundleError: The file is malformed or too long, or it is Parquet and pyarrow is not installed.
    """
    if (folder / "sample.parquet").is_file():
        yield from _parquet(folder / "sample.parquet")
    elif (folder / "sample.csv.gz").is_file():
        yield from _csv(folder / "sample.csv.gz")


def _parquet(path: Path) -> Iterator[Points]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise BundleError(f"{path} needs pyarrow to be read: pip install pyarrow") from error
    names = ["device_id", "t_ns", "power_w", "energy_j"]
    try:
        file = pq.ParquetFile(path)
        if file.metadata.num_rows > MOST_POINTS:
            raise BundleError(f"{path}: {file.metadata.num_rows} points; more than {MOST_POINTS} are not read")
        table = file.read(names)
        device = np.array(table["device_id"].to_pylist(), dtype=object)
        columns = [table[name].to_numpy() for name in names[1:]]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    yield from _by_device(device, *columns)


def _csv(path: Path) -> Iterator[Points]:
    found: list[tuple[str, int, float, float]] = []
    try:
        with gzip.open(path) as packed, TextIOWrapper(packed, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if len(found) >= MOST_POINTS:
                    raise BundleError(f"{path}: more than {MOST_POINTS} points are not read")
                power_w = float(row["power_w"]) if row["power_w"] else np.nan
                found.append((row["device_id"], int(row["t_ns"]), power_w, float(row["energy_j"])))
    except (OSError, EOFError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise BundleError(f"{path} cannot be read: {error!r}") from error
    columns = list(zip(*found, strict=True)) or [(), (), (), ()]
    device, t_ns, power, energy = columns
    yield from _by_device(
        np.array(device, dtype=object), np.array(t_ns, dtype=np.int64), np.array(power), np.array(energy)
    )


def _by_device(device: np.ndarray, t_ns: np.ndarray, power_w: np.ndarray, energy_j: np.ndarray) -> Iterator[Points]:
    for name in dict.fromkeys(device.tolist()):
        mine = device == name
        points = np.asarray(energy_j[mine], dtype=np.float64)
        if not all(isfinite(value) for value in points.tolist()):
            raise BundleError(f"samples of {name} hold a number that is not finite")
        yield str(name), np.asarray(t_ns[mine], dtype=np.int64), np.asarray(power_w[mine], dtype=np.float64), points
