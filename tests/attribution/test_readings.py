"""Which readings layers are fitted to, and what finer ones are worth."""

from dataclasses import replace

import numpy as np
import pytest

from tests.attribution.cases import distinct
from tests.attribution.scoring import attributed, score
from tests.attribution.simulator import ORIGIN_NS, Plan, Sensor, Work, simulate
from torchwatt.attribution.device_fit import DevicePriors
from torchwatt.attribution.sensor_response import RING_RESPONSES, SensorModel
from torchwatt.attribution.sensor_updates import select_power_series
from torchwatt.core.meter import Channel, Series
from torchwatt.core.terms import POWER_SAMPLES, Domain

S = 1_000_000_000
GPU = Domain("gpu", 0)
FINE = Channel(GPU, "power_fine", "power", "W", 1e-3, 20_000_000, POWER_SAMPLES)
INSTANT = replace(FINE, name="power", sensor="nvml_power_instant")
END_NS = ORIGIN_NS + 60 * S
# The kernel of an H100's ring, once every 100 ms as its field is published, and once every 20 ms.
H100 = Sensor(model="NVIDIA H100 80GB HBM3", window_s=0.006, tau_s=0.0135)


def readings(channel, *stretches_s, values=None):
    t_ns = np.concatenate([np.arange(a * 50, b * 50) for a, b in stretches_s]).astype(np.int64) * 20_000_000
    raw = np.random.default_rng(0).uniform(1e5, 3e5, len(t_ns)) if values is None else np.full(len(t_ns), values)
    return Series(channel, ORIGIN_NS + t_ns, raw, np.zeros_like(t_ns))


POLLED = readings(INSTANT, (0, 60))


@pytest.mark.parametrize(
    ("fine", "why"),
    [
        (readings(FINE, (0, 60)), ""),
        (readings(FINE, (0, 30), (33, 60)), ""),  # a hole of a few seconds
        (readings(FINE, (0, 20)), "they cover 33% of the run"),  # a ring that froze
        (readings(FINE, (0, 60), values=2e5), "their value hardly changes"),
        (readings(FINE, (0, 60), values=0.0), ""),  # none is left, and nothing to say of them
    ],
    ids=["whole", "hole", "froze", "same", "zero"],
)
def test_layers_are_fitted_to_the_drivers_samples_where_they_are_there_throughout(fine, why):
    power, told = select_power_series([POLLED, fine], ORIGIN_NS, END_NS)
    assert told == why
    fitted = fine if not why and fine.raw.any() else POLLED
    assert power.channel == fitted.channel
    assert len(power) == len(fitted)


def test_samples_that_were_not_read_yet_are_missed_only_where_they_are_half_of_the_run():
    fine = readings(FINE, (0, 8))
    assert select_power_series([POLLED, fine], ORIGIN_NS, ORIGIN_NS + 9 * S)[1] == ""
    assert select_power_series([POLLED, fine], ORIGIN_NS, ORIGIN_NS + 12 * S)[1] == "they cover 66% of the run"
    assert select_power_series([POLLED, fine], ORIGIN_NS + 7 * S, ORIGIN_NS + 10 * S)[1] == "they cover 33% of the run"


def test_the_drivers_samples_alone_are_better_than_nothing():
    power, told = select_power_series([readings(FINE, (0, 20))], ORIGIN_NS, END_NS)
    assert (power.channel, told) == (FINE, "")
    assert select_power_series([], ORIGIN_NS, END_NS) == (None, "")


def few():
    works = (Work("a", "forward", "a", 0.030, 400.0), Work("b", "forward", "b", 0.020, 200.0))
    return Plan(works, pause_s=0.015)


def test_the_sentence_says_where_the_readings_came_from_and_the_total_stays_the_counters():
    world = simulate(few(), replace(H100, ring_s=0.020), minutes=0.3, seed=1)
    (ledger,) = attributed(world).ledgers
    assert "read from the driver's ring every 20 ms" in ledger.sentence
    assert "measured by the meter's own energy counter" in ledger.sentence
    assert ledger.energy_j == pytest.approx(world.total_j, rel=1e-3)
    assert ledger.cross_check_j == pytest.approx(world.total_j, rel=0.05)


def test_a_ring_that_froze_is_told_and_the_polled_power_is_used():
    world = simulate(few(), replace(H100, ring_s=0.020), minutes=0.3, seed=1)
    *others, fine = world.recording.series
    short = fine.between(0, world.start_ns + 5 * S)
    found = attributed(replace(world, recording=replace(world.recording, series=(*others, short))))
    assert "locked to the polls" in found.ledgers[0].sentence
    (event,) = [event for event in found.events if event.code == "RING_UNUSED"]
    assert "28% of the run" in event.message


@pytest.mark.slow
def test_samples_every_20_ms_know_the_layers_better_and_the_large_ones_twice_as_well():
    model = SensorModel(RING_RESPONSES["h100"], 0.1, 1.0, "a square wave")
    known = DevicePriors(sensors={"gpu:0/power": model, "gpu:0/power_fine": model})
    coarse, fine = (
        score(simulate(distinct(1), replace(H100, ring_s=ring_s), minutes=1, seed=1), known) for ring_s in (None, 0.020)
    )
    assert coarse.fitted
    assert fine.fitted
    assert fine.ew < 0.9 * coarse.ew  # the smallest stay at what is believed of them
    assert fine.top10 < 0.6 * coarse.top10
    assert fine.inside > 0.85
