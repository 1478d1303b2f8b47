"""Train a language model under `profile()`: joules against the counter read beside it, the bundle verified."""

import subprocess
import sys
import time
from pathlib import Path

import meter
import torch
from models import language

import torchwatt as tw

SECONDS = 20.0


def main():
    out, gpu = Path(sys.argv[1]), meter.handle()
    model, step = language("cuda")
    for _ in range(10):
        step()
    torch.cuda.synchronize()
    with meter.Log(0.02) as log, tw.profile(model, name="language", region="FRA", csv=out / "bundle") as run:
        began, end = (time.monotonic(), meter.energy_j(gpu)), time.monotonic() + SECONDS
        steps = 0
        while time.monotonic() < end:
            step()
            steps += 1
        torch.cuda.synchronize()
        ended = time.monotonic(), meter.energy_j(gpu)
    print(run)
    print(f"{steps} steps of {SECONDS / steps * 1e3:.1f} ms")
    joules, seconds = ended[1] - began[1], ended[0] - began[0]
    print(
        f"counter beside it: {joules:.2f} J in {seconds:.2f} s; the run: {gpu_j(run):.2f} J in {run.duration_s:.2f} s"
    )
    print({name: float((run.layers[run.layers["domain"] == "gpu:0"][name]).sum()) for name in ("energy_self_j",)})
    steps = run.steps
    print(f"steps as the host sees them: {steps.describe().to_string() if len(steps) else 'none'}")
    for event in run.report.events:
        print(f"  {event.severity} {event.code} {event.subject}: {event.message}")
    meter.write(out / "train-polls.csv.gz", meter.COLUMNS[:-1], log.rows)
    subprocess.run([sys.executable, "-m", "torchwatt", "verify", str(out / "bundle")], check=False)


def gpu_j(run):
    return next(ledger.energy_j for ledger in run.report.ledgers if str(ledger.domain) == "gpu:0")


if __name__ == "__main__":
    main()
