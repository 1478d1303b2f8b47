"""Finds NVIDIA GPUs and tests which sensors each one supports."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torchwatt.core.errors import SensorError
from torchwatt.core.meter import Channel, Event, Meter, Unavailable
from torchwatt.core.terms import MODULE_POWER, POWER_SAMPLES, USERS, Domain
from torchwatt.core.units import NS_PER_S
from torchwatt.disk.helper_thread import HelperThread
from torchwatt.sensors.cuda_visible_devices import VisibleDevice, select_devices
from torchwatt.sensors.gpu_facts import cpu_affinity, describe_sharing, measure_ring, read_gpu_facts, ring_period_ns
from torchwatt.sensors.protocol import Discovery, MeteredSource, event_now, read_cost_s
from torchwatt.sensors.readers.nvml_reader import PROCESS_LIST as LISTED
from torchwatt.sensors.readers.nvml_reader import NvmlReader, load_nvml, nvml_error, read_power_samples, read_text

ACCURACY = (-0.05, 0.05)
ACCURACY_SOURCE = (
    "±5 % typical gain per card, extremes -41 % and +11 %: Yang, Adamek, Armour, arXiv 2312.02741 (SC24), "
    "Overall_Results of its data; not calibrated here"
)
BASE_PERIOD_NS = 20_000_000
BESIDE_RING_NS = 100_000_000
GAUGE_PERIOD_NS = NS_PER_S
# Energy and power reads may each take 1 % of the time, together 2 %.
_TIME_SHARE = 0.01
_PROBE_S = 10.0
APPEARED_PROBE_S = 0.5
_POWERS = ("nvml_power_instant", "nvml_power_average", "nvml_power")
_MODULE_POWERS = ("nvml_module_power_instant", "nvml_module_power_average", "nvml_module_power_samples")
_GAUGES = {  # name -> (unit, scale)
    "utilization": ("1", 0.01),
    "memory": ("By", 1.0),
    "temperature": ("Cel", 1.0),
    "sm_clock": ("MHz", 1.0),
    "throttle": ("1", 1.0),
}
_FIXES = {
    "SENSOR_MISSING": "install the NVIDIA driver; in a container start it with --gpus all (nvidia-container-toolkit)",
    "NO_PERMISSION": "give this user read access to /dev/nvidia* (group 'video' or 'render'), or ask the administrator",
    "NOT_SUPPORTED": "this GPU has no such sensor; a newer driver may know one",
    "SENSOR_LOST": "the GPU fell off the bus: look at `dmesg | grep -i xid`, reset or reboot",
}
_HIDDEN_REASON = "CUDA_VISIBLE_DEVICES shows no GPU to this process"


def discover_nvml(
    environ: Mapping[str, str] | None = None, probe_s: float = _PROBE_S, pid: int | None = None
) -> Discovery:
    """Find the GPUs that CUDA would show to this process; never raises, never waits longer than `probe_s`.

    `gpu:<n>` is the n-th GPU of CUDA_VISIBLE_DEVICES in NVML's order, which is PCI order. CUDA's default order is
    fastest first: with different models set CUDA_DEVICE_ORDER=PCI_BUS_ID, or match by the fact `uuid`. A GPU counts as
    used by this run if `pid` (by default this process) or a descendant of it is in the GPU's list of processes.
    """
    discoveries: list[Discovery] = []
    env = dict(os.environ if environ is None else environ)

    def probe() -> None:
        try:
            discoveries.append(_probe_nvml(env, pid or os.getpid()))
        except BaseException as error:  # an unknown binding: the run continues without GPUs
            discoveries.append(Discovery((), (Unavailable("gpu", f"NVML discovery failed: {error!r}"),)))

    _run_with_timeout(probe, probe_s)
    if not discoveries:
        reason = f"NVML has not answered within {probe_s:g} s"
        return Discovery((), (Unavailable("gpu", reason, "the driver hangs: look at `dmesg`, then reboot"),))
    return discoveries[0]


def appeared_gpu_events(initial_uuids: Sequence[str], probe_s: float = APPEARED_PROBE_S) -> tuple[Event, ...]:
    """Return an event for each GPU that appeared after discovery; never raises.

    Args:
        initial_uuids: UUIDs of the GPUs at discovery.
        probe_s: Longest wait for the driver in seconds.
    """
    uuids: list[str] = []

    def probe() -> None:
        with contextlib.suppress(Exception):  # a failure here is not evidence of a new GPU
            nvml = load_nvml()
            try:
                for index in range(nvml.nvmlDeviceGetCount()):
                    with contextlib.suppress(nvml.NVMLError):
                        uuids.append(read_text(nvml.nvmlDeviceGetUUID, nvml.nvmlDeviceGetHandleByIndex(index)))
            finally:
                nvml.nvmlShutdown()

    _run_with_timeout(probe, probe_s)
    message = "is there now and was not when the run began: its joules are not metered; begin a new run to meter it"
    return tuple(
        event_now("warning", "GPU_APPEARED", "gpu", f"{uuid} {message}") for uuid in uuids if uuid not in initial_uuids
    )


def _run_with_timeout(probe: Callable[[], None], probe_s: float) -> None:
    """Run a probe of the driver in a thread and wait at most `probe_s` for it: the driver may hang."""
    thread = HelperThread(probe, "torchwatt-nvml")
    thread.start()
    thread.join(probe_s)


def _probe_nvml(environ: Mapping[str, str], pid: int) -> Discovery:
    try:
        nvml = load_nvml()
    except SensorError as error:
        return Discovery((), (Unavailable("gpu", str(error), _FIXES.get(error.code, "")),))
    try:
        return _NvmlProbe(nvml, environ, pid).run()
    except nvml.NVMLError as error:
        failure = nvml_error("gpu", "discovery", error)
        return Discovery((), (Unavailable("gpu", str(failure), _FIXES.get(failure.code, "")),))
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


@dataclass(frozen=True, slots=True)
class _ProbedGpu:
    """One tested GPU: its meter; by channel key the reader's spec, seconds per read and ring periods in ns."""

    meter: Meter
    spec: dict[str, list[str]]
    call_s: dict[str, float]
    rings: dict[str, int]


class _NvmlProbe:
    """Discovery of the GPUs while NVML is initialised."""

    def __init__(self, nvml: Any, environ: Mapping[str, str], pid: int) -> None:
        self._nvml = nvml
        self._pid = pid
        self._environ = environ
        self._events: list[Event] = []
        self._unavailable: list[Unavailable] = []
        self._devices = 0
        self._uuids: tuple[str, ...] | None = None

    def run(self) -> Discovery:
        picks = self._visible()
        self._devices = len(picks)
        gpus = [gpu for gpu in (self._device(n, pick) for n, pick in enumerate(picks)) if gpu is not None]
        sources = (_nvml_source(gpus, self._pid),) if gpus else ()
        if len({gpu.meter.model for gpu in gpus}) > 1 and self._environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            message = "GPU models differ: CUDA may number them fastest first, we count in PCI order; match by uuid"
            self._events.append(event_now("info", "VISIBLE_DEVICES", "gpu", message))
        return Discovery(sources, tuple(self._unavailable), tuple(self._events), self._uuids)

    def _visible(self) -> tuple[VisibleDevice, ...]:
        nvml, value = self._nvml, self._environ.get("CUDA_VISIBLE_DEVICES")
        handles = {i: self._handle(i) for i in range(nvml.nvmlDeviceGetCount())}
        uuids = [self._uuid(i, handle) for i, handle in handles.items()]
        self._uuids = tuple(uuids) if value is None else None
        migs = self._migs(handles) if value and "MIG-" in value else {}
        selection = select_devices(value, uuids, migs)
        if selection.stopped:
            message = f"CUDA_VISIBLE_DEVICES={value}: {selection.stopped}; CUDA shows what comes before it"
            self._events.append(event_now("warning", "VISIBLE_DEVICES", "gpu", message))
        if not selection.picks:
            reason = f"{_HIDDEN_REASON} ({value!r})" if value is not None else "NVML finds no GPU"
            fix = "unset CUDA_VISIBLE_DEVICES, or name a device of `nvidia-smi -L`" if value is not None else ""
            self._unavailable.append(Unavailable("gpu", reason, fix))
        return selection.picks

    def _handle(self, index: int) -> Any:
        """Return a handle, None for a GPU that is lost; its index still counts."""
        try:
            return self._nvml.nvmlDeviceGetHandleByIndex(index)
        except self._nvml.NVMLError:
            return None

    def _uuid(self, index: int, handle: Any) -> str:
        with contextlib.suppress(self._nvml.NVMLError):
            if handle is not None:
                return read_text(self._nvml.nvmlDeviceGetUUID, handle)
        return f"(lost {index})"

    def _migs(self, handles: Mapping[int, Any]) -> dict[str, int]:
        slices, nvml = {}, self._nvml
        for index, handle in ((i, h) for i, h in handles.items() if h is not None):
            for i in range(self._most_migs(handle)):
                with contextlib.suppress(nvml.NVMLError):  # no slice at this index
                    slices[read_text(nvml.nvmlDeviceGetUUID, nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, i))] = (
                        index
                    )
        return slices

    def _most_migs(self, handle: Any) -> int:
        with contextlib.suppress(AttributeError, self._nvml.NVMLError):
            return int(self._nvml.nvmlDeviceGetMaxMigDeviceCount(handle))
        return 0

    def _device(self, ordinal: int, pick: VisibleDevice) -> _ProbedGpu | None:
        domain = Domain("gpu", ordinal)
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(pick.index)
            uuid = read_text(self._nvml.nvmlDeviceGetUUID, handle)
            facts = read_gpu_facts(self._nvml, handle, pick.index)
        except self._nvml.NVMLError as error:
            self._give_up(domain, nvml_error(str(domain), "opening it", error))
            return None
        tested = self._with_ring(self._test(domain, uuid), handle)
        if not any(c.quantity != "gauge" for c in tested.meter.channels):
            return None
        shared, notes = self._describe_sharing(domain, handle, pick)
        affinity = cpu_affinity(self._nvml, handle) if f"{domain}/{MODULE_POWER}" in tested.spec else ""
        facts += (("cpu_affinity", affinity),) if affinity else ()
        meter = replace(tested.meter, shared=shared, notes=notes, facts=facts, model=dict(facts)["name"])
        return replace(tested, meter=meter)

    def _give_up(self, domain: Domain, error: SensorError) -> None:
        self._unavailable.append(Unavailable(str(domain), str(error), _FIXES.get(error.code, "")))

    def _describe_sharing(self, domain: Domain, handle: Any, pick: VisibleDevice) -> tuple[bool, tuple[str, ...]]:
        shared, notes, message = describe_sharing(self._nvml, handle, pick.mig)
        if message:
            severity = "warning" if shared else "info"
            self._events.append(event_now(severity, "SHARED_DEVICE", str(domain), message))
        return shared, notes

    def _test(self, domain: Domain, uuid: str) -> _ProbedGpu:
        """Read every sensor of a GPU; it supports those that can be read, whatever its product name."""
        channels: list[Channel] = []
        spec: dict[str, list[str]] = {}
        call_s: dict[str, float] = {}
        errors: list[SensorError] = []

        def offer(channel: Channel, via: str) -> bool:
            try:
                call_s[channel.key] = _cost_s(channel.key, [uuid, via])
            except SensorError as error:
                errors.append(error)
                if error.code != "ZERO_READING":  # a sensor that reads 0 may recover: keep it and add an event
                    return False
                self._events.append(event_now("warning", error.code, channel.key, str(error)))
            channels.append(channel)
            spec[channel.key] = [uuid, via]
            return True

        offer(_channel(domain, "energy", "nvml_energy_counter"), "nvml_energy_counter")
        any(offer(_channel(domain, "power", via), via) for via in _POWERS)
        self._explain(domain, channels, errors)
        for name in _GAUGES:
            offer(_gauge(domain, name), name)
        any(offer(_module_power(domain, via), via) for via in _MODULE_POWERS)
        offer(Channel(domain, USERS, "gauge", "1", 1.0, GAUGE_PERIOD_NS, LISTED), LISTED)
        meter = Meter(domain, tuple(channels), "measured", "device", "", "NVIDIA", ACCURACY, ACCURACY_SOURCE)
        return _ProbedGpu(meter, spec, call_s, {})

    def _with_ring(self, gpu: _ProbedGpu, handle: Any) -> _ProbedGpu:
        """Add a channel for the driver's ring buffer of power samples if they are finer than polled power."""
        meter, power = gpu.meter, gpu.meter.channel("power")
        if power is None:
            return gpu
        fine = replace(power, name="power_fine", sensor=POWER_SAMPLES)
        via = [gpu.spec[power.key][0], POWER_SAMPLES]
        try:
            ring = measure_ring(read_power_samples(self._nvml, handle))
            call_s = _cost_s(fine.key, via)
            read_ns = ring_period_ns(ring, call_s, self._devices)
        except (SensorError, self._nvml.NVMLError, AttributeError) as error:
            message = f"the driver's ring of power samples is not used, power is polled: {error}"
            self._events.append(event_now("info", "RING_UNUSED", str(meter.domain), message))
            return gpu
        channels = (*meter.channels, replace(fine, period_ns=ring.gap_ns))
        return _ProbedGpu(
            replace(meter, channels=channels),
            gpu.spec | {fine.key: via},
            gpu.call_s | {fine.key: call_s},
            {fine.key: read_ns},
        )

    def _explain(self, domain: Domain, channels: list[Channel], errors: list[SensorError]) -> None:
        if not channels:
            worst = next((e for e in errors if e.code != "NOT_SUPPORTED"), errors[-1])
            self._give_up(domain, worst)
        for error in errors if channels else ():
            if error.code != "ZERO_READING":
                self._events.append(event_now("info", error.code, str(domain), str(error)))


def _cost_s(key: str, via: list[str]) -> float:
    """Return the median seconds per read of a channel, measured with a temporary reader."""
    reader = NvmlReader({"channels": {key: via}})
    try:
        reader.read(key)
        return read_cost_s(reader, key)
    finally:
        reader.close()


def _channel(domain: Domain, name: str, sensor: str) -> Channel:
    if name == "energy":  # mJ since the driver was loaded
        return Channel(domain, "energy", "counter", "J", 1e-3, BASE_PERIOD_NS, sensor)
    return Channel(domain, "power", "power", "W", 1e-3, BASE_PERIOD_NS, sensor)


def _gauge(domain: Domain, name: str) -> Channel:
    unit, scale = _GAUGES[name]
    return Channel(domain, name, "gauge", unit, scale, GAUGE_PERIOD_NS, f"nvml_{name}")


def _module_power(domain: Domain, sensor: str) -> Channel:
    """Return the channel of the power of a GPU's superchip; a gauge, because it includes more than the GPU."""
    return Channel(domain, MODULE_POWER, "gauge", "W", 1e-3, BESIDE_RING_NS, sensor)


def poll_period_ns(total_call_s: float) -> int:
    """Return the period in ns at which reads of this total cost take 1 % of the time: whole ms, at least 20 ms."""
    return max(BASE_PERIOD_NS, math.ceil(total_call_s / _TIME_SHARE * 1e3) * 1_000_000)


def _nvml_source(gpus: list[_ProbedGpu], pid: int) -> MeteredSource:
    """Put all GPUs behind one reader: one thread, one wake-up for all, since wake-ups cost more than calls."""
    call_s = {key: cost for gpu in gpus for key, cost in gpu.call_s.items()}
    periods = {
        name: poll_period_ns(sum(cost for key, cost in call_s.items() if key.endswith(f"/{name}")))
        for name in ("energy", "power")
    }

    if all(gpu.rings for gpu in gpus):  # layers are fitted to the rings; polled power is for display and checks
        periods["power"] = max(periods["power"], BESIDE_RING_NS)

    def set_period(channel: Channel) -> Channel:
        return replace(channel, period_ns=periods.get(channel.name, channel.period_ns))

    rates: Callable[[Meter], Meter] = lambda m: replace(m, channels=tuple(set_period(c) for c in m.channels))  # noqa: E731
    read_ns = min((ns for gpu in gpus for ns in gpu.rings.values()), default=0)  # one wake-up for all
    spec = {
        "kind": "nvml",
        "pid": pid,
        "channels": {key: via for gpu in gpus for key, via in gpu.spec.items()},
        "rings": {key: read_ns for gpu in gpus for key in gpu.rings},
    }
    return MeteredSource(tuple(rates(gpu.meter) for gpu in gpus), spec, call_s)
