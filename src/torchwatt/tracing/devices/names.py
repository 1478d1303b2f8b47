"""Match torch devices to meters by UUID, since CUDA and NVML number devices differently."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any


def device_names(torch_cuda: Any, meters: Mapping[str, str]) -> dict[str, str]:
    """Map "gpu:<torch index>" to the domain of the device's meter.

    torch numbers the devices in CUDA_VISIBLE_DEVICES in CUDA's order; a meter is identified by its UUID. A device
    without a meter keeps torch's number with a mark, so that it is never given the energy of another device.

    Args:
        torch_cuda: `torch.cuda`.
        meters: Domain of each meter by the device's UUID, as NVML writes it ("GPU-...").
    """
    by_uuid = {_plain(uuid): domain for uuid, domain in meters.items()}
    names = {}
    for index in range(torch_cuda.device_count()):
        uuid = ""
        with contextlib.suppress(Exception):  # a device whose properties cannot be read has no meter
            uuid = str(torch_cuda.get_device_properties(index).uuid)
        names[f"gpu:{index}"] = by_uuid.get(_plain(uuid), f"gpu:{index} (no meter)")
    return names


def _plain(uuid: str) -> str:
    return uuid.removeprefix("GPU-").lower()
