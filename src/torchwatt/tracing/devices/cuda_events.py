"""CUDA events of one device as a clock: see `stamps`."""

from __future__ import annotations

from typing import Any

import torch


class CudaEvents:
    """Events on the current stream of one device, or apart on an empty one."""

    def __init__(self, index: int) -> None:
        self._apart = torch.cuda.Stream(index)  # type: ignore[no-untyped-call]

    def record(self, *, apart: bool = False) -> Any:
        """Put an event into a queue; never while a graph is captured, which it would become a part of."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._apart if apart else torch.cuda.current_stream(self._apart.device))
        return event

    def passed(self, event: Any) -> bool:
        """Say whether the device has got there."""
        return bool(event.query())

    def ns_between(self, first: Any, second: Any) -> float:
        """Return nanoseconds; CUDA gives milliseconds in single precision, good to half a microsecond."""
        return float(first.elapsed_time(second)) * 1e6
