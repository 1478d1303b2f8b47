"""Are the watts of layers right? Layers that draw unlike watts, in one run, against each looped alone.

The truth of a layer is the driver's energy counter over a loop of seconds, by its calls: it knows nothing of our
sensor model. What running alone changes (caches, clocks, temperature) is in the difference as well.
"""

import random
import sys
import time
from pathlib import Path

import meter
import torch
from models import Unlike

import torchwatt as tw

LOOP_S, SETTLE_S, RUN_S = 1.5, 0.5, 25.0


def loop(call, seconds):
    calls, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(8):
            call()
        torch.cuda.synchronize()
        calls += 8
    return calls


def alone(gpu, call):
    """Return joules and seconds a call; the counter is read when it has just changed."""
    loop(call, SETTLE_S)
    began_s, began_j = changed(gpu)
    calls = loop(call, LOOP_S)
    looped_s = time.monotonic() - began_s
    ended_s, ended_j = changed(gpu, call)
    calls += round((ended_s - began_s - looped_s) / looped_s * calls)
    return (ended_j - began_j) / calls, (ended_s - began_s) / calls


def changed(gpu, call=lambda: None):
    """Wait, working, for the counter's next value."""
    before = meter.energy_j(gpu)
    while (now := meter.energy_j(gpu)) == before:
        call()
        torch.cuda.synchronize()
    return time.monotonic(), now


def sentence(run):
    return next((line for line in str(run).splitlines() if line.startswith("gpu:0")), "no gpu:0")


def compare(title, run, truth):
    """Print each layer's joules a call: alone, fitted, by time share; and the energy-weighted errors."""
    layers = run.layers[run.layers["domain"] == "gpu:0"]
    print(f"{title}: {sentence(run)}")
    weights = errors = shares = inside = 0.0
    for (fqn, phase), (joules, seconds) in sorted(truth.items()):
        row = layers[(layers["fqn"] == fqn) & (layers["phase"] == phase)]
        if row.empty:
            print(f"  {fqn} {phase}: not in the run")
            continue
        row = row.iloc[0]
        calls = row["calls"]
        found, low, high = (row[f"energy_self_{end}"] / calls for end in ("j", "lo_j", "hi_j"))
        shared = float(row["time_share_j"] if row["time_share_j"] is not None else "nan") / calls
        print(
            f"  {fqn:10} {phase:8} alone {joules:8.4f} J {seconds * 1e3:7.3f} ms {joules / seconds:4.0f} W | "
            f"run {found:8.4f} [{low:.4f}, {high:.4f}] J {row['time_self_s'] / calls * 1e3:7.3f} ms "
            f"{row['energy_self_j'] / max(row['time_self_s'], 1e-9):4.0f} W | time share {shared:8.4f} J | "
            f"{row['method']} measured {row['measured_share']}"
        )
        weights += joules
        errors += abs(found - joules)
        shares += abs(shared - joules)
        inside += low <= joules <= high
    if weights:
        print(
            f"  energy-weighted error: run {errors / weights:.3f}, time share {shares / weights:.3f}; "
            f"{inside:.0f} of {len(truth)} truths inside",
            flush=True,
        )


def unlike(gpu):
    """All layers in one step, forward only."""
    model = Unlike().to("cuda").eval()
    given, chance = model.given("cuda"), random.Random(1)
    with torch.no_grad():
        truth = {(name, "forward"): alone(gpu, lambda n=name: getattr(model, n)(given[n])) for name in given}
        for _ in range(3):
            model(given)
        torch.cuda.synchronize()
        with tw.profile(model, name="unlike") as run:
            end = time.monotonic() + RUN_S
            while time.monotonic() < end:
                model(given)
                torch.cuda.synchronize()
                time.sleep(chance.uniform(0, 0.002))
    compare("unlike layers", run, truth)
    told(run)
    return run


def told(run):
    for event in run.report.events:
        print(f"    {event.severity} {event.code} {event.subject}: {event.message}")


def main():
    torch.manual_seed(0)
    run = unlike(meter.handle())
    run.layers.to_csv(Path(sys.argv[1]) / "unlike.csv")


if __name__ == "__main__":
    main()
