"""Record what others would send in: torch.profiler traces (eager, compiled, CUDA graph) and a power log; attribute it.

Writes trace-*.json.gz and power.csv, in the form that `torchwatt attribute` takes.
"""

import csv
import gzip
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import meter
import torch
from models import Language, language

SMALL = {"words": 4096, "width": 512, "depth": 2}


def recorded(out, name, step, steps=4, **options):
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, **options) as profiler:
        for _ in range(steps):
            step()
            profiler.step()
        torch.cuda.synchronize()
    path = out / f"trace-{name}.json"
    profiler.export_chrome_trace(str(path))
    with path.open("rb") as plain, gzip.open(f"{path}.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    events = json.loads(path.read_text())["traceEvents"]
    kernels = [e for e in events if e.get("cat") == "kernel"]
    print(
        f"{name}: {len(events)} events, {len(kernels)} kernels, {sum(e['dur'] for e in kernels) / 1e3:.3f} ms of them"
    )
    path.unlink()
    return Path(f"{path}.gz")


def eager(out):
    _model, step = language("cuda", 8, 256, **SMALL)
    for _ in range(5):
        step()
    return recorded(out, "eager", step, with_stack=True, with_modules=True)


def graph(out):
    model = Language(**SMALL).to("cuda").eval()
    x = torch.randint(0, 4096, (8, 256), device="cuda")
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                model(x)
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()

        def capture():
            with torch.cuda.graph(captured):
                model(x)

        first = recorded(out, "capture", capture, 1, with_stack=True, with_modules=True)
        return first, recorded(out, "replay", captured.replay, 4)


def compiled(out):
    model = Language(**SMALL).to("cuda")
    x = torch.randint(0, 4096, (8, 256), device="cuda")
    fast = torch.compile(model)

    def step():
        fast(x).square().mean().backward()

    for _ in range(3):
        step()
    return recorded(out, "compiled", step)


def attribute(*options):
    command = [sys.executable, "-m", "torchwatt", "attribute", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print("\n".join((done.stdout + done.stderr).splitlines()[:32]), flush=True)


def powered(out):
    """One trace of many steps, with a power log that covers it."""
    _model, step = language("cuda", depth=3)
    for _ in range(10):
        step()
    torch.cuda.synchronize()
    with meter.Log() as log:
        time.sleep(0.5)
        trace = recorded(out, "powered", step, 150, with_modules=True)
        time.sleep(0.5)
    with (out / "power.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("t_ns", "device", "power_w"))
        writer.writerows((t, 0, instant) for t, instant, *_ in log.rows)
    return trace


def main():
    out = Path(sys.argv[1])
    attribute("--trace", eager(out))
    first, replay = graph(out)
    attribute("--trace", replay, "--capture", first)
    attribute("--trace", powered(out), "--power", out / "power.csv", "--sensor", "h100", "--out", out / "offline")
    attribute("--trace", compiled(out))


if __name__ == "__main__":
    main()
