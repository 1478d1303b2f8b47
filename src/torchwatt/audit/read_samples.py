"""Reads the samples of a bundle, by device."""

from __future__ import annotations

import csv
import os
import zlib
from collections.abc import Iterator
from io import TextIOWrapper
from math import isfinite
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from torchwatt.audit.inside import MAX_TABLE_BYTES, PARQUET_LIMITS, most_rows
from torchwatt.audit.lexical import from_cell
from torchwatt.audit.schema.energy import SAMPLE
from torchwatt.core.errors import BundleError
from torchwatt.core.extras import install_command
from torchwatt.disk.inflate import bounded_lines, inflated
from torchwatt.disk.path_safety import kind_of, open_own

MOST_POINTS = 50_000_000  # of all curves; larger files are refused before they are read into memory
_LONGEST_ROW = 1 << 16  # characters
_COLUMNS = [SAMPLE.column(name) for name in ("device_id", "t_ns", "power_w", "energy_j")]
Points = tuple[str, np.ndarray, np.ndarray, np.ndarray]


def read_samples(folder: Path, root: Path | None = None) -> Iterator[Points]:
    """Yield the name and the points of each device: t_ns since the start, power_w (NaN if missing), energy_j.

    Raises:
        BundleError: The file is malformed, too long or not a plain file, or it is Parquet and pyarrow is missing.
    """
    for name, read in (("sample.parquet", _parquet), ("sample.csv.gz", _csv)):
        if kind_of(folder / name) is not None:
            try:
                with open_own(folder / name, MAX_TABLE_BYTES, root) as file:
                    yield from read(folder / name, file)
            except OSError as error:
                raise BundleError(f"cannot read {folder / name}: {error.strerror or error}") from error
            return


def _parquet(path: Path, opened: BinaryIO) -> Iterator[Points]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise BundleError(f"{path} needs pyarrow to be read: {install_command('pyarrow')}") from error
    names = ["device_id", "t_ns", "power_w", "energy_j"]
    try:
        file = pq.ParquetFile(opened, **PARQUET_LIMITS)
        limit = min(MOST_POINTS, most_rows(os.fstat(opened.fileno()).st_size))
        if file.metadata.num_rows > limit:
            raise BundleError(f"{path}: {file.metadata.num_rows} points; more than {limit} are not read")
        table = file.read(names)
        device = np.array(table["device_id"].to_pylist(), dtype=object)
        columns = [table[name].to_numpy() for name in names[1:]]
    except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    yield from _by_device(device, *columns)


def _csv(path: Path, packed: BinaryIO) -> Iterator[Points]:
    points: list[tuple[str, int, float, float]] = []
    try:
        with TextIOWrapper(inflated(packed), encoding="utf-8", newline="") as file:
            for row in csv.DictReader(bounded_lines(file, _LONGEST_ROW)):
                cells = [from_cell(row[column.name], column) for column in _COLUMNS]
                name, t, power_w, joules = cast("tuple[str, int, float | None, float]", cells)
                points.append((name, t, np.nan if power_w is None else power_w, joules))
                _refuse_more(len(points))
    except (BundleError, EOFError, ValueError, KeyError, TypeError, AttributeError, csv.Error, zlib.error) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    columns = list(zip(*points, strict=True)) or [(), (), (), ()]
    device, t_ns, power, energy = columns
    yield from _by_device(
        np.array(device, dtype=object), np.array(t_ns, dtype=np.int64), np.array(power), np.array(energy)
    )


def _refuse_more(points: int) -> None:
    if points > MOST_POINTS:
        raise BundleError(f"more than {MOST_POINTS} points are not read")


def _by_device(device: np.ndarray, t_ns: np.ndarray, power_w: np.ndarray, energy_j: np.ndarray) -> Iterator[Points]:
    for name in dict.fromkeys(device.tolist()):
        mine = device == name
        points = np.asarray(energy_j[mine], dtype=np.float64)
        if not all(isfinite(value) for value in points.tolist()):
            raise BundleError(f"samples of {name} hold a number that is not finite")
        yield str(name), np.asarray(t_ns[mine], dtype=np.int64), np.asarray(power_w[mine], dtype=np.float64), points
