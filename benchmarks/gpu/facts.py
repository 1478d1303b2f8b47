"""What the sensors say and what asking costs: doctor, each call's time, how often each value changes."""

import itertools
import statistics
import time

import meter
import pynvml
import torch

from torchwatt.cli.doctor import print_discovery
from torchwatt.sensors.readers.nvml_reader import NVML_CALLS

CALLED = 100
WATCHED_S = 3.0


def called(gpu):
    for name, call in NVML_CALLS.items():
        times = []
        for _ in range(CALLED):
            began = time.perf_counter()
            try:
                call(pynvml, gpu)
            except pynvml.NVMLError as error:
                print(f"{name:22} {error}")
                break
            times.append((time.perf_counter() - began) * 1e6)
        else:
            print(f"{name:22} median {statistics.median(times):8.1f} us, most {max(times):8.1f} us")


def changes(rows, column):
    """Say how often a value changed: the median and the 5th and 95th percentile of the times between."""
    times = [row[0] / 1e6 for row, before in zip(rows[1:], rows, strict=False) if row[column] != before[column]]
    gaps = sorted(b - a for a, b in itertools.pairwise(times))
    if not gaps:
        return "never"
    return f"every {statistics.median(gaps):.2f} ms [{gaps[len(gaps) // 20]:.2f}, {gaps[-1 - len(gaps) // 20]:.2f}]"


def published(gpu):
    """Poll as fast as the calls allow while the device works."""
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    rows, end = [], time.monotonic() + WATCHED_S
    while time.monotonic() < end:
        for _ in range(2):
            a = torch.mm(a, a).clamp_(-1, 1)
        torch.cuda.synchronize()
        rows.append(meter.reading(gpu))
    print(f"{len(rows)} polls in {WATCHED_S:g} s under load")
    for column, name in enumerate(meter.COLUMNS[1:], 1):
        print(f"{name:10} changes {changes(rows, column)}")


def samples(gpu):
    """The driver's own ring: times, values, how fine."""
    try:
        kind, found = pynvml.nvmlDeviceGetSamples(gpu, pynvml.NVML_TOTAL_POWER_SAMPLES, 0)
    except pynvml.NVMLError as error:
        print(f"nvmlDeviceGetSamples: {error}")
        return
    gaps = [b.timeStamp - a.timeStamp for a, b in itertools.pairwise(found)]
    ages = {
        "realtime": time.time() - found[-1].timeStamp / 1e6,
        "boottime": time.clock_gettime(time.CLOCK_BOOTTIME) - found[-1].timeStamp / 1e6,
    }
    print(f"nvmlDeviceGetSamples: type {kind}, {len(found)} samples, gaps us median {statistics.median(gaps):.0f}")
    print(f"    newest is so old in s: {ages}; last {[s.sampleValue.uiVal for s in found[-5:]]}")


def main():
    gpu = meter.handle()
    print(torch.__version__, torch.cuda.get_device_name(), "driver", pynvml.nvmlSystemGetDriverVersion())
    print_discovery()
    called(gpu)
    published(gpu)
    samples(gpu)


if __name__ == "__main__":
    main()
