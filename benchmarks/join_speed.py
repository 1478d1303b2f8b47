"""How fast a trace file becomes labelled device records, and in how much memory; beside other readers on the same file.

A real trace is repeated with shifted times, correlation ids and sequence numbers, 1, 4 and 16 times, into a temporary
folder. Every figure is from a fresh process on one core: the best of several runs, from the file to the result. Peak
memory is what the process grew above its imports, per byte of the file.
"""

import argparse
import gzip
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TRACES = Path(os.environ.get("TORCHWATT_TRACES", Path(__file__).resolve().parents[2] / "shared" / "traces"))
DEFAULT = TRACES / "kineto" / "train_ddp_ckpt_resnet_mi300x.json.gz"
TASKS = {
    "torchwatt read + join": (
        "msgspec",
        "from torchwatt.kineto import read_trace, join_trace",
        "join_trace(read_trace(path))",
    ),
    "orjson.loads only": ("orjson", "import orjson", "orjson.loads(open(path, 'rb').read())"),
    "json.loads only": ("json", "import json", "json.loads(open(path, 'rb').read())"),
    "HolisticTraceAnalysis load": (
        "hta",
        "import logging; logging.disable(logging.CRITICAL); from hta.common.trace import Trace",
        "t = Trace(trace_files={0: path}, trace_dir=''); t.parse_traces(use_multiprocessing=False)",
    ),
}
CHILD = """
import sys, time
path = sys.argv[1]
def peak():  # not ru_maxrss: that survives exec, and would be the parent's
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
{imports}
base = peak()
best = 1e9
for _ in range(int(sys.argv[2])):
    start = time.perf_counter()
    {call}
    best = min(best, time.perf_counter() - start)
print(best, peak() - base)
"""


def repeated(events, times):
    """Yield the events of a trace again and again, one after the other in time."""
    stamps = [e["ts"] for e in events if e.get("ph") == "X" and isinstance(e.get("ts"), int | float)]
    span = max(stamps) - min(stamps) + 1e5
    for i in range(times):
        for event in events:
            args = dict(event.get("args") or {})
            for name, step in (("correlation", 10**7), ("Sequence number", 10**6), ("External id", 10**7)):
                if isinstance(args.get(name), int) and args[name] >= 0:
                    args[name] += i * step
            copy = {**event, "args": args}
            if "ts" in event:
                copy["ts"] = event["ts"] + i * span
            if "id" in event:
                copy["id"] = event["id"] + i * 10**7
            yield copy


def write(path, trace, times):
    """Write the repeated trace as Kineto does, one event after the other; returns the number of events."""
    head = {key: value for key, value in trace.items() if key != "traceEvents"}
    n = 0
    with path.open("w") as file:
        file.write(json.dumps(head)[:-1] + ', "traceEvents": [')
        for n, event in enumerate(repeated(trace["traceEvents"], times), 1):
            file.write(("," if n > 1 else "") + "\n" + json.dumps(event))
        file.write("\n]}")
    return n


def measured(task, path, rounds):
    """Return (seconds, peak bytes) of a task in a fresh process, or why there is none."""
    module, imports, call = TASKS[task]
    if importlib.util.find_spec(module) is None:
        return "not installed"
    code = CHILD.format(imports=imports, call=call)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(rounds)], capture_output=True, text=True, env=env, check=False
    )
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1]}"
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), float(peak)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", nargs="?", type=Path, default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times", type=int, nargs="*", default=[1, 4, 16])
    asked = parser.parse_args()
    if not asked.trace.is_file():
        print(f"{asked.trace} is not there: give a trace, or name the folder of recordings by TORCHWATT_TRACES")
        return
    data = asked.trace.read_bytes()
    trace = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    print(f"{asked.trace.name}, Python {sys.version.split()[0]}, best of {asked.rounds}, one core")
    with tempfile.TemporaryDirectory() as folder:
        for times in asked.times:
            path = Path(folder) / f"x{times}.json"
            events, size = write(path, trace, times), path.stat().st_size
            print(f"{times}x: {events} events, {size / 1e6:.0f} MB")
            for task in TASKS if times <= 4 else list(TASKS)[:1]:
                found = measured(task, path, asked.rounds if times <= 4 else 1)
                if isinstance(found, str):
                    print(f"  {task:28} {found}")
                    continue
                seconds, peak = found
                print(
                    f"  {task:28} {events / seconds / 1e3:8.0f} k events/s {size / seconds / 1e6:7.0f} MB/s "
                    f"{seconds:7.2f} s {peak / size:6.2f} x the file in memory"
                )
            path.unlink()


if __name__ == "__main__":
    main()
