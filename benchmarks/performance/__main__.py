"""What torchwatt costs beside its peers: steps, CPU, memory, start, stop, and how these grow.

    python benchmarks/performance [--table steps beside edges devices modules growth] [--tool NAME ...]
                                  [--pairs N] [--steps N] [--repeats N] [--minutes N] [--threads N]

Every figure comes from a process of its own (child.py), all of them with the same simulated H100 where there is
a C compiler to build it, else with what this machine has. Peers that are not installed are left out, and named:
`pip install -r benchmarks/requirements.txt` into an environment of its own.

steps    mean step with the tool / mean step without, neighbours in one process in the order ABBA; the median of the
         pairs and its 90 % bootstrap interval, in CPU time of the training thread and in wall time; and the CPU that
         the tool's other processes take, in per cent of one core.
beside   CPU of the tool while the program sleeps for half a minute, in its own process and in others, and what its
         marks around a step take: what ratios of steps cannot resolve. Wrappers in a step: in_place.py.
edges    import and start together (both are paid before the first step), stop, memory added (proportional set size of
         the process and its children, after two seconds of steps); medians over repeats.
devices  the same with 1, 2, 4 and 8 devices.
modules  the same with 10 to 10,000 modules, and the step.
growth   memory at the first and the last minute of a long run, and what its stop takes.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

from simulated import environment
from tools import TOOLS, Tool

BOOTSTRAPS = 2_000
CHILD = Path(__file__).with_name("child.py")
OURS = [name for name in TOOLS if name.startswith("torchwatt")]
SIZES = (10, 100, 1_000, 10_000)


def child(kind, env, **options):
    """Return one measurement, None and a line about it where the tool failed."""
    command = [sys.executable, str(CHILD), kind, json.dumps(options)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{options['tool']}: failed: {last}", flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def interval(values):
    """Return the median and the 90 % bootstrap interval of the median."""
    medians = sorted(statistics.median(random.choices(values, k=len(values))) for _ in range(BOOTSTRAPS))
    return f"{statistics.median(values):.4f} [{medians[BOOTSTRAPS // 20]:.4f}, {medians[-BOOTSTRAPS // 20]:.4f}]"


def rows(header, lines):
    """Print a table in Markdown."""
    print("\n| " + " | ".join(header) + " |\n|" + " --- |" * len(header))
    for cells in lines:
        if cells is not None:
            print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)
    print(flush=True)


def ratio(pairs, column):
    return interval([tool[column] / plain[column] for plain, tool in pairs])


def steps(asked, env):
    """Print the ratios of steps; tools take turns, so that a quiet minute of the machine is not one tool's alone."""
    rounds = max(asked.pairs // 4, 1)
    found = {tool: [] for tool in asked.tool}
    for _ in range(rounds):
        for tool in random.sample(asked.tool, len(asked.tool)):
            options = {"steps": asked.steps, "pairs": asked.pairs // rounds, "threads": asked.threads}
            pairs = child("pairs", env, tool=tool, device=asked.device, **options)
            found[tool] += pairs or []
    plain_ms = 1e3 * statistics.median(pair[0]["wall_s"] for pairs in found.values() for pair in pairs)
    print(f"{plain_ms:.1f} ms a bare step, {asked.pairs} pairs of {asked.steps} steps, {asked.threads} thread(s)")

    def line(tool, pairs):
        if not pairs:
            return None
        other = statistics.median(pair[1]["other_cpu"] for pair in pairs)
        return tool, TOOLS[tool].duty, ratio(pairs, "thread_s"), ratio(pairs, "wall_s"), f"{other:.2%}"

    header = ("tool", "duty", "step, thread CPU [90 %]", "step, wall [90 %]", "other processes, of a core")
    rows(header, (line(tool, pairs) for tool, pairs in found.items()))


def edge(asked, env, tool, **options):
    """Return the cells of import and start, stop, memory and CPU, medians over repeats."""
    found = [child("edges", env, tool=tool, threads=asked.threads, **options) for _ in range(asked.repeats)]
    kept = [each for each in found if each]
    if not kept:
        return None

    def middle(value):
        return statistics.median(value(each) for each in kept)

    return (
        f"{middle(lambda e: e['import_s'] + e['start_s']):.2f} s",
        f"{middle(lambda e: e['stop_s']):.2f} s",
        f"{middle(lambda e: e['memory_mib']):.0f} MiB",
        f"{middle(lambda e: e['other_cpu']):.2%}",
    )


def beside(asked, env):
    """Print what goes on beside the training thread."""

    def line(tool):
        found = child("beside", env, tool=tool, seconds=30, threads=asked.threads)
        if found is None:
            return None
        mark = f"{found['mark_s'] * 1e6:.1f} us" if TOOLS[tool].per_step is not Tool.per_step else ""
        return tool, TOOLS[tool].duty, f"{found['own_cpu']:.3%}", f"{found['other_cpu']:.2%}", mark

    header = ("tool", "duty", "CPU in the program, of a core", "in other processes", "marks a step")
    rows(header, (line(tool) for tool in asked.tool))


EDGES = ("import + start", "stop", "memory added", "other processes, of a core")


def edges(asked, env):
    found = ((tool, edge(asked, env, tool)) for tool in asked.tool)
    rows(("tool", *EDGES), ((tool, *cells) for tool, cells in found if cells))


def devices(asked, _env):
    """Print what more devices cost; only where they can be simulated."""
    if environment(1) is None:
        print("devices: left out, for there is no C compiler to build the simulated NVML")
        return
    tools = [tool for tool in asked.tool if tool in {OURS[0], OURS[1]} or tool.startswith(("zeus", "codecarbon, 1 s"))]
    found = ((tool, n, edge(asked, environment(n), tool)) for tool in tools for n in (1, 2, 4, 8))
    rows(("tool", "devices", *EDGES), ((tool, n, *cells) for tool, n, cells in found if cells))


def modules(asked, env):
    """Print what more modules cost."""
    tools = [tool for tool in asked.tool if tool in OURS[1:2] or tool == "torch.profiler"]

    def line(tool, n):
        cells = edge(asked, env, tool, modules=n)
        count = max(200 // n, 1) * asked.steps
        found = child("pairs", env, tool=tool, steps=count, pairs=asked.pairs, modules=n, threads=asked.threads)
        if cells is None or found is None:
            return None
        ms = 1e3 * statistics.median(pair[0]["wall_s"] for pair in found)
        return tool, n, f"{ms:.2f} ms", ratio(found, "wall_s"), *cells

    header = ("tool", "modules", "bare step", "step, wall [90 %]", *EDGES)
    rows(header, (line(tool, n) for tool in tools for n in SIZES))


def growth(asked, env):
    """Print memory and stop time of a short and of a long run, all tools side by side."""
    lengths = (60, 60 * asked.minutes)
    jobs = {}
    for tool in asked.tool:
        for seconds in lengths:
            options = json.dumps({"tool": tool, "seconds": seconds})
            command = [sys.executable, str(CHILD), "growth", options]
            jobs[tool, seconds] = subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
    found = {key: job.communicate()[0] for key, job in jobs.items()}

    def line(tool):
        short, long = (json.loads(found[tool, seconds].splitlines()[-1]) for seconds in lengths)
        first, last = long["memory_mib"][0], long["memory_mib"][-1]
        half = long["memory_mib"][len(long["memory_mib"]) // 2]
        slope = (last - half) / max(len(long["memory_mib"]) / 2, 1)
        cells = f"{first:.0f} MiB", f"{last:.0f} MiB", f"{slope:+.3f} MiB/min"
        return tool, *cells, f"{short['stop_s']:.2f} s", f"{long['stop_s']:.2f} s"

    header = ("tool", "1st minute", f"minute {asked.minutes}", "2nd half", "stop, 1 min", f"stop, {asked.minutes} min")
    rows(header, (line(tool) if found[tool, lengths[1]] else None for tool in asked.tool))


TABLES = {"steps": steps, "beside": beside, "edges": edges, "devices": devices, "modules": modules, "growth": growth}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = [table for table in TABLES if table != "growth"]
    parser.add_argument("--table", nargs="+", choices=list(TABLES), default=tables)
    parser.add_argument("--tool", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="of the steps of table `steps`, such as cuda")
    asked = parser.parse_args()
    missing = [tool for tool in asked.tool if not TOOLS[tool].installed]
    asked.tool = [tool for tool in asked.tool if tool not in missing]
    if missing:
        print(f"not installed, so left out: {', '.join(missing)}")
    random.seed(0)
    env = environment(1)
    print("one simulated H100" if env else "the meters of this machine", "for every tool")
    for table in asked.table:
        print(f"\n## {table}", flush=True)
        TABLES[table](asked, env)


if __name__ == "__main__":
    main()
