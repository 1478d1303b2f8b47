"""Worker process: join one recorded window, outside the user's process since parsing would hold its GIL.

Arguments: TRACE RANGES RESULT OFFSET_NS. Deletes the trace and the ranges; the result file is complete or absent, and
has an error message if joining failed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from torchwatt.kineto import join_trace, read_trace
from torchwatt.kineto.window_files import read_ranges, write_activities, write_error

NICENESS = 15


def main(arguments: list[str]) -> int:
    """Join a window; return 1 if it failed."""
    trace, ranges, result = (Path(argument) for argument in arguments[:3])
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    try:
        joined = join_trace(read_trace(trace), live=read_ranges(ranges), offset_ns=int(arguments[3]))
        write_activities(result, joined.activities)
    except Exception as error:  # any error goes into the result: stderr is not read
        write_error(result, f"{type(error).__name__}: {error}")
        return 1
    finally:
        for path in (trace, ranges):
            path.unlink(missing_ok=True)
    return 0
