"""Known truth: the twelve acceptance cases behind simulated sensors, the estimator against time share.

Each cell is the mean over seeds; `worst` the worst seed. Goals are those of the acceptance.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.attribution.cases import A100, CASES, distinct
from tests.attribution.scoring import score
from tests.attribution.simulator import simulate

HEAD = f"{'case':<5} {'what':<42}     ew  worst  goal  top10  goal  time share  cover  z rms fit    s"


def line(case, scores, seconds):
    ew = [s.ew for s in scores]
    top = np.mean([s.top10 for s in scores])
    share = np.mean([s.time_share for s in scores])
    cover = np.mean([s.inside for s in scores])
    rms = np.sqrt(np.mean([s.z_rms**2 for s in scores]))
    fits = sum(s.fitted for s in scores)
    goal = case.ew if case.ew < 1 else case.of_time_share * share
    top_goal = f"{case.top10:.3f}" if case.top10 else "     "
    return (
        f"{case.name:<5} {case.what:<42} {np.mean(ew):6.3f} {max(ew):6.3f} {goal:5.3f} {top:6.3f} {top_goal} "
        f"{share:11.3f} {cover:6.2f} {rms:6.2f} {fits:2d}/{len(scores)} {seconds:4.1f}"
    )


def long_run(minutes):
    """Time one long run: 23 minutes of 240 layers are 2.4 million records."""
    simulated = simulate(distinct(0, layers=120), A100, minutes=minutes, seed=0)
    begun = time.perf_counter()
    found = score(simulated)
    spent, count = time.perf_counter() - begun, len(simulated.activity)
    print(f"{count} records in {spent:.1f} s; ew {found.ew:.3f} (time share {found.time_share:.3f})")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--cases", default=",".join(case.name for case in CASES))
    parser.add_argument("--minutes", type=float, default=0.0, help="also time a run of this length with 240 layers")
    options = parser.parse_args()
    print(HEAD)
    inside = []
    for case in CASES:
        if case.name not in options.cases.split(","):
            continue
        scores, spent = [], 0.0
        for seed in range(options.first, options.first + options.seeds):
            simulated = case.run(seed)
            begun = time.perf_counter()
            scores.append(score(simulated))
            spent += time.perf_counter() - begun
        inside += [s.inside for s in scores]
        print(line(case, scores, spent / len(scores)), flush=True)
        worst = max(max(s.balance_rel, 0) for s in scores)
        if worst > 1e-9:
            print(f"      books do not balance: {worst}")
        if max(s.total_rel for s in scores) > 1e-3:
            print(f"      metered against truth: {max(s.total_rel for s in scores):.4f}")
    if options.minutes:
        long_run(options.minutes)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"90 % intervals hold {np.mean(inside):.3f} over {len(inside)} fits; peak memory {peak_mb:.0f} MB")


if __name__ == "__main__":
    main()
