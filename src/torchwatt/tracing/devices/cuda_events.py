"""CUDA events of one device as a clock: see `stamps`."""

from __future__ import annotations

from typing import Any

import torch


def devices_in_use() -> tuple[int, ...]:
    """Return torch's numbers of the devices that this process has set up; sets up none."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return ()
    has_context = torch._C._cuda_hasPrimaryContext  # type: ignore[attr-defined]
    return tuple(index for index in range(torch.cuda.device_count()) if has_context(index))


def capturing() -> bool:
    """Say whether this thread captures a graph: nearly every other call would break that."""
    return bool(torch.cuda.is_initialized()) and torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]


class CudaEvents:
    """Events on the current stream of one device, or apart on an empty one."""

    def __init__(self, index: int) -> None:
        self._apart = torch.cuda.Stream(index)  # type: ignore[no-untyped-call]

    def record(self, *, apart: bool = False) -> Any:
        """Put an event into a queue; None while a graph is captured, which it would become a part of."""
        if capturing():
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._apart if apart else torch.cuda.current_stream(self._apart.device))
        return event

    def passed(self, event: Any) -> bool:
        """Say whether the device has got there."""
        return bool(event.query())

    def ns_between(self, first: Any, second: Any) -> float:
        """Return nanoseconds; CUDA gives milliseconds in single precision, good to half a microsecond."""
        return float(first.elapsed_time(second)) * 1e6
