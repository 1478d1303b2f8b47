"""Known answers: a powercap tree whose power follows the layer that runs."""

import time
from collections import defaultdict
from math import fsum, isclose

import pytest
import torch
from torch import nn

import torchwatt as tw
from tests.support.powercap import FakePowercap, PowerLog
from torchwatt.audit import verify

pytestmark = pytest.mark.alone  # joules within ten percent of a tree whose power follows the code

STATIC_W, WEAK_W, STRONG_W = 15.0, 10.0, 40.0  # time share books 60 % too much to the weak layer
CALL_S = 0.024


class Work(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        layer.burn("forward")
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        ctx.layer.burn("backward")
        return grad * 2, None


class Layer(nn.Module):
    """Draws its own watts while it runs and notes the joules that the tree really counted."""

    def __init__(self, tree, watts):
        super().__init__()
        self.tree, self.watts = tree, watts
        self.truth_j = defaultdict(float)

    def burn(self, phase):
        begun_ns = time.monotonic_ns()
        self.tree.set("package-0", STATIC_W + self.watts)
        while time.monotonic_ns() - begun_ns < CALL_S * 1e9:
            time.sleep(0)  # the tree's thread publishes meanwhile
        self.tree.set("package-0", STATIC_W)
        self.truth_j[phase] += self.tree.energy_j("package-0", begun_ns, time.monotonic_ns())

    def forward(self, x):
        return Work.apply(x, self)


# Wraps every 4 J: about once a tenth of a second at full power.
RANGE_UJ = 4_000_000


class SimulatedTree:
    """The simulated hardware's own powercap tree, told what to draw."""

    def __init__(self, module, root):
        self._log = PowerLog(STATIC_W, time.monotonic_ns())
        self._tree = module.FakePowercap(root, package=self._joules_at, range_uj=RANGE_UJ)
        self.root = self._tree.root

    def _joules_at(self, since_s):  # seconds of the wall clock since the tree's own beginning
        if since_s == 0:  # while it is made
            return 0.0
        return self._log.energy_j(self._tree.t0 + round(since_s * 1e9) - time.time_ns() + time.monotonic_ns())

    def set(self, _zone, watts):
        self._log.set(watts, time.monotonic_ns())

    def energy_j(self, _zone, start_ns, end_ns):
        return self._log.energy_j(end_ns) - self._log.energy_j(start_ns)

    def __enter__(self):
        self._tree.start()
        return self

    def __exit__(self, *_):
        self._tree.stop()


@pytest.fixture(
    params=[0.001, pytest.param(0.010, marks=pytest.mark.heavy), None],
    ids=["published every 1 ms", "every 10 ms", "by the simulated hardware"],
)
def tree(tmp_path, request):
    if request.param is None:
        made = SimulatedTree(request.getfixturevalue("simhw")("fakepowercap"), tmp_path)
    else:
        zones = {"intel-rapl:0": ("package-0", STATIC_W)}
        made = FakePowercap(tmp_path, zones, range_uj=RANGE_UJ, update_s=request.param)
    with made as running:
        yield running


def test_each_layer_gets_its_own_joules_where_time_share_is_60_percent_off(tree, tmp_path):
    model = nn.Sequential(Layer(tree, WEAK_W), Layer(tree, STRONG_W))
    x = torch.ones(4, requires_grad=True)
    with tw.profile(model, powercap_root=tree.root) as run:
        for _ in range(40):
            model(x).sum().backward()
    ledger = next(led for led in run.report.ledgers if str(led.domain) == "cpu:0")
    rows = {(e.fqn, e.phase): e for e in ledger.entries}
    for name, layer in (("0", model[0]), ("1", model[1])):
        for phase in ("forward", "backward"):
            assert isclose(rows[name, phase].energy_self_j, layer.truth_j[phase], rel_tol=0.10), (name, phase)
    assert rows["0", "forward"].method == "fit"
    shared_j = rows["0", "forward"].time_self_s * (STATIC_W + (WEAK_W + STRONG_W) / 2)
    assert shared_j / model[0].truth_j["forward"] > 1.5  # what time share would have said
    # The sum is the counter's own difference, through wraps, to the last digit.
    assert ledger.counter_wraps >= 5
    booked_j = fsum(e.energy_self_j for e in ledger.entries)
    assert isclose(booked_j, ledger.energy_j, rel_tol=1e-12)
    assert is_counted(booked_j, ledger, run.report.meter("cpu:0"), rel_tol=1e-12)


def is_counted(energy_j, ledger, meter, *, rel_tol):
    """Compare with the difference of two readings that an auditor can look up."""
    wraps_raw = ledger.counter_wraps * meter.channel("counter").modulus
    counted_j = (ledger.counter_end_raw - ledger.counter_start_raw + wraps_raw) * ledger.counter_unit_j
    # A tree that is starved publishes so seldom that the run's ends lie between two publications, each as uncertain.
    between = "between two of its publications" in ledger.sentence
    return isclose(energy_j, counted_j, rel_tol=rel_tol, abs_tol=3 * ledger.energy_u_j if between else 0)


def test_static_power_is_that_of_the_quiet_moment_before(tree):
    model = Layer(tree, STRONG_W)
    with tw.profile(model, powercap_root=tree.root) as run:
        for _ in range(10):
            model(torch.ones(1))
    ledger = next(led for led in run.report.ledgers if str(led.domain) == "cpu:0")
    assert isclose(ledger.static_w, STATIC_W, rel_tol=0.1)
    entry = next(e for e in ledger.entries if e.phase == "forward")
    assert isclose(entry.energy_dynamic_j, entry.time_self_s * STRONG_W, rel_tol=0.1)
    assert isclose(entry.energy_static_j + entry.energy_dynamic_j, entry.energy_self_j)


def test_the_files_add_up(tree, tmp_path):
    import pandas as pd

    model = nn.Sequential(Layer(tree, WEAK_W), nn.Linear(4, 2))
    with tw.profile(model, powercap_root=tree.root, intensity_g_per_kwh=100, pue=1.2, csv=tmp_path / "audit") as run:
        for _ in range(10):
            model(torch.ones(1, 4, requires_grad=True)).sum().backward()
            run.count("image", 2)
    tables = {path.stem: pd.read_csv(path) for path in (tmp_path / "audit").glob("*.csv")}
    assert set(tables) == {"run", "device", "window", "layer", "hourly", "factor", "impact", "event"}
    tables["sample"] = pd.read_parquet(tmp_path / "audit" / "sample.parquet")
    counted = tables["device"][tables["device"].counted & tables["device"].energy_j.notna()]
    for _, device in counted.iterrows():
        of_device = tables["layer"][tables["layer"].device_id == device.device_id]
        assert isclose(fsum(of_device.energy_self_j), device.energy_j, rel_tol=1e-9)
        last = tables["sample"][tables["sample"].device_id == device.device_id].energy_j.iloc[-1]
        assert isclose(last, device.energy_j, rel_tol=1e-9)
    total_j = tables["run"].energy_it_j[0]
    assert isclose(fsum(counted.energy_j), total_j, rel_tol=1e-9)
    grams = tables["impact"].set_index("subject").value["run"]
    assert isclose(grams, total_j / 3.6e6 * 1.2 * 100, rel_tol=1e-9)
    for table, column in (("layer", "provenance"), ("factor", "provenance"), ("impact", "provenance")):
        assert tables[table][column].notna().all()
    assert counted.provenance.notna().all()
    device = counted.set_index("device_id").loc["cpu:0"]
    ledger = next(led for led in run.report.ledgers if str(led.domain) == "cpu:0")
    assert (device.counter_start_raw, device.counter_end_raw) == (ledger.counter_start_raw, ledger.counter_end_raw)
    assert (device.counter_wraps, device.counter_unit_j) == (ledger.counter_wraps, ledger.counter_unit_j)
    assert is_counted(device.energy_j, ledger, run.report.meter("cpu:0"), rel_tol=1e-9)
    assert run.energy_per("image") == pytest.approx(total_j / 20)
    found = verify(tmp_path / "audit")
    assert found.ok, found
