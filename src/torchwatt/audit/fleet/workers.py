"""Adds bundles in several processes.

It uses `subprocess`, not `multiprocessing`, so `__main__` of a notebook or script does not run again, and a process
with threads is not forked. Bundles and outcomes are sent as lines of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from torchwatt.audit.fleet.one import Found, How, Outcome
from torchwatt.core.errors import BundleError
from torchwatt.helper_process import helper_command

CHUNK = 32


def add_many(root: Path, bundles: Sequence[Found], options: How, jobs: int) -> tuple[Outcome, ...]:
    """Add bundles with several processes and return the outcomes in the order of the bundles.

    Raises:
        BundleError: A process ended before its work was done.
    """
    chunks = [bundles[at : at + CHUNK] for at in range(0, len(bundles), CHUNK)]
    done: dict[int, list[Outcome]] = {}
    waiting, lock = list(enumerate(chunks))[::-1], threading.Lock()
    with ThreadPoolExecutor(jobs) as pool:
        for feeder in [pool.submit(_feed, root, options, waiting, lock, done) for _ in range(jobs)]:
            feeder.result()
    return tuple(outcome for index in sorted(done) for outcome in done[index])


def _feed(
    root: Path,
    options: How,
    waiting: list[tuple[int, Sequence[Found]]],
    lock: threading.Lock,
    done: dict[int, list[Outcome]],
) -> None:
    """Send chunks to one process until none is left."""
    # One thread per process: the parallelism is by processes.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "1"}
    command = helper_command("torchwatt.audit.fleet.worker", str(root), json.dumps(asdict(options)))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdin is not None  # noqa: S101  # both are pipes
        assert process.stdout is not None  # noqa: S101
        while True:
            with lock:
                if not waiting:
                    break
                index, chunk = waiting.pop()
            process.stdin.write(json.dumps([asdict(item) for item in chunk]) + "\n")
            process.stdin.flush()
            reply = process.stdout.readline()
            if not reply:
                raise BundleError("a process that adds bundles has ended before its work: see its messages on stderr")
            done[index] = [Outcome(**item) for item in json.loads(reply)]
        process.stdin.close()
