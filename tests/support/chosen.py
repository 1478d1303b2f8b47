"""The part of a large set of cases that `make test` runs at a commit: its hash chooses. `make test-all` runs all.

`TORCHWATT_CASES=all` chooses all; any other value is used in place of the hash, to run what an earlier commit chose.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

CASES = "TORCHWATT_CASES"
ALL = "all"


@cache
def commit() -> str:
    """Return what chooses the cases: the commit, or the value of TORCHWATT_CASES. Without git it is empty."""
    if given := os.environ.get(CASES):
        return given
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return git.stdout.strip()


def chosen(names: Iterable[str], count: int, by: str | None = None) -> set[str]:
    """Return `count` of the names, or all if there are no more; each name is chosen by one commit in a few."""
    by = commit() if by is None else by
    names = list(names)
    if by == ALL:
        return set(names)
    return set(sorted(names, key=lambda name: hashlib.sha256(f"{by} {name}".encode()).digest())[:count])
