"""The response of a power sensor: a boxcar over a first-order low-pass, with a lag.

    y_k = gain * (1/w) * integral from u_k - d - w to u_k - d of (P * e_tau)(t) dt + offset + noise

u_k is the instant of publication, w the window, tau the low-pass time constant, d the lag. The A100's "25 of 100 ms"
(Yang, Adamek, Armour, arXiv 2312.02741) is the equivalent width of such a low-pass; see docs/attribution.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

from torchwatt.core.errors import ConfigError
from torchwatt.core.terms import POWER_SAMPLES

# Shorter windows cannot be distinguished from an instant, and a window of zero has no mean.
MIN_WINDOW_S = 5e-4


_MAX_NUMBER = 1e6  # seconds, watts: larger numbers are invalid


@dataclass(frozen=True, slots=True)
class SensorResponse:
    """Window, low-pass and lag of a sensor, in seconds."""

    window_s: float
    tau_s: float = 0.0
    lag_s: float = 0.0

    @property
    def reach_s(self) -> float:
        """Return how long before the publication power still has an effect (to 1 part in 3 million), in s."""
        return self.lag_s + self.window_s + 15.0 * self.tau_s

    def __str__(self) -> str:
        parts = [f"{self.window_s * 1e3:.3g} ms window"]
        if self.tau_s > 0:
            parts.append(f"{self.tau_s * 1e3:.3g} ms low-pass")
        return " and ".join(parts)


@dataclass(frozen=True, slots=True)
class SensorModel:
    """A calibrated sensor; cache it by (GPU UUID, driver, field): it is valid for one combination only.

    `gain` and `offset_w` convert true watts to the sensor's; they are known only beside a second meter.
    """

    kernel: SensorResponse
    period_s: float
    rms_w: float  # residual of the readings it was fitted to
    source: str  # how it was determined
    gain: float = 1.0
    offset_w: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SensorModel:
        """Return the model that `to_json` wrote.

        Raises:
            ConfigError: A field is missing or invalid.
        """
        try:
            kernel = SensorResponse(**{name: float(value) for name, value in values["kernel"].items()})
            numbers = {name: float(values[name]) for name in ("period_s", "rms_w", "gain", "offset_w")}
            if not all(abs(value) < _MAX_NUMBER for value in (*astuple(kernel), *numbers.values())):
                raise ValueError("a number is not finite, or out of range")  # noqa: TRY301  # one message for all
            return cls(kernel, source=str(values["source"]), **numbers)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"not a sensor model: {error}; delete the cached file and calibrate again") from error


# Families by name, as in `--sensor`; windows of the instantaneous field after arXiv 2312.02741.
SENSOR_FAMILIES: Mapping[str, SensorResponse] = {
    "h100": SensorResponse(0.025),
    "ada": SensorResponse(0.100),
    "ampere": SensorResponse(0.100),
    "a100": SensorResponse(0.025),
    "turing": SensorResponse(0.100),
    "volta": SensorResponse(0.010),
    "pascal": SensorResponse(0.010),
}
# Of the driver's own samples: an H100 80GB HBM3 (driver 580.159), tests/attribution/recorded/h100.
RING_RESPONSES: Mapping[str, SensorResponse] = {"h100": SensorResponse(0.006, 0.0135)}
_FAMILY_MODELS = (
    ("h100", ("H100", "H200", "H800", "GH200")),
    ("a100", ("A100", "A800", "A30")),
    ("ada", ("RTX 40", "L40", "L4", "ADA")),
    ("ampere", ("RTX 30", "RTX A", "A10", "A40", "A16", "A2")),
    ("volta", ("V100", "TITAN V")),
    ("turing", ("RTX 20", "GTX 16", "T4", "TITAN RTX", "QUADRO RTX")),
    ("pascal", ("P100", "P40", "P4", "GTX 10", "TITAN X")),
)
# Architectures whose `power.draw` is the instantaneous field; on all others it is a one-second average (NVML docs).
_INSTANT_DRAW = frozenset({"a100", "volta", "turing", "pascal"})
ONE_SECOND_MEAN = SensorResponse(1.0)


def find_sensor_family(model: str) -> str | None:
    """Return the family of a device name such as "NVIDIA A100-PCIE-40GB"."""
    upper = model.upper()
    return next((family for family, names in _FAMILY_MODELS if any(name in upper for name in names)), None)


def nominal_response(family: str | None, sensor: str, period_s: float) -> tuple[SensorResponse, str]:
    """Return the nominal response, which is used unless the data contradict it, and its source.

    Args:
        family: One of FAMILIES, or None.
        sensor: The channel's sensor: nvml_power_instant, nvml_power_average, nvml_power, nvml_power_samples.
        period_s: The publication period found in the polls; an unknown sensor is assumed to average all of it.

    Raises:
        ConfigError: The family is unknown.
    """
    if family is not None and family not in SENSOR_FAMILIES:
        raise ConfigError(f"no sensor family {family!r}: choose one of {', '.join(SENSOR_FAMILIES)}")
    if sensor == "nvml_power_average":
        return ONE_SECOND_MEAN, "the field is a one-second average"
    if sensor == "nvml_power" and family is not None and family not in _INSTANT_DRAW:
        return ONE_SECOND_MEAN, f"power.draw of {family} is a one-second average"
    if sensor == POWER_SAMPLES:
        ring = RING_RESPONSES.get(family or "")
        source = f"nominal for the ring of {family}" if ring else "unknown ring, taken to average its whole period"
        return ring or SensorResponse(period_s), source
    if family is None:
        return SensorResponse(period_s), "unknown sensor, taken to average its whole period"
    return SENSOR_FAMILIES[family], f"nominal for {family}"


def candidate_responses(start: SensorResponse, period_s: float) -> tuple[SensorResponse, ...]:
    """Return candidate responses: the nominal one, and boxcars and low-passes found on real devices."""
    boxcars = [SensorResponse(w) for w in (0.010, 0.025, 0.050, 0.100, period_s, 1.0)]
    low_passes = [SensorResponse(0.002, tau) for tau in (0.004, 0.008, 0.012, 0.016)]
    return tuple(dict.fromkeys((replace(start, lag_s=0.0), *boxcars, *low_passes)))
