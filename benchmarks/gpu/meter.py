"""NVML read directly, beside the profiler: calls timed, a log of all power fields, the counter's own joules."""

import contextlib
import csv
import gzip
import json
import random
import subprocess
import sys
import threading
import time

import pynvml

FIELDS = {"instant": 186, "average": 185}
COLUMNS = ("t_ns", "instant_w", "average_w", "usage_w", "energy_mj")


def handle(index=0):
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByIndex(index)


def field_w(gpu, number):
    value = pynvml.nvmlDeviceGetFieldValues(gpu, [(number, 0)])[0]
    return value.value.uiVal / 1e3 if value.nvmlReturn == 0 else float("nan")


def energy_j(gpu):
    return pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3


def reading(gpu):
    """Return one row of COLUMNS; its time is the middle of the reads."""
    before = time.time_ns()
    found = [field_w(gpu, number) for number in FIELDS.values()]
    found += [pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3, pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)]
    return ((before + time.time_ns()) // 2, *found)


class Log:
    """Polls in a process of its own for as long as the block lasts; afterwards `rows`, `counter` and `ring` are there.

    `rows` are COLUMNS but the last, `counter` (t_ns, mJ) every 50 ms, since one read takes milliseconds, and `ring` is
    (time, W) as nvmlDeviceGetSamples gives them.
    """

    def __init__(self, period_s=0.004):
        self._period_s = period_s

    def __enter__(self):
        command = [sys.executable, __file__, str(self._period_s)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._process.stdout.readline()
        return self

    def __exit__(self, *_):
        found = json.loads(self._process.communicate("")[0])
        self.rows, self.counter, self.ring = found["rows"], found["counter"], found["ring"]


def powers(gpu):
    before = time.time_ns()
    found = [field_w(gpu, number) for number in FIELDS.values()] + [pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3]
    return ((before + time.time_ns()) // 2, *found)


def ring_since(gpu, last):
    kind, found = pynvml.nvmlDeviceGetSamples(gpu, pynvml.NVML_TOTAL_POWER_SAMPLES, last)
    return [(sample.timeStamp * 1_000, getattr(sample.sampleValue, _MEMBERS[kind]) / 1e3) for sample in found]


_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal")


def poll(period_s):
    """Poll at jittered times until the input ends; print what was found as JSON."""
    done, gpu, chance = threading.Event(), handle(), random.Random(0)
    rows, counter, ring, ring_us = [], [], [], []

    def slowly():
        since, mine = 0, handle()
        while not done.wait(chance.uniform(0.03, 0.07)):
            before, joules = time.time_ns(), pynvml.nvmlDeviceGetTotalEnergyConsumption(mine)
            counter.append(((before + time.time_ns()) // 2, joules))
            if since + 1_000_000_000 < time.time_ns():
                began = time.perf_counter()
                with contextlib.suppress(pynvml.NVMLError):
                    ring.extend(ring_since(mine, ring[-1][0] // 1_000 if ring else 0))
                ring_us.append((time.perf_counter() - began) * 1e6)
                since = time.time_ns()

    threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
    other = threading.Thread(target=slowly)
    other.start()
    print("polling", flush=True)
    while not done.wait(chance.uniform(0.5, 1.5) * period_s):
        rows.append(powers(gpu))
    other.join()
    print(f"reading the ring took {ring_us} us", file=sys.stderr)
    print(json.dumps({"rows": rows, "counter": counter, "ring": ring}))


def write(path, header, rows):
    with gzip.open(path, "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    poll(float(sys.argv[1]))
