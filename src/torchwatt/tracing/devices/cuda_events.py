"""CUDA events of one device as a clock; see `stamps`."""

from __future__ import annotations

from typing import Any

import torch


class CudaEvents:
    """Events on the current stream of one device, or on a separate, empty one."""

    def __init__(self, index: int) -> None:
        self._separate = torch.cuda.Stream(index)  # type: ignore[no-untyped-call]

    def record(self, *, separate: bool = False) -> Any:
        """Record an event on a stream; not during graph capture, since the event would become part of the graph."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._separate if separate else torch.cuda.current_stream(self._separate.device))
        return event

    def passed(self, event: Any) -> bool:
        """Return whether the device has reached an event."""
        return bool(event.query())

    def ns_between(self, start: Any, end: Any) -> float:
        """Return the time between events in ns; CUDA returns ms in single precision, exact to about 0.5 us."""
        return float(start.elapsed_time(end)) * 1e6
