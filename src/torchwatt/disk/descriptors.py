"""Checks how many more files the process may open, so that a run leaves descriptors to the program."""

from __future__ import annotations

import errno
from pathlib import Path

SPARE = 64  # with fewer free descriptors, a run opens only what it needs


def are_scarce() -> bool:
    """Return whether the process may open fewer than SPARE more descriptors.

    False if they cannot be counted (no /proc/self/fd).
    """
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return limit != resource.RLIM_INFINITY and limit - len(list(Path("/proc/self/fd").iterdir())) < SPARE
    except ImportError:  # Windows has no such limit
        return False
    except OSError as error:
        return error.errno in {errno.EMFILE, errno.ENFILE}
