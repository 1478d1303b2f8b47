"""What does a journal cost, in frames of our own, in Arrow IPC and in SQLite?

    python benchmarks/journal_formats.py [--gpus 8] [--hz 20] [--seconds 60]

Writes the same readings (counter and power of each GPU at the given rate, four gauges of each at 1 Hz) four times a
second with a sync to the disk every second time, each format in a process of its own, and prints for each: CPU time per
second of run, bytes per hour, what importing it adds to a process that has none of it (time and resident memory), and
how many readings can be read back when the last 1, 10, ... bytes are missing or a bit in the middle is flipped.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path
from random import Random

WRITES_A_S, SYNC_EVERY = 4, 2


def flushes(gpus, hz, seconds):
    """Yield what is new at each write: (key, t_ns, raw, late_ns) columns as bytes."""
    random = Random(1)
    joules = [1e9 * (1 + gpu) for gpu in range(gpus)]
    t_ns = [0] * (6 * gpus)
    for write in range(seconds * WRITES_A_S):
        found = []
        for gpu in range(gpus):
            for number, name in enumerate(("energy", "power", "utilization", "memory", "temperature", "clock")):
                rate = hz if number < 2 else 1
                n = round(rate * (write + 1) / WRITES_A_S) - round(rate * write / WRITES_A_S)
                t, raw, late = array("q"), array("d"), array("q")
                for _ in range(n):
                    t_ns[6 * gpu + number] += int(1e9 / rate * random.uniform(0.6, 1.4))
                    watts = random.gauss(400, 60)
                    joules[gpu] += watts * 1e3 / hz
                    t.append(t_ns[6 * gpu + number])
                    raw.append([float(int(joules[gpu])), float(int(watts * 1e3)), 97.0, 4e10, 61.0, 1755.0][number])
                    late.append(int(random.uniform(8e3, 60e3)))
                if n:
                    found.append((f"gpu:{gpu}/{name}", t.tobytes(), raw.tobytes(), late.tobytes()))
        yield found


class Framed:
    """Ours: blocks by byte planes, zlib at its fastest, CRC-32."""

    def __init__(self, path):
        from torchwatt.sensors.ring_journal import JournalFile, create_journal_file

        self.folder = os.open(path.parent, os.O_RDONLY)
        self.file = JournalFile(create_journal_file(path.name, self.folder))

    def write(self, found):
        from torchwatt.core.journal_format import FrameKind, ReadingsBlock, pack_blocks

        self.file.add(
            FrameKind.READINGS, pack_blocks(ReadingsBlock(key, 0, t, raw, late) for key, t, raw, late in found)
        )

    def sync(self):
        self.file.sync()

    def close(self):
        self.file.close()

    @staticmethod
    def read(path):
        from torchwatt.core.journal_format import Frame, decode_frames, unpack_blocks

        frames = (part for part in decode_frames(path.read_bytes()) if isinstance(part, Frame))
        return sum(len(block) for frame in frames for block in unpack_blocks(frame.payload))


class Arrow:
    """Record batches of an Arrow IPC stream, zstd, each in a frame of ours, as a stream alone has no checksum."""

    def __init__(self, path):
        import pyarrow as pa

        self.pa = pa
        self.schema = pa.schema(
            [("key", pa.string()), ("t_ns", pa.int64()), ("raw", pa.float64()), ("late", pa.int64())]
        )
        self.framed = Framed(path)

    def write(self, found):
        from torchwatt.core.journal_format import FrameKind

        pa = self.pa
        columns = [pa.array([key for key, t, _, _ in found for _ in range(len(t) // 8)])]
        for i, field in enumerate(list(self.schema)[1:], 1):
            data = b"".join(row[i] for row in found)
            columns.append(pa.Array.from_buffers(field.type, len(data) // 8, [None, pa.py_buffer(data)]))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_batch(pa.record_batch(columns, schema=self.schema))
        self.framed.file.add(FrameKind.READINGS, sink.getvalue().to_pybytes())

    def sync(self):
        self.framed.sync()

    def close(self):
        self.framed.close()

    @staticmethod
    def read(path):
        import pyarrow as pa

        from torchwatt.core.journal_format import Frame, decode_frames

        frames = (part for part in decode_frames(path.read_bytes()) if isinstance(part, Frame))
        return sum(pa.ipc.open_stream(frame.payload).read_all().num_rows for frame in frames)


class Sqlite:
    """A database in WAL mode, one row a reading; synchronous=NORMAL and a checkpoint where the others sync."""

    def __init__(self, path):
        import sqlite3

        self.database = sqlite3.connect(path, isolation_level=None)
        self.database.execute("PRAGMA journal_mode=WAL")
        self.database.execute("PRAGMA synchronous=NORMAL")
        self.database.execute("CREATE TABLE reading (key TEXT, t_ns INTEGER, raw REAL, late_ns INTEGER)")

    def write(self, found):
        rows = [
            (key, *row)
            for key, t, raw, late in found
            for row in zip(array("q", t), array("d", raw), array("q", late), strict=True)
        ]
        self.database.execute("BEGIN")
        self.database.executemany("INSERT INTO reading VALUES (?, ?, ?, ?)", rows)
        self.database.execute("COMMIT")

    def sync(self):
        self.database.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self):
        self.database.close()

    @staticmethod
    def read(path):
        import sqlite3

        try:
            with sqlite3.connect(path) as database:
                return database.execute("SELECT count(*) FROM reading").fetchone()[0]
        except sqlite3.DatabaseError:
            return 0


FORMATS = {"framed": Framed, "arrow": Arrow, "sqlite": Sqlite}


def one(name, gpus, hz, seconds, folder):
    """Measure one format in this process."""
    path = Path(folder) / name
    planned = list(flushes(gpus, hz, seconds))
    before_kb, before_s = rss_kb(), time.process_time()
    writer = FORMATS[name](path)
    writer.write(planned[0])
    first_s, first_kb = time.process_time() - before_s, rss_kb() - before_kb
    began = time.process_time()
    for number, found in enumerate(planned[1:], 1):
        writer.write(found)
        if number % SYNC_EVERY == 0:
            writer.sync()
    cpu_s = time.process_time() - began
    writer.close()
    total = sum(len(t) // 8 for found in planned for _, t, _, _ in found)
    assert FORMATS[name].read(path) == total
    size = path.stat().st_size
    damaged = {f"cut {cut}": lost(name, path, total, cut=cut) for cut in (1, 100, 10_000)}
    damaged["flip"] = lost(name, path, total, flip=size // 2)
    print(json.dumps({
        "cpu_ms_a_s": 1e3 * cpu_s / seconds, "mb_an_hour": size / seconds * 3600 / 1e6, "bytes_a_reading": size / total,
        "start_ms": 1e3 * first_s, "start_mb": first_kb / 1024, "lost": damaged, "readings": total,
    }))  # fmt: skip


def lost(name, path, total, cut=0, flip=None):
    """Return how many readings a damaged copy lacks."""
    data = bytearray(path.read_bytes())
    if flip is not None:
        data[flip] ^= 4
    copy = path.with_suffix(f".{cut}.{flip}")
    copy.write_bytes(data[: len(data) - cut])
    try:
        return total - FORMATS[name].read(copy)
    except Exception as error:
        return f"{total} ({type(error).__name__})"


def rss_kb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--hz", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--folder", help="on the disk to be measured; default: a temporary one")
    parser.add_argument("--one", help="measure this format here")
    asked = parser.parse_args()
    if asked.one:
        one(asked.one, asked.gpus, asked.hz, asked.seconds, asked.folder)
        return
    print(f"{asked.gpus} GPUs at {asked.hz} Hz, {asked.seconds} s")
    print(f"{'':8} {'CPU':>10} {'size':>10} {'a reading':>10} {'first write':>12} {'memory':>8}  readings lost")
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        for name in FORMATS:
            command = [sys.executable, __file__, "--one", name, "--folder", folder, f"--gpus={asked.gpus}"]
            command += [f"--hz={asked.hz}", f"--seconds={asked.seconds}"]
            r = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            damage = ", ".join(f"{what}: {n}" for what, n in r["lost"].items())
            print(
                f"{name:8} {r['cpu_ms_a_s']:6.2f} ms/s {r['mb_an_hour']:5.1f} MB/h {r['bytes_a_reading']:8.1f} B "
                f"{r['start_ms']:9.1f} ms {r['start_mb']:5.1f} MB  {damage} of {r['readings']}"
            )


if __name__ == "__main__":
    main()
