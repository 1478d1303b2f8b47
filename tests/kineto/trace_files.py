"""Small traces made by hand: each function returns one event as Kineto writes it. Times in microseconds."""

import json
from collections import Counter

import numpy as np

from torchwatt.kineto import join_trace, read_trace

MAIN, BACK = 100, 200  # threads
BASE_NS = 1_700_000_000_000_000_000


def event(cat, name, ts, dur, tid=MAIN, pid=1, **args):
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": args}


def module(name, ts, dur, tid=MAIN):
    return event("python_function", f"nn.Module: {name}", ts, dur, tid)


def note(name, ts, dur, tid=MAIN):
    return event("user_annotation", name, ts, dur, tid)


def op(name, ts, dur, tid=MAIN, seq=None, forward=0):
    args = {} if seq is None else {"Sequence number": seq, "Fwd thread id": forward}
    return event("cpu_op", name, ts, dur, tid, **args)


def node(name, ts, dur, seq=None, tid=BACK, forward=1):
    return op(f"autograd::engine::evaluate_function: {name}", ts, dur, tid, seq, forward)


def launch(ts, correlation, tid=MAIN, name="cudaLaunchKernel", **args):
    return event("cuda_runtime", name, ts, 1, tid, correlation=correlation, **args)


def kernel(ts, dur, correlation, name="gemm", device=0, stream=7, cat="kernel", **args):
    return event(cat, name, ts, dur, stream, device, device=device, stream=stream, correlation=correlation, **args)


def pair(at, ts, dur, correlation, tid=MAIN, **more):
    """A launch and its record."""
    return [launch(at, correlation, tid), kernel(ts, dur, correlation, **more)]


def save(folder, events, name="t.json", **head):
    path = folder / name
    head = {"schemaVersion": 1, "baseTimeNanoseconds": BASE_NS, **head}
    path.write_text(json.dumps({**head, "traceEvents": events}))
    return path


def joined(folder, events, **options):
    return join_trace(read_trace(save(folder, events)), **options)


def owned(found, device="gpu:0"):
    """Return {(fqn, phase): ns of records} of one device."""
    times = Counter()
    for (fqn, phase, _), ns in staged(found, device).items():
        times[fqn, phase] += ns
    return dict(times)


def staged(found, device="gpu:0"):
    """Return {(fqn, phase, stage): ns of records} of one device."""
    activity = next(a for a in found.activities if a.device == device)
    length = np.bincount(activity.slot, activity.end_ns - activity.start_ns, len(activity.slots))
    return {(s.fqn, s.phase, s.stage): int(ns) for s, ns in zip(activity.slots, length, strict=True) if ns}
