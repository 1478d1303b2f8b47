"""What a session costs a step on the CPU, in many processes at once, each on processors of its own.

Each process errs by some per cent as a whole; the mean of all, with its 90 % interval by Student's t, says more.
"""

import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

PROCESSORS = 3  # of each process: training, the sampler, the rest
STUDENT = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89)  # 95th percentile, 1 to 7 degrees of freedom
SCRIPT = str(Path(__file__).parents[1] / "interleaved.py")


def main():
    every = sorted(os.sched_getaffinity(0))
    groups = [every[i : i + PROCESSORS] for i in range(0, len(every) - PROCESSORS + 1, PROCESSORS)]
    command = [sys.executable, SCRIPT, "--model", "transformer", "--steps", *(sys.argv[2:] or ["400"])]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # a program of the CPU alone
    jobs = [
        subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, group)), *command], stdout=subprocess.PIPE, text=True, env=hidden
        )
        for group in groups
    ]
    texts = [job.communicate()[0] for job in jobs]
    print(texts[0])
    for title in ("control", "budget 0.01", "budget 0.001"):
        for timed in ("CPU", "wall"):
            for kind in ("median", "sum"):
                pattern = rf"{re.escape(title)}: .*?\n(?:    CPU .*\n)?    {timed} .*?{kind} ([\d.]+)"
                found = [float(match[1]) for text in texts if (match := re.search(pattern, text))]
                if len(found) > 1:
                    half = STUDENT[min(len(found) - 2, 6)] * statistics.stdev(found) / len(found) ** 0.5
                    mean = statistics.fmean(found)
                    print(f"{title:12} {timed:4} {kind:6} {mean:.4f} [{mean - half:.4f}, {mean + half:.4f}] of {found}")


if __name__ == "__main__":
    main()
