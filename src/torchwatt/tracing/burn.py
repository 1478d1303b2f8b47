"""Keep a device busy for an exact time: the load of a calibration."""

from __future__ import annotations

import time
from collections.abc import Callable

from torchwatt.core.errors import ConfigError

# Large enough to fill any GPU, small enough to stop within a millisecond.
SIDE = 2048


def cuda_burner(index: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> Callable[[int], tuple[int, int]]:
    """Return a function that keeps one CUDA device busy for a time in ns and returns the load's (start_ns, end_ns).

    Raises:
        ConfigError: This torch sees no such device.
    """
    import torch

    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise ConfigError(f"calibrate: this torch sees no CUDA device {index}; install a CUDA build, see torch.org")
    device = torch.device("cuda", index)
    a = torch.randn(SIDE, SIDE, device=device, dtype=torch.float16)
    out = torch.empty_like(a)

    def burn(duration_ns: int) -> tuple[int, int]:
        torch.cuda.synchronize(device)
        start_ns = clock_ns()
        while clock_ns() - start_ns < duration_ns:
            torch.mm(a, a, out=out)
            torch.cuda.synchronize(device)  # after each product: the measured end is at most one product late
        return start_ns, clock_ns()

    burn(200_000_000)  # clocks up, libraries loaded
    return burn
