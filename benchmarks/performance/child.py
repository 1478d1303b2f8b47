"""One measurement in a process of its own: `python child.py KIND JSON`, the answer is JSON on the last line."""

import contextlib
import functools
import gc
import io
import json
import socket
import sys
import time

import psutil
import torch
from models import chain, transformer, transformer_on
from tools import TOOLS

ME = psutil.Process()


def tree():
    """Return this process and those that it started."""
    return [ME, *ME.children(recursive=True)]


def children_cpu_s():
    """Return CPU seconds of the processes that this one started and that live."""
    total = 0.0
    for process in ME.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def memory_mib():
    """Return the proportional set size of the whole tree: shared pages are counted once."""
    total = 0
    for process in tree():
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 2**20


def wait(model):
    """Wait until the device has done what it was given."""
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()


def block(tool, model, step, steps):
    """Run steps under a tool; return wall and thread CPU seconds a step, and the CPU of all else a second of wall."""
    gc.collect()
    wait(model)
    with tool.block(model) as handle:
        marked = tool.per_step(handle, step)
        process, others, thread, wall = time.process_time(), children_cpu_s(), time.thread_time(), time.perf_counter()
        for _ in range(steps):
            marked()
        wait(model)
        wall, thread = time.perf_counter() - wall, time.thread_time() - thread
        process, others = time.process_time() - process, children_cpu_s() - others
    return {
        "wall_s": wall / steps,
        "thread_s": thread / steps,
        "process_s": process / steps,
        "other_cpu": others / wall,
    }


def pairs(tool, steps, pairs, modules=None, device="cpu"):
    """Return blocks without and with the tool, neighbours by turns (ABBA)."""
    make = transformer if device == "cpu" else functools.partial(transformer_on, device)
    model, step = chain(modules) if modules else make(foreach=True)
    tool, plain = TOOLS[tool], TOOLS["bare"]
    block(plain, model, step, 5)
    block(tool, model, step, 3)
    found = []
    for i in range(pairs):
        order = (plain, tool) if i % 4 in {0, 3} else (tool, plain)
        blocks = [block(each, model, step, steps) for each in order]
        found.append(blocks if order[0] is plain else blocks[::-1])
    return found


def edges(tool, modules=None):
    """Return what the tool's import, start and stop take and what memory it holds after two seconds of steps."""
    model, step = chain(modules) if modules else transformer(foreach=True)
    for _ in range(5):
        step()
    before, tool = memory_mib(), TOOLS[tool]
    began = time.perf_counter()
    __import__(tool.module)
    imported = time.perf_counter()
    found = {"import_s": imported - began}
    with tool.block(model) as handle:
        found["start_s"] = time.perf_counter() - imported
        marked, end = tool.per_step(handle, step), time.perf_counter() + 2
        while time.perf_counter() < end:
            marked()
        found["memory_mib"] = memory_mib() - before
        began, others = time.perf_counter(), children_cpu_s()
        time.sleep(2)
        found["other_cpu"] = (children_cpu_s() - others) / (time.perf_counter() - began)
        began = time.perf_counter()
    found["stop_s"] = time.perf_counter() - began
    return found


def beside(tool, seconds, marks=300):
    """Return the CPU that a tool takes while the program does nothing, and what its marks take in the training thread.

    No step disturbs these: they resolve what ratios of steps cannot.
    """
    model, step = transformer(foreach=True)
    for _ in range(5):
        step()
    with TOOLS[tool].block(model) as handle:
        time.sleep(2)
        own, others, began = time.process_time(), children_cpu_s(), time.perf_counter()
        time.sleep(seconds)
        own, others = time.process_time() - own, children_cpu_s() - others
        took_s = time.perf_counter() - began
        marked, each = TOOLS[tool].per_step(handle, lambda: None), []
        for _ in range(marks):
            step_began = time.perf_counter()
            marked()
            each.append(time.perf_counter() - step_began)
    return {"own_cpu": own / took_s, "other_cpu": others / took_s, "mark_s": sorted(each)[len(each) // 2]}


def growth(tool, seconds, pause_s=0.05):
    """Return the tree's memory each minute of a long run, and what its stop takes; steps are short and rare."""
    model, step = transformer(foreach=True)
    tool, found = TOOLS[tool], []
    began = time.monotonic()
    with tool.block(model) as handle:
        marked = tool.per_step(handle, step)
        due = began + 60
        while time.monotonic() - began < seconds + 0.5:
            marked()
            time.sleep(pause_s)
            if time.monotonic() >= due:
                found.append(memory_mib())
                due += 60
        stopping = time.perf_counter()
    return {"memory_mib": found, "stop_s": time.perf_counter() - stopping}


def stay_at_home():
    """Refuse every look-up of a host's name: a tool that asks where it is must not ask the internet here."""
    look_up = socket.getaddrinfo

    def refuse(host, *args, **kwargs):
        if host in {None, "localhost", "127.0.0.1", "::1"}:
            return look_up(host, *args, **kwargs)
        raise socket.gaierror(f"no look-up of {host} in a benchmark")

    socket.getaddrinfo = refuse


def main():
    stay_at_home()
    kind, options = sys.argv[1], json.loads(sys.argv[2])
    torch.manual_seed(0)
    torch.set_num_threads(options.pop("threads", 1))
    with contextlib.redirect_stdout(io.StringIO()):  # some tools print
        answer = {"pairs": pairs, "edges": edges, "beside": beside, "growth": growth}[kind](**options)
    print("\n" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
