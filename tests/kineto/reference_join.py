"""The join done again, slowly and with nothing of ours: json, dictionaries, and a look at every range for every launch.

It knows modules, autograd nodes, their sequence numbers and collectives, which is what hand-checked layers need.
"""

import gzip
import json
import re
from collections import defaultdict
from pathlib import Path

NODE = "autograd::engine::evaluate_function: "
MODULE = "nn.Module: "
LAUNCHES = {"cuda_runtime", "cuda_driver", "Runtime"}
KERNELS = {"kernel", "Kernel"}
RECORDS = KERNELS | {"gpu_memcpy", "gpu_memset", "Memcpy", "Memset"}


def load(path):
    data = Path(path).read_bytes()
    return json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)["traceEvents"]


def ns(time_us):
    return round(time_us * 1000)


def kernel_ns(events):
    """The trace's own kernel time: all durations, added up."""
    return sum(ns(e["dur"]) for e in events if e.get("cat") in KERNELS and e["ph"] == "X")


def innermost(ranges, t):
    holding = [r for r in ranges if r["ts"] <= t < r["ts"] + r["dur"]]
    return max(holding, key=lambda r: (r["ts"], -r["dur"]), default=None)


def layer_times(events):
    """Return {(module, "forward" | "backward"): ns of records}; modules by their own name, such as `Conv2d_7`."""
    host, nodes, ops, launches = defaultdict(list), defaultdict(list), {}, {}
    for e in events:
        thread = (e.get("pid"), e.get("tid"))
        args = e.get("args") or {}
        if e.get("cat") == "python_function" and e["name"].startswith(MODULE):
            host[thread].append(e)
        elif e.get("cat") == "cpu_op" and e["name"].startswith(NODE):
            host[thread].append(e)
            nodes[thread].append(e)
        elif e.get("cat") == "cpu_op" and args.get("Sequence number", -1) >= 0 and not args.get("Fwd thread id"):
            last = ops.get((thread, args["Sequence number"]))
            if last is None or e["ts"] > last["ts"]:
                ops[thread, args["Sequence number"]] = e
        elif e.get("cat") in LAUNCHES:
            launches[args.get("correlation")] = e
    forward = main_thread(ops)
    times = defaultdict(int)
    for e in events:
        if e.get("cat") not in RECORDS or re.search("nccl|cross_device_reduce", e["name"]):
            continue
        launch = launches.get((e.get("args") or {}).get("correlation"))
        if launch is not None and "Graph" not in launch["name"]:
            owner = owner_of(launch, host, nodes, ops, forward)
            if owner:
                times[owner] += ns(e["dur"])
    return dict(times)


def main_thread(ops):
    counts = defaultdict(int)
    for thread, _ in ops:
        counts[thread] += 1
    return max(counts, key=counts.get, default=None)


def owner_of(launch, host, nodes, ops, forward):
    thread = (launch["pid"], launch["tid"])
    inner = innermost(host[thread], launch["ts"])
    if inner is None:
        return None
    if inner["name"].startswith(MODULE):
        again = innermost(nodes[thread], launch["ts"])
        return inner["name"].removeprefix(MODULE), "backward" if again else "forward"
    node = inner
    while node is not None and "Sequence number" not in (node.get("args") or {}):
        before = [n for n in nodes[thread] if n["ts"] + n["dur"] <= node["ts"]]
        node = max(before, key=lambda n: n["ts"] + n["dur"], default=None)
    op = ops.get((forward, node["args"]["Sequence number"])) if node else None
    module = innermost([r for r in host[forward] if r["name"].startswith(MODULE)], op["ts"]) if op else None
    return (module["name"].removeprefix(MODULE), "backward") if module else None
