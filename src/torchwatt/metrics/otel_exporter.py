"""An OpenTelemetry meter, after the hardware conventions: `hw.energy`, `hw.power`, `hw.host.energy`.

https://opentelemetry.io/docs/specs/semconv/hardware/ (status: development). Grams have no convention and are in the
`torchwatt` namespace. Energy is a monotonic counter, so that a back end may sum it and take its rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from torchwatt.core import __version__
from torchwatt.core.errors import ConfigError, install_command
from torchwatt.metrics.energy_counters import CounterValues, DeviceKey, Exporter, RunKey

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

# Kinds of domains by the conventions' names; other kinds are exported unchanged.
HW_TYPE = {"gpu": "gpu", "cpu": "cpu", "dram": "memory", "ram": "memory"}


class OTelExporter(Exporter):
    """Exporter with observable instruments of one provider, evaluated when it collects."""

    def __init__(self, provider: MeterProvider, layers: int) -> None:
        super().__init__(layers)
        meter = provider.get_meter("torchwatt", __version__)
        self._observe(meter.create_observable_counter, "hw.energy", "J", "energy of a component", _energy_values)
        self._observe(meter.create_observable_gauge, "hw.power", "W", "power of a component", _power_values)
        self._observe(
            meter.create_observable_counter,
            "hw.host.energy",
            "J",
            "energy of the whole machine: contains hw.energy",
            _host_values,
        )
        self._observe(
            meter.create_observable_counter, "torchwatt.gwp", "g{CO2e}", "location-based, in use", _gram_values
        )
        self._observe(
            meter.create_observable_counter,
            "torchwatt.unpriced.energy",
            "J",
            "energy without a carbon factor",
            _unpriced_values,
        )
        if layers:
            self._observe(
                meter.create_observable_counter,
                "torchwatt.layer.energy",
                "J",
                "energy by layer, of runs that ended",
                _layer_values,
            )
        self.books.open()

    def _observe(self, make: Any, name: str, unit: str, description: str, read: Any) -> None:
        from opentelemetry.metrics import Observation

        def callback(options: CallbackOptions) -> Iterable[Observation]:
            del options
            # Instruments cannot be unregistered: after `close` they report constant counters.
            return [Observation(value, attributes) for value, attributes in read(self.books.current_values())]

        make(name, callbacks=[callback], unit=unit, description=description)


def otel(provider: MeterProvider | Literal["global"], *, layers: int = 0) -> OTelExporter:
    """Report the runs of this process to an OpenTelemetry provider, until closed.

    Args:
        provider: A MeterProvider; `"global"` uses the process's global provider.
        layers: Number of layers with separate series, besides reserved names; the others share one series.

    Raises:
        ConfigError: `provider` is not a MeterProvider, `layers` is invalid, or OpenTelemetry is not installed.
    """
    try:
        from opentelemetry import metrics
    except ImportError as error:
        raise ConfigError(f"OpenTelemetry is missing: {install_command('opentelemetry')}") from error
    if provider == "global":
        provider = metrics.get_meter_provider()
    if not isinstance(provider, metrics.MeterProvider):
        raise ConfigError(f"otel({provider!r}): give a MeterProvider, or 'global' for the process's own")
    return OTelExporter(provider, layers)


Observations = Iterator[tuple[float, Mapping[str, str]]]


def _energy_values(values: CounterValues) -> Observations:
    return ((j, _device_attributes(key)) for key, j in values.energy_j.items() if not key.whole_machine)


def _host_values(values: CounterValues) -> Observations:
    return (
        (j, _run_attributes(key.run) | {"hw.id": key.device, "torchwatt.provenance": key.provenance})
        for key, j in values.energy_j.items()
        if key.whole_machine
    )


def _power_values(values: CounterValues) -> Observations:
    return ((w, _device_attributes(key)) for key, w in values.power_w.items() if not key.whole_machine)


def _gram_values(values: CounterValues) -> Observations:
    more = {"torchwatt.accounting_method": "location", "torchwatt.provenance": "derived"}
    return ((g, _run_attributes(key) | more) for key, g in values.location_g.items())


def _unpriced_values(values: CounterValues) -> Observations:
    return ((j, _run_attributes(key)) for key, j in values.unpriced_j.items())


def _layer_values(values: CounterValues) -> Observations:
    for key, joules in values.layers_j.items():
        yield (
            joules,
            {
                **_run_attributes(RunKey(key.run, key.project)),
                "hw.id": key.device,
                "torchwatt.layer": key.layer,
                "torchwatt.phase": key.phase,
                "torchwatt.provenance": key.provenance,
                **({"torchwatt.stage": key.stage} if key.stage else {}),
            },
        )


def _run_attributes(run: RunKey) -> dict[str, str]:
    return {"torchwatt.run": run.run, "torchwatt.project": run.project}


def _device_attributes(key: DeviceKey) -> Mapping[str, str]:
    parent = {"hw.parent": key.parent} if key.parent else {}
    return {
        **parent,
        **_run_attributes(key.run),
        "hw.id": key.device,
        "hw.type": HW_TYPE.get(key.kind, key.kind),
        "hw.name": key.model,
        "torchwatt.provenance": key.provenance,
    }
