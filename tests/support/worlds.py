"""Small worlds whose joules are known: slots with watts, a schedule, a counter that is read now and then."""

import numpy as np

from torchwatt.core.meter import Channel, Meter, Recording, Series
from torchwatt.core.terms import Domain
from torchwatt.core.trace import Span, trace_from_spans

CPU = Domain("cpu", 0)
MS = 1_000_000


def counter_channel(*, scale=1e-6, modulus=None, domain=CPU, sensor="rapl"):
    return Channel(domain, "energy", "counter", "J", scale, 10 * MS, sensor, modulus)


def power_channel(*, domain=CPU, sensor="nvml_power_instant"):
    return Channel(domain, "power", "power", "W", 1e-3, 20 * MS, sensor)


def meter_of(*channels, provenance="measured", scope="device", accuracy_rel=None):
    return Meter(channels[0].domain, channels, provenance, scope, "test meter", accuracy_rel=accuracy_rel)


def readings(channel, t_ns, raw):
    t = np.asarray(t_ns, dtype=np.int64)
    return Series(channel, t, np.asarray(raw, dtype=np.float64), np.zeros_like(t))


def recording_of(meter, *series):
    return Recording((meter,), tuple(series))


class World:
    """Layers run in a fixed order, again and again; power follows the layer that runs."""

    def __init__(self, watts, durations_ms, *, steps, seed=0, jitter=0.05, gap_ms=1.0, gap_w=20.0):
        rng = np.random.default_rng(seed)
        lengths = np.tile(np.asarray([*durations_ms, gap_ms]), (steps, 1))
        lengths *= 1 + jitter * rng.standard_normal(lengths.shape).clip(-3, 3)
        edges = np.concatenate(([0.0], np.cumsum(lengths.ravel()))) * MS
        self.edges = edges.astype(np.int64)
        self.power = np.tile(np.asarray([*watts, gap_w], dtype=float), steps)
        self.layers = len(watts)
        self.spans = [
            Span(f"layer{i % (self.layers + 1)}", "forward", int(a), int(b))
            for i, (a, b) in enumerate(zip(self.edges[:-1], self.edges[1:], strict=True))
            if i % (self.layers + 1) < self.layers
        ]
        self.energy = np.concatenate(([0.0], np.cumsum(self.power * np.diff(self.edges) / 1e9)))

    @property
    def end_ns(self):
        return int(self.edges[-1])

    @property
    def trace(self):
        return trace_from_spans(self.spans)

    def energy_at(self, t_ns):
        return np.interp(t_ns, self.edges, self.energy)

    def truth_j(self):
        step = self.power * np.diff(self.edges) / 1e9
        return [step[i :: self.layers + 1].sum() for i in range(self.layers)]

    def recording(self, *, period_ms=10.0, noise_uj=0.0, seed=1, modulus=None, start_uj=0):
        rng = np.random.default_rng(seed)
        n = int(self.end_ns / (period_ms * MS))
        t = (np.arange(1, n) + rng.uniform(-0.3, 0.3, n - 1)) * period_ms * MS
        t = np.unique(np.concatenate(([0], t, [self.end_ns])).astype(np.int64))
        raw = np.floor(self.energy_at(t) * 1e6 + start_uj + noise_uj * rng.standard_normal(len(t)))
        raw = np.maximum.accumulate(raw)
        if modulus is not None:
            raw %= modulus
        channel = counter_channel(modulus=modulus)
        return recording_of(meter_of(channel), readings(channel, t, raw))
