"""How many files the process may still open: descriptors are the program's, and a run makes do with few."""

from __future__ import annotations

import errno
from pathlib import Path

SPARE = 64  # where fewer are left, a run opens only what it cannot do without


def are_scarce() -> bool:
    """Return whether the process may open fewer than SPARE more descriptors.

    Where that cannot be counted (no /proc/self/fd), they are taken to be enough.
    """
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return limit != resource.RLIM_INFINITY and limit - len(list(Path("/proc/self/fd").iterdir())) < SPARE
    except ImportError:  # Windows has no such limit
        return False
    except OSError as error:
        return error.errno in {errno.EMFILE, errno.ENFILE}
