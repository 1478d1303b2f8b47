"""Programs of every kind: what is true of them by their own clock and counters, and what torchwatt reports.

    python benchmarks/programs.py [--only NAME ...] [--heavy] [--seconds 6] [--repeats 3]

For each program a line a phase and a timed group of modules: percent of the program's seconds, percent of the CPU's
joules, difference in points, each the median of the repeats. Truth and report are of the same run. A difference beyond
the goal is marked: 3 points (5 where steps are below 1 ms) for a phase, 5 for a group. Steps are those of each stage;
calls are counted by the program, and the report's are the same, empty, or wrong.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.programs.catalog import PROGRAMS
from tests.programs.measure import Pair, bound, in_the_middle, measure

USUAL_S = 0.6  # how long programs run at length 1
PHASE_POINTS, SHORT_POINTS, GROUP_POINTS = 3.0, 5.0, 5.0


def shares(result):
    for pairs, goal in (
        (result.phases, bound(result, usual=PHASE_POINTS, short=SHORT_POINTS)),
        (result.groups, GROUP_POINTS),
    ):
        for name, pair in pairs.items():
            yield name, pair, goal


def show(result):
    """Print one program; return what is beyond the goals."""
    print(
        f"{result.program}: {result.seconds:.2f} s, {result.step_ms:.2f} ms a step, (profiler) {result.profiler:.2f} %"
    )
    beyond = []
    for name, pair, goal in shares(result):
        points = pair.reported - pair.truth
        if abs(points) > goal:
            beyond.append(f"{name} {points:+.1f}")
        mark = "  <--" if abs(points) > goal else ""
        print(f"    {name:28} {pair.truth:6.1f} % {pair.reported:6.1f} % {points:+6.1f}{mark}")
    wrong = [f"{stage} {told(pair)}" for stage, pair in result.steps.items() if pair.truth != pair.reported]
    print(f"    steps {', '.join(f'{stage} {told(pair)}' for stage, pair in result.steps.items())}")
    kinds = {"the same": 0, "empty": 0, "wrong": 0}
    for pair in result.calls.values():
        kinds["empty" if pair.reported is None else "the same" if pair.truth == pair.reported else "wrong"] += 1
    print(f"    calls {', '.join(f'{n} {kind}' for kind, n in kinds.items())}", end="")
    different = {name: pair for name, pair in result.calls.items() if pair.reported not in {None, pair.truth}}
    print("".join(f"; {name} {told(pair)}" for name, pair in list(different.items())[:6]))
    for what in ("strange_names", "missing_names", "unequal_parents"):
        if found := getattr(result, what):
            print(f"    {what.replace('_', ' ')}: {', '.join(found[:8])}")
            beyond.append(what.replace("_", " "))
    print(f"    events {', '.join(result.events) or 'none'}", flush=True)
    return [*beyond, *(f"steps {each}" for each in wrong), *(["calls"] if different else [])]


def told(pair: Pair):
    return f"{pair.truth:g}/{'-' if pair.reported is None else f'{pair.reported:g}'}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PROGRAMS), metavar="NAME")
    parser.add_argument(
        "--heavy", action="store_true", help="compiled forms, thousands of modules, the shortest steps too"
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="about how long a program runs")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    names = asked.only or [name for name, each in PROGRAMS.items() if asked.heavy or not each.heavy]
    print(f"{'program, and its parts':32} {'truth':>8} {'reported':>8} {'points':>6}")
    beyond = {}
    for name in names:
        length = asked.seconds / USUAL_S
        beyond[name] = show(in_the_middle(measure(name, length) for _ in range(asked.repeats)))
    print(f"\n{sum(not found for found in beyond.values())} of {len(beyond)} programs within the goals")
    for name, found in beyond.items():
        if found:
            print(f"    {name}: {', '.join(found)}")


if __name__ == "__main__":
    main()
