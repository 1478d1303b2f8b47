"""A load that goes on and off, all power fields polled beside it: what does the sensor do, what does the counter count?

Writes polls.csv.gz and busy.csv.gz (start_ns, end_ns, Unix time).
"""

import random
import sys
import time
from pathlib import Path

import meter
import numpy as np
import torch

from torchwatt.attribution.response_calibration import calibrate_square_wave
from torchwatt.core.meter import Channel, Series
from torchwatt.core.terms import Domain

SECONDS = 15.0
DWELL_S = (0.06, 0.26)
NAMES = ("instant", "average", "usage")


def heavy():
    """Products: at the cap of the card, whose clocks then move."""
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, a, out=out)


def steady():
    """Sums over more than any cache holds: far below the cap."""
    a = torch.randn(64 * 1024 * 1024, device="cuda")
    out = torch.empty_like(a)
    return lambda: torch.add(a, 1.0, out=out)


def wave(work, seconds, dwell):
    busy, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        began, until = time.time_ns(), time.monotonic() + dwell()
        while time.monotonic() < until:
            for _ in range(4):
                work()
            torch.cuda.synchronize()
        busy.append((began, time.time_ns()))
        time.sleep(dwell())
    return busy


def series(rows, column, name):
    channel = Channel(Domain("gpu", 0), "power", "power", "W", 1.0, 4_000_000, name)
    t_ns = np.array([row[0] for row in rows], dtype=np.int64)
    return Series(channel, t_ns, np.array([row[column] for row in rows], dtype=np.float64), np.zeros_like(t_ns))


def fitted(name, busy, rows, column):
    try:
        model = calibrate_square_wave(np.array(busy, dtype=np.int64).ravel(), series(rows, column, name))
        print(f"{name}: {model}", flush=True)
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}")


def joules(rows, column=1):
    t, w = np.array([r[0] for r in rows]) / 1e9, np.array([r[column] for r in rows])
    return float(np.sum(np.diff(t) * (w[1:] + w[:-1]) / 2))


def main():
    out, chance = Path(sys.argv[1]), random.Random(0)
    for name, make in (("steady", steady), ("heavy", heavy)):
        work = make()
        work()
        torch.cuda.synchronize()
        with meter.Log() as log:
            time.sleep(1.0)
            busy = wave(work, SECONDS, lambda: chance.uniform(*DWELL_S))
            time.sleep(1.0)
        meter.write(out / f"{name}-polls.csv.gz", meter.COLUMNS[:-1], log.rows)
        meter.write(out / f"{name}-busy.csv.gz", ("start_ns", "end_ns"), busy)
        meter.write(out / f"{name}-counter.csv.gz", ("t_ns", "energy_mj"), log.counter)
        meter.write(out / f"{name}-ring.csv.gz", ("t_ns", "power_w"), log.ring)
        print(f"\n{name}: {len(log.rows)} polls, {len(log.ring)} samples of the ring, {len(busy)} pulses")
        counter = (log.counter[-1][1] - log.counter[0][1]) / 1e3
        sums = ", ".join(f"{one} {joules(log.rows, column):.2f} J" for column, one in enumerate(NAMES, 1))
        print(f"counter {counter:.2f} J; integrated {sums}, ring {joules(log.ring) if log.ring else 0:.2f} J")
        for column, one in enumerate(NAMES, 1):
            fitted(one, busy, log.rows, column)
        fitted("ring", busy, log.ring, 1)


if __name__ == "__main__":
    main()
