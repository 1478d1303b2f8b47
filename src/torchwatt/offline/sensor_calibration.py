"""`calibrate`: drives one GPU with a random square wave of load and fits the response of its power sensor."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from torchwatt.attribution.response_calibration import calibrate_square_wave
from torchwatt.attribution.sensor_response import RING_RESPONSES, SENSOR_FAMILIES, SensorModel, find_sensor_family
from torchwatt.core.errors import ConfigError, SensorError
from torchwatt.core.meter import Channel, IntArray, Meter, Recording
from torchwatt.core.units import NS_PER_S
from torchwatt.sensors import Sampler, discover
from torchwatt.sensors.calibrations import calibration_key, calibrations_file, save_calibration
from torchwatt.sensors.protocol import Discovery, MeteredSource, Source

# Random dwell times, because a sensor that updates in sync with a periodic load would not be resolved.
SECONDS = 25.0
MAX_SECONDS = 3600.0
DWELL_S = (0.06, 0.26)
POLL_NS = 5_000_000

Burn = Callable[[int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class SensorCalibration:
    """The fitted model of one power channel, its key in the calibration file, and the number of readings used.

    `fine` is the calibration of the driver's own sample buffer, if the driver has one.
    """

    meter: Meter
    channel: Channel
    key: str
    model: SensorModel
    readings: int
    fine: SensorCalibration | None = None


def calibrate(
    device: str = "gpu:0",
    *,
    seconds: float = SECONDS,
    burn: Burn | None = None,
    path: Path | None = None,
    seed: int = 0,
    discovery: Discovery | None = None,
) -> SensorCalibration:
    """Calibrate a GPU's power sensor and the driver's sample buffer, and save the results in the calibration file.

    Args:
        device: The domain, as in reports.
        seconds: Duration of the load.
        burn: Keeps the device busy for the given nanoseconds and returns (start_ns, end_ns); default: products on CUDA.
        path: The calibration file; default: see `torchwatt.sensors.calibrations`.
        seed: Seed of the random dwell times.
        discovery: The meters to choose from; discovered by default.

    Raises:
        ConfigError: The device does not exist, has no power sensor or no identity, or torch cannot use it.
        SensorError: The readings do not fit a sensor model. Channels calibrated before the error stay saved.
    """
    if not 0 < seconds <= MAX_SECONDS:
        raise ConfigError(f"calibrate: {seconds:g} seconds: give more than 0 and at most {MAX_SECONDS:g}")
    source, meter, channel = _find_power_channel(device, discovery or discover(rapl=False, perf=False, modelled=False))
    if calibration_key(meter, channel.sensor) is None:
        raise ConfigError(f"calibrate: {device} reports no uuid or no driver version, which a saved calibration needs")
    if burn is None:
        from torchwatt.offline.layer_replay import cuda_burner

        burn = cuda_burner(meter.domain.index or 0)
    fine = next((channel_ for channel_ in meter.channels if channel_.stamped), None)
    sampler = Sampler(Discovery((_fast_source(source, meter, channel, fine),)))
    sampler.start()
    try:
        busy = _square_wave(burn, seconds, random.Random(seed))  # noqa: S311  dwells, not secrecy
    finally:
        recording = sampler.stop()
    edges_ns = np.array(busy, dtype=np.int64).ravel()
    calibration_path = path or calibrations_file()
    found_plain = _calibrate_channel(meter, channel, recording, edges_ns, calibration_path)
    return replace(
        found_plain,
        fine=_calibrate_channel(meter, fine, recording, edges_ns, calibration_path) if fine is not None else None,
    )


def _calibrate_channel(
    meter: Meter, channel: Channel, recording: Recording, edges_ns: IntArray, path: Path
) -> SensorCalibration:
    """Fit one channel's model to the readings recorded during the load, and save it."""
    series, key = recording.get(channel.key), calibration_key(meter, channel.sensor)
    if series is None or len(series) == 0 or key is None:
        raise SensorError(f"calibrate: {channel.key} gave no reading")
    start = (RING_RESPONSES if channel.stamped else SENSOR_FAMILIES).get(find_sensor_family(meter.model) or "")
    model = calibrate_square_wave(edges_ns, series, start)
    save_calibration(path, key, model.to_json())
    return SensorCalibration(meter, channel, key, model, len(series))


def _find_power_channel(device: str, discovery: Discovery) -> tuple[Source, Meter, Channel]:
    for source in discovery.sources:
        for meter in source.meters:
            channel = meter.channel("power")
            if str(meter.domain) == device and channel is not None and channel.sensor.startswith("nvml"):
                return source, meter, channel
    domains = ", ".join(str(meter.domain) for meter in discovery.meters) or "no device"
    why = "; ".join(missing.reason for missing in discovery.unavailable)
    raise ConfigError(f"calibrate: no power sensor of {device!r} here (found: {domains}{'; ' + why if why else ''})")


def _fast_source(source: Source, meter: Meter, channel: Channel, fine: Channel | None) -> MeteredSource:
    """Return a source with `fine` and the channel, polled every 5 ms or slower to cost at most 1 % of time."""
    call_s = source.call_s.get(channel.key, 0.0)
    period_ns = max(POLL_NS, round(100 * call_s * NS_PER_S))
    polled = replace(channel, period_ns=period_ns)
    fast_meter = replace(meter, channels=(polled,) if fine is None else (polled, fine))
    return MeteredSource((fast_meter,), source.spec, source.call_s, edges=False)


def _square_wave(burn: Burn, seconds: float, dwell: random.Random) -> list[tuple[int, int]]:
    """Alternate load and pauses; return the (start_ns, end_ns) of each load."""
    end_ns = time.monotonic_ns() + round(seconds * NS_PER_S)
    busy = []
    while time.monotonic_ns() < end_ns:
        busy.append(burn(round(dwell.uniform(*DWELL_S) * NS_PER_S)))
        time.sleep(dwell.uniform(*DWELL_S))
    return busy
