"""Small files that mean to be large ones: each is refused within a stated limit of memory and time."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.support.heavy import some_of

MIB = 1 << 20
GROWTH_MB, SECONDS = 500, 30.0  # of CPU time; the largest stated buffer is the 64 MiB head of a trace

CHILD = """
import json, resource, sys, time
from pathlib import Path
from unittest import mock
from torchwatt.core.errors import TorchwattError
from torchwatt.audit import read_bundle, verify
from torchwatt.carbon.pricing_plan import CarbonOptions, make_plan
from torchwatt.carbon import electricity_maps_api as api
from torchwatt.core.units import hour_start
from torchwatt.sensors.calibrations import load_calibrations
from torchwatt.sensors.logs.power_log import read_power_log
from torchwatt.sensors.recordings import load_recording
from torchwatt.kineto import read_trace
import pyarrow.parquet

class Endless:
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def read(self, n=-1):
        assert n > 0, "read without a limit"
        return b" " * n

def answer(_):
    with mock.patch.object(api, "build_opener") as opener:
        opener.return_value.open.return_value = Endless()
        api.fetch_hours([1], zone="FR", token="t", at=hour_start(1))

def factors(path):
    return make_plan(CarbonOptions(factors=path), hour_start(0))

read = {"trace": read_trace, "power": read_power_log, "recording": load_recording, "calibrations": load_calibrations,
        "factors": factors, "verify": verify, "bundle": read_bundle, "answer": answer}
# 8 GiB of addresses: whoever wants to hold ten gigabytes dies here and not the machine.
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
told = {}
for kind, path in json.loads(sys.argv[1]):
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        said = read[kind](Path(path))
        said = f"read: {said}" if kind == "verify" else "read"
    except TorchwattError as error:
        said = f"{type(error).__name__}: {error}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    told[Path(path).name] = [said, grown, time.process_time() - began]
print(json.dumps(told))
"""


def gigabytes(path: Path, before: bytes, filling: bytes, times: int = 160) -> Path:
    """Write a gzip file that begins with some bytes and goes on with 64 MiB of one byte, again and again."""
    with path.open("wb") as file:
        file.write(gzip.compress(before, mtime=0))
        for _ in range(times):
            file.write(full_member(filling))
    return path


@cache
def full_member(filling: bytes) -> bytes:
    """Compress 64 MiB of one byte."""
    return gzip.compress(filling * (64 * MIB), 9, mtime=0)


def crowd(path: Path, event: str, times: int = 20) -> Path:
    """Write a trace of 2 million equal events, or of as many threads, as a gzip file of a megabyte or some."""
    with path.open("wb") as file:
        file.write(gzip.compress(b'{"traceEvents": [', mtime=0))
        for part in range(times):
            events = "".join(event.format(part * 100_000 + i) for i in range(100_000))
            file.write(gzip.compress(events.encode(), 9, mtime=0))
        file.write(gzip.compress(b"{}]}", mtime=0))
    return path


def hole(path: Path, size: int, before: bytes = b"") -> Path:
    """Write a file of zeros that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(before)
        file.truncate(size)
    return path


def with_file(folder: Path, name: str, make) -> Path:
    """Write a good bundle with one of its files replaced."""
    from tests.support.bundles import rich_report
    from torchwatt.audit import write_bundle

    bundle = write_bundle(rich_report(), folder, samples="csv.gz" if name.endswith("gz") else "auto")
    (bundle / name).unlink(missing_ok=True)
    make(bundle / name)
    return bundle


def endless_rows(path: Path) -> None:
    """Write Parquet samples whose three million rows are one row: a kilobyte that takes minutes."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from torchwatt.audit.sample_table import arrow_schema

    rows = 3_000_000
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["gpu:0"]))
    numbers = {"t_ns": pa.array(np.zeros(rows, np.int64))} | {
        name: pa.array(np.zeros(rows)) for name in ("power_w", "energy_j")
    }
    columns = [numbers.get(name, words) for name in arrow_schema().names]
    pq.write_table(pa.Table.from_arrays(columns, schema=arrow_schema()), path, row_group_size=rows, compression="zstd")


OP = '{{"ph":"X","cat":"cpu_op","name":"k","pid":0,"tid":7,"ts":1,"dur":1}},'


NESTED = b'{"traceEvents": [' + b'{"a":' * MIB
COLUMNS = b"t_s,power_w" + b",x" * (MIB // 4) + b"\n" + b"1,2\n" * 9
HEADER = b"t_s" + b" " * 130_000 + b"x,power_w\n1,2\n"
DIGITS = b"t_s,power_w\n" + b"1" * 130_000 + b"x," + b"1" * 130_000 + b"x\n"
QUOTES = b'run_id,"' + b"\n" * (9 * MIB)


def plain(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# Who reads it, and what makes it at a path.
BOMBS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "spaces.json.gz": ("trace", lambda p: gigabytes(p, b"", b" ")),
    "name.json.gz": ("trace", lambda p: gigabytes(p, b'{"traceEvents": [{"name": "', b"x")),
    "tail.json.gz": ("trace", lambda p: gigabytes(p, b'{"traceEvents": [{"ph": "X"}], "a": "', b"x")),
    "events.json.gz": ("trace", lambda p: crowd(p, OP)),
    "threads.json.gz": ("trace", lambda p: crowd(p, OP.replace('"tid":7', '"tid":{}'), 3)),
    "nested.json": ("trace", lambda p: plain(p, NESTED)),
    "r.jsonl.gz": ("recording", lambda p: gigabytes(p, b"{", b" ")),
    "columns.csv": ("power", lambda p: plain(p, COLUMNS)),
    "header.csv": ("power", lambda p: plain(p, HEADER)),
    "digits.csv": ("power", lambda p: plain(p, DIGITS)),
    "hole.csv": ("power", lambda p: hole(p, 2 << 30, b"t_s,power_w\n")),
    "line.csv": ("power", lambda p: hole(p, 900 * MIB, b"t_s,power_w\n")),
    "sensors.json": ("calibrations", lambda p: hole(p, 4 << 30)),
    "factors.csv": ("factors", lambda p: hole(p, 4 << 30)),
    "answer": ("answer", lambda p: p),
    "gz": ("verify", lambda p: with_file(p, "sample.csv.gz", lambda q: gigabytes(q, b"run_id,", b"x"))),
    "rows": ("verify", lambda p: with_file(p, "sample.parquet", endless_rows)),
    "quotes": ("verify", lambda p: with_file(p, "layer.csv", lambda q: plain(q, QUOTES))),
    "large": ("bundle", lambda p: with_file(p, "layer.csv", lambda q: hole(q, 3 << 30))),
}


@pytest.fixture(scope="module")
def told(request, tmp_path_factory):
    """Read the bombs of the tests that run, all in one process."""
    folder = tmp_path_factory.mktemp("bombs")
    params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    names = {each["bomb"] for each in params if "bomb" in each}
    work = json.dumps([[BOMBS[name][0], str(BOMBS[name][1](folder / name))] for name in BOMBS if name in names])
    done = subprocess.run([sys.executable, "-c", CHILD, work], capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_what_expands_out_of_all_proportion_is_refused_while_it_is_read(tmp_path):
    from torchwatt.disk.path_safety import UNCHECKED_BYTES, open_bounded_gzip

    with gigabytes(tmp_path / "z.gz", b"", b" ").open("rb") as packed, pytest.raises(OSError, match="100 times"):
        stream, taken = open_bounded_gzip(packed), 0
        while block := stream.read(MIB):
            taken += len(block)
            assert taken <= UNCHECKED_BYTES + MIB


REFUSED = {
    "spaces.json.gz": "TraceError: .* (100 times|no list)",
    "name.json.gz": "TraceError: .* holds no complete event",
    "tail.json.gz": "TraceError: .* 100 times",
    "events.json.gz": "TraceError: .* (more events than|100 times)",
    "threads.json.gz": "TraceError: more than 65536 threads",
    "nested.json": "TraceError: .* holds no complete event",
    "r.jsonl.gz": "BundleError: .* a line is longer than",
    "columns.csv": "read",
    "header.csv": "SensorError: .* fewer than two readings",
    "digits.csv": "SensorError: .* fewer than two readings",
    "hole.csv": "SensorError: .* at most 1073741824 are read: cut it",
    "line.csv": "SensorError: .* (a line is longer than|line contains NUL)",
    "sensors.json": "ConfigError: ",
    "factors.csv": "FactorError: .* at most 67108864 are read: give the hours",
    "answer": "FactorError: .* more than 4194304 bytes",
    "gz": "read: .*FORM sample.csv.gz: cannot be read after row 0: a line is longer than",
    "rows": "read: .*FORM sample.parquet: more rows than its bytes can hold",
    "quotes": "read: .*FORM layer.csv: cannot be read after row 0",
    "large": "BundleError: .* at most 268435456 are read",
}


@pytest.mark.parametrize("bomb", some_of(REFUSED, 6))
def test_a_bomb_is_refused_within_its_limits(told, bomb):
    said, grown_mb, seconds = told[bomb]
    assert re.match(REFUSED[bomb], said.replace("\n", " "), re.DOTALL), said[:500]
    assert grown_mb < GROWTH_MB
    assert seconds < SECONDS
