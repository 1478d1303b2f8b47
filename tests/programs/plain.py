"""Run programs by name, as anybody would: `python -m tests.programs.plain NAME ...`.

Nothing of torchwatt is imported, so that `torchwatt run` and plain Python run the same script. It ends with the exit
status that `--status` names.
"""

import argparse
import random
import sys
import time

import torch

from tests.programs.catalog import PROGRAMS
from tests.programs.truth import Parts


def prepare(name, length=1.0):
    """Return a program's parts, models and function, the same at every call."""
    torch.manual_seed(0)
    random.seed(0)
    torch.set_num_threads(1)
    parts = Parts(length, time.perf_counter if PROGRAMS[name].waits else time.thread_time)
    models, run = PROGRAMS[name].make(parts)
    return parts, models, run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=list(PROGRAMS))
    parser.add_argument("--length", type=float, default=1.0)
    parser.add_argument("--status", type=int, default=0)
    asked = parser.parse_args()
    for name in asked.names:
        _, _, run = prepare(name, asked.length)
        print(name, end=" ", flush=True)
        run()
    return asked.status


if __name__ == "__main__":
    sys.exit(main())
