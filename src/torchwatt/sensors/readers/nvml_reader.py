"""Reads NVIDIA GPUs through the real `pynvml` (nvidia-ml-py)."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torchwatt.core.errors import SensorError
from torchwatt.core.terms import POWER_SAMPLES
from torchwatt.sensors.readers.gpu_users import classify_users, read_listed_pids
from torchwatt.sensors.readers.sample_follower import Sample, SampleFollower

# nvml.h (nvidia-ml-py 13.615): field ids, and the scopes that exclude and include a superchip's CPU.
FIELD_POWER_AVERAGE = 185
FIELD_POWER_INSTANT = 186
SCOPE_GPU, SCOPE_MODULE = 0, 1
TOTAL_POWER_SAMPLES, MODULE_POWER_SAMPLES = 0, 7  # nvmlSamplingType_t
PROCESS_LIST = "nvml_processes"

# nvmlReturn_t (nvml.h) to our event codes.
_UNINITIALIZED, _NOT_FOUND = 1, 6
_CODES = {
    3: "NOT_SUPPORTED",
    4: "NO_PERMISSION",
    9: "SENSOR_MISSING",  # driver not loaded
    12: "SENSOR_MISSING",  # library not found
    13: "NOT_SUPPORTED",  # function not found: the driver is older than the binding
    15: "SENSOR_LOST",  # GPU is lost
    16: "SENSOR_LOST",  # reset required
    28: "SENSOR_LOST",  # GPU not found
}
# Members of nvmlValue_t by nvmlValueType_t (nvml.h).
_VALUE_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


def load_nvml() -> Any:
    """Import pynvml and initialise NVML; each call needs one `nvmlShutdown`.

    Raises:
        SensorError: There is no binding, no driver, or no permission.
    """
    try:
        import pynvml
    except Exception as error:  # also a broken one, or one whose warning this program turns into an error
        message = f"gpu: cannot import pynvml ({type(error).__name__}: {error}); pip install -U nvidia-ml-py"
        raise SensorError(message, code="SENSOR_MISSING") from error
    lacking = [name for name in ("NVMLError", "nvmlInit", "nvmlShutdown") if not hasattr(pynvml, name)]
    if lacking:
        message = f"gpu: pynvml ({getattr(pynvml, '__file__', None)}) is not NVIDIA's: it has no {lacking[0]}"
        raise SensorError(message, code="SENSOR_MISSING")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise nvml_error("gpu", "nvmlInit", error) from error
    return TextBinding(pynvml) if _returns_bytes(pynvml) else pynvml


def read_text(call: Callable[..., Any], *args: Any) -> str:
    """Return the text result of an NVML call; invalid UTF-8, on which the binding raises, becomes U+FFFD."""
    try:
        text = call(*args)
    except UnicodeDecodeError as error:
        text = error.object
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


def _returns_bytes(nvml: Any) -> bool:
    try:
        return isinstance(nvml.nvmlSystemGetDriverVersion(), bytes)
    except (AttributeError, nvml.NVMLError):
        return False


class TextBinding:
    """Wraps a pynvml with bytes arguments and results (up to 11.4, nvidia-ml-py 11.450): text, as in newer ones."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if not name.startswith("nvml"):  # a class or a number
            return value

        def call(*args: Any) -> Any:
            encoded = (arg.encode() if isinstance(arg, str) else arg for arg in args)
            result = value(*encoded)
            return result.decode(errors="replace") if isinstance(result, bytes) else result

        setattr(self, name, call)
        return call


def nvml_error(domain: str, action: str, error: Any) -> SensorError:
    """Convert an NVMLError to a SensorError with the event code of its number."""
    value = int(getattr(error, "value", 999))
    return SensorError(f"{domain}: {action}: {error} (NVML {value})", code=_CODES.get(value, "SENSOR_ERROR"))


def read_field_mw(nvml: Any, handle: Any, field: int, scope: int = SCOPE_GPU) -> float:
    """Return a power field in mW at a scope; raise NVMLError for the field's return code."""
    value = nvml.nvmlDeviceGetFieldValues(handle, [(field, scope)])[0]
    if value.nvmlReturn:
        raise nvml.NVMLError(value.nvmlReturn)
    return float(getattr(value.value, _value_member(int(value.valueType))))


def _value_member(kind: int) -> str:
    return _VALUE_MEMBERS[kind] if kind < len(_VALUE_MEMBERS) else "uiVal"


def read_power_samples(nvml: Any, handle: Any, since_us: int = 0, sampling: int = TOTAL_POWER_SAMPLES) -> list[Sample]:
    """Return the samples of a driver's ring buffer after a time of its clock: (us, mW)."""
    try:
        kind, samples = nvml.nvmlDeviceGetSamples(handle, sampling, since_us)
    except nvml.NVMLError as error:
        if error.value == _NOT_FOUND:  # nothing is newer
            return []
        raise
    member = _value_member(int(kind))
    return [(int(sample.timeStamp), float(getattr(sample.sampleValue, member))) for sample in samples]


def _newest_sample_mw(nvml: Any, handle: Any, sampling: int = TOTAL_POWER_SAMPLES) -> float:
    return max(read_power_samples(nvml, handle, sampling=sampling), default=(0, math.nan))[1]


def _throttle_mask(nvml: Any, handle: Any) -> float:
    try:
        return float(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except (AttributeError, nvml.NVMLError_FunctionNotFound):  # its name before driver 535
        return float(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


# NVML calls by the name `via` of a channel; raw values have NVML's units.
NVML_CALLS: dict[str, Callable[[Any, Any], float]] = {
    "nvml_energy_counter": lambda n, h: float(n.nvmlDeviceGetTotalEnergyConsumption(h)),  # mJ
    "nvml_power_instant": lambda n, h: read_field_mw(n, h, FIELD_POWER_INSTANT),
    "nvml_power_average": lambda n, h: read_field_mw(n, h, FIELD_POWER_AVERAGE),
    "nvml_power": lambda n, h: float(n.nvmlDeviceGetPowerUsage(h)),  # mW
    POWER_SAMPLES: _newest_sample_mw,  # mW
    "nvml_module_power_instant": lambda n, h: read_field_mw(n, h, FIELD_POWER_INSTANT, SCOPE_MODULE),
    "nvml_module_power_average": lambda n, h: read_field_mw(n, h, FIELD_POWER_AVERAGE, SCOPE_MODULE),
    "nvml_module_power_samples": lambda n, h: _newest_sample_mw(n, h, MODULE_POWER_SAMPLES),
    "utilization": lambda n, h: float(n.nvmlDeviceGetUtilizationRates(h).gpu),  # %
    "memory": lambda n, h: float(n.nvmlDeviceGetMemoryInfo(h).used),  # By
    "temperature": lambda n, h: float(n.nvmlDeviceGetTemperature(h, 0)),  # Cel, sensor 0 is the die
    "sm_clock": lambda n, h: float(n.nvmlDeviceGetClockInfo(h, 1)),  # MHz, 1 is NVML_CLOCK_SM
    "throttle": _throttle_mask,  # bit mask
}
POWER_CALLS = frozenset(via for via in NVML_CALLS if "power" in via)
LEAST_MW = 500.0  # a board that answers draws more


class NvmlReader:
    """Reads channels named in `spec["channels"]`: key -> [uuid of the GPU, name in CALLS, or USERS].

    `spec["pid"]` is the process whose use of a GPU counts as ours, with that of its descendants.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._channels: dict[str, list[str]] = dict(spec["channels"])
        self._handles: dict[str, Any] = {}
        self._followers: dict[str, SampleFollower] = {}
        self._pid = int(spec.get("pid", 0)) or os.getpid()
        self._nvml = load_nvml()

    def read(self, key: str) -> float:
        """Return a channel's raw value; almost 0 W raises SensorError, because a GPU that answers draws power."""
        uuid, via = self._channels[key]
        with self._translate_errors(key, uuid, via):
            if via == PROCESS_LIST:
                return float(classify_users(read_listed_pids(self._nvml, self._handle(uuid)), self._pid))
            raw = NVML_CALLS[via](self._nvml, self._handle(uuid))
        if 0 <= raw < LEAST_MW and via in POWER_CALLS:
            raise SensorError(f"{key}: the sensor reads {raw / 1e3:g} W, which is not valid", code="ZERO_READING")
        return raw

    def take(self, key: str) -> list[Sample]:
        """Return the driver's samples since the previous call: (monotonic ns, mW) in time order, often none."""
        uuid, via = self._channels[key]
        follower = self._followers.setdefault(key, SampleFollower())
        with self._translate_errors(key, uuid, via):
            return follower.take(partial(read_power_samples, self._nvml, self._handle(uuid)))

    @contextlib.contextmanager
    def _translate_errors(self, key: str, uuid: str, via: str) -> Iterator[None]:
        try:
            yield
        except self._nvml.NVMLError as error:
            self._recover(uuid, error)
            raise nvml_error(key, via, error) from error
        except AttributeError as error:
            message = f"{key}: this pynvml has no {error.name}; pip install -U nvidia-ml-py"
            raise SensorError(message, code="NOT_SUPPORTED") from error

    def _handle(self, uuid: str) -> Any:
        if uuid not in self._handles:
            self._handles[uuid] = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        return self._handles[uuid]

    def _recover(self, uuid: str, error: Any) -> None:
        """Drop a handle that may be stale; initialise NVML again if other code in the process shut it down.

        Release our reference first: if it is still held, a second one would never be released.
        """
        self._handles.pop(uuid, None)
        if getattr(error, "value", None) == _UNINITIALIZED:
            for call in (self._nvml.nvmlShutdown, self._nvml.nvmlInit):
                with contextlib.suppress(self._nvml.NVMLError):
                    call()

    def close(self) -> None:
        """Release this reader's NVML reference; a second call does nothing."""
        nvml, self._nvml = self._nvml, None
        if nvml is not None:
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlShutdown()
