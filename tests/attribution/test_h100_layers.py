"""Seven real layers on a real H100, in one run, against each looped alone with the driver's counter beside it.

Thirteen steps of 554 were recorded; the others are filled from them as a live run does.
"""

from math import fsum

import numpy as np
import pytest

from tests.attribution.h100 import FOLDER, GPU, RING
from torchwatt.attribution.device_attribution import attribute_device
from torchwatt.attribution.device_fit import DevicePriors
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.meter import Series
from torchwatt.core.terms import Slot
from torchwatt.core.trace import Activity, trace_from_spans
from torchwatt.core.units import Z90
from torchwatt.tracing.device_windows import extrapolate_windows
from torchwatt.tracing.step_events import DeviceSteps

# Joules a call in a loop of its own (benchmarks/gpu/truth.py). `bf16` is left out: alone it runs into the power cap, at
# lower clocks (7.2 ms a call), and in the run it does not (6.2 ms), so its joules are not the same.
ALONE_J = {"act": 3.5649, "conv": 2.6715, "fp32": 4.3078, "gather": 3.0248, "norm": 3.8146, "soft": 5.0406}
CALLS = 554


def windows(found):
    """Yield what was recorded, window by window."""
    slots = tuple(Slot(*name.split("/")) for name in found["slots"].tolist())
    signatures = tuple(str(i) for i in range(int(found["signature"].max()) + 1))
    for number, covered in enumerate(found["covered"].tolist()):
        mine = found["window"] == number
        zeros = np.zeros(int(mine.sum()), dtype=np.int64)
        yield Activity(
            device=str(GPU),
            slots=slots,
            slot=found["slot"][mine].astype(np.int64),
            start_ns=found["start_ns"][mine],
            end_ns=found["end_ns"][mine],
            stream=zeros,
            filled=zeros > 0,
            signatures=signatures,
            signature=found["signature"][mine].astype(np.int64),
            covered=(tuple(covered),),
        )


@pytest.fixture(scope="module")
def books():
    with np.load(FOLDER / "unlike.npz") as kept:
        found = {name: kept[name] for name in kept.files}
    steps = [DeviceSteps(start, end, 1, bound=False) for start, end in found["steps"].tolist()]
    activity = extrapolate_windows(list(windows(found)), steps, str)
    ring = Series(RING, found["ring_ns"], found["ring_mw"].astype(np.float64), np.zeros_like(found["ring_ns"]))
    curve = EnergyCurve(GPU, found["curve_ns"], found["curve_j"], "counter", "measured")
    trace = trace_from_spans((), steps=[(start, end) for start, end in found["steps"].tolist()])
    return attribute_device(curve, activity, trace, ring, "h100", DevicePriors())


def error(books, joules):
    found = {slot.fqn: value / CALLS for slot, value in zip(books.slots, joules, strict=True)}
    return fsum(abs(found[name] - truth) for name, truth in ALONE_J.items()) / fsum(ALONE_J.values())


def test_the_fit_is_three_times_nearer_to_the_layers_own_joules_than_time_share_is(books):
    assert not books.fit.reason
    assert error(books, books.share_j) > 0.10
    assert error(books, books.energy_j) < 0.035


def test_the_fits_own_error_covers_two_of_the_layers_own_joules_and_the_intervals_of_repeats_six(books):
    truth = {**ALONE_J, "bf16": 4.99}
    off_j = {i: abs(books.energy_j[i] / CALLS - truth[s.fqn]) for i, s in enumerate(books.slots) if s.fqn in truth}
    assert sum(off_j[i] < Z90 * books.sd_j[i] / CALLS for i in off_j) == 2
    assert sum(off_j[i] < books.half_j[i] / CALLS for i in off_j) == 6


def test_what_layers_draw_differs_twofold_where_time_share_sees_one_power(books):
    power_w = {s.fqn: e / t for s, e, t in zip(books.slots, books.energy_j, books.time_s, strict=True)}
    assert power_w["bf16"] > 900  # for milliseconds more than the card's limit of 700 W, which holds for its mean
    assert power_w["gather"] < 600


def test_the_joules_are_the_meters(books):
    assert fsum([*books.energy_j, books.unwatched_j]) == pytest.approx(books.curve.total_j, rel=1e-9)
