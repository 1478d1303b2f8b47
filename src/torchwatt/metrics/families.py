"""Converts the energy counters to Prometheus metric families; one collector in a separate registry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torchwatt.metrics.books import Books, DeviceKey, Look, RunKey

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

RUN = ("run", "project")
DEVICE = (*RUN, "device", "device_model", "provenance")
LAYER = (*RUN, "device", "layer", "phase", "provenance")


class Collector:
    """Updates the energy counters at each scrape."""

    def __init__(self, books: Books) -> None:
        self._books = books

    def collect(self) -> Iterator[Metric]:
        """Return the metric families with at least one sample."""
        return families(self._books.current_values())


def families(values: Look) -> Iterator[Metric]:
    """Yield metric families with their samples; names end in their unit, those of counters in `_total`."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    sessions = GaugeMetricFamily("torchwatt_sessions", "Runs that are metered now, nested ones not counted")
    sessions.add_metric((), values.sessions)
    yield sessions
    energy = CounterMetricFamily(
        "torchwatt_device_energy_joules", "Energy of a device, since the process began", labels=DEVICE
    )
    host = CounterMetricFamily(
        "torchwatt_host_energy_joules", "Energy of the whole machine: contains the devices", labels=DEVICE
    )
    for key, joules in values.energy_j.items():
        (host if key.whole_machine else energy).add_metric(_device(key), joules)
    power = GaugeMetricFamily(
        "torchwatt_device_power_watts", "Power of a device, mean since the look before", labels=DEVICE
    )
    for key, watts in values.power_w.items():
        if not key.whole_machine:
            power.add_metric(_device(key), watts)
    grams = CounterMetricFamily("torchwatt_gwp_grams", "CO2e in use, location-based", labels=RUN)
    for run, value in values.location_g.items():
        grams.add_metric(_run(run), value)
    unpriced = CounterMetricFamily("torchwatt_unpriced_energy_joules", "Energy without a carbon factor", labels=RUN)
    for run, value in values.unpriced_j.items():
        unpriced.add_metric(_run(run), value)
    layers = CounterMetricFamily("torchwatt_layer_energy_joules", "Energy by layer, of runs that ended", labels=LAYER)
    for row, joules in values.layers_j.items():
        layers.add_metric((row.run, row.project, row.device, row.layer, row.phase, row.provenance), joules)
    yield from (family for family in (energy, host, power, grams, unpriced, layers) if family.samples)


def registry_of(books: Books) -> CollectorRegistry:
    """Return a new registry with one collector of `books`."""
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(books))
    return registry


def _run(run: RunKey) -> tuple[str, str]:
    return run.run, run.project


def _device(key: DeviceKey) -> tuple[str, ...]:
    return (*_run(key.run), key.device, key.model, key.provenance)
