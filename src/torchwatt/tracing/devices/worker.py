"""The worker: joins one recorded window, in a process of its own since parsing would hold the user's GIL.

Its arguments are TRACE RANGES RESULT OFFSET_NS. Deletes the trace and the ranges; the result is there whole or not at
all, and says what failed if something did.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from torchwatt.tracing.devices.exchange import read_ranges, write_activities, write_error
from torchwatt.tracing.traces import join, read_trace

NICENESS = 15


def main(arguments: list[str]) -> int:
    """Join a window; 1 if it failed."""
    trace, ranges, result = (Path(argument) for argument in arguments[:3])
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    try:
        joined = join(read_trace(trace), live=read_ranges(ranges), offset_ns=int(arguments[3]))
        write_activities(result, joined.activities)
    except Exception as error:  # whatever it was belongs into the result: nobody reads our stderr
        write_error(result, f"{type(error).__name__}: {error}")
        return 1
    finally:
        for path in (trace, ranges):
            path.unlink(missing_ok=True)
    return 0
