"""A superchip's energy counter is the whole module: booked once, with the GPU's joules from its own scope."""

import pytest

from tests.support.card_machines import GRACE_HOPPER, SQUARE, CardMachine, program

EXTRA_W = 150.0


def gpu_j(machine, found, gpu=0):
    """Return the exact joules of a GPU over its curve."""
    return machine.true_energy_j(gpu, *found["span_ns"][f"gpu:{gpu}"])


def books_balance(found):
    for domain, energy_j in found["energy_j"].items():
        assert found["booked_j"][domain] == pytest.approx(energy_j, rel=1e-9)
    assert found["total_j"] == pytest.approx(sum(found["energy_j"][domain] for domain in found["counted"]), rel=1e-12)
    assert found["counted_rows_j"] == pytest.approx(found["total_j"], rel=1e-9)
    assert found["ok"], found["findings"]


@pytest.mark.heavy  # so long that the sensor's lag at both ends of a square wave is little of it
def test_grace_hopper_counts_its_module_once_and_the_gpu_by_its_own_power(run_on):
    machine = CardMachine().module(EXTRA_W).superchip(SQUARE)
    found = run_on(machine, program(20.0))
    module_j = machine.true_module_energy_j(0, [0], *found["span_ns"]["module:0"])
    assert found["counted"] == ["module:0"]
    assert found["energy_j"]["module:0"] == pytest.approx(module_j, rel=0.02)
    assert found["energy_j"]["gpu:0"] == pytest.approx(gpu_j(machine, found), rel=0.03)
    assert found["method"]["gpu:0"] == "power_integral"
    assert {found["part_of"][part] for part in ("gpu:0", "cpu", "ram")} == {"module:0"}
    books_balance(found)
    assert "covers the module" in found["sentence"]["gpu:0"]
    how = found["text"].partition("How this was measured")[2]
    assert "covers the whole module" in how
    assert "module:0" in found["html"]


def test_rows_and_steps_of_a_module_are_those_of_its_gpu_and_of_its_cpu(run_on):
    found = run_on(CardMachine().module(EXTRA_W).superchip(300.0), program(3.0))
    rows = found["rows"]["module:0"]
    assert set(found["rows"]["gpu:0"]) | set(found["rows"]["cpu"]) == set(rows)
    rest_j = found["energy_j"]["module:0"] - found["energy_j"]["gpu:0"]
    assert rest_j == pytest.approx(EXTRA_W * found["duration_s"], rel=0.1)
    layers_j = sum(j for fqn, j in found["rows_j"]["module:0"].items() if fqn in {"0", "1", "2", "(root)"})
    assert 0.2 * rest_j < layers_j < rest_j
    assert 0.3 * found["total_j"] < found["step_j"] <= found["total_j"] * 1.001


@pytest.mark.heavy
def test_the_published_case_of_a_counter_that_is_larger_by_a_factor(run_on):
    """Its counter is 1.6 times the GPU's joules, which is the module's only over whole periods; long for the same."""
    machine = CardMachine().module(EXTRA_W).h100(SQUARE, name=GRACE_HOPPER, module=0, counter_gain=1.6)
    found = run_on(machine, program(12.0))
    assert found["counted"] == ["module:0"]
    assert found["energy_j"]["gpu:0"] == pytest.approx(gpu_j(machine, found), rel=0.03)
    assert found["energy_j"]["module:0"] == pytest.approx(
        1.6 * machine.true_energy_j(0, *found["span_ns"]["module:0"]), rel=0.03
    )
    books_balance(found)


def test_two_gpus_of_one_module_share_one_counter(run_on):
    machine = CardMachine().module(200.0).superchip(250.0).superchip(450.0)
    found = run_on(machine, program(3.0))
    assert found["counted"] == ["module:0"]
    assert found["energy_j"]["module:0"] == pytest.approx(900.0 * found["duration_s"], rel=0.05)
    assert found["energy_j"]["gpu:0"] == pytest.approx(250.0 * found["duration_s"], rel=0.05)
    assert found["energy_j"]["gpu:1"] == pytest.approx(450.0 * found["duration_s"], rel=0.05)
    books_balance(found)


@pytest.mark.heavy
def test_two_modules_that_draw_the_same_are_two(run_on):
    machine = CardMachine().module(EXTRA_W).module(EXTRA_W).superchip(250.0, module=0).superchip(250.0, module=1)
    found = run_on(machine, program(3.0))
    assert found["counted"] == ["module:0", "module:1"]
    assert found["total_j"] == pytest.approx(2 * 400.0 * found["duration_s"], rel=0.05)
    assert {found["part_of"]["gpu:0"], found["part_of"]["gpu:1"]} == {"module:0", "module:1"}
    books_balance(found)


@pytest.mark.heavy
def test_a_superchip_whose_counter_is_the_gpus_own_has_no_module(run_on):
    machine = CardMachine().module(EXTRA_W).h100(SQUARE, name=GRACE_HOPPER, module=0)
    found = run_on(machine, program(3.5))
    assert found["counted"] == ["cpu", "gpu:0", "ram"]
    assert found["method"]["gpu:0"] == "counter"
    assert found["energy_j"]["gpu:0"] == pytest.approx(gpu_j(machine, found), rel=0.02)
    assert "covers the GPU alone" in found["sentence"]["gpu:0"]
    books_balance(found)


def test_an_h100_without_grace_stays_as_it_was(run_on):
    machine = CardMachine().h100(SQUARE)
    found = run_on(machine, program(3.5))
    assert found["counted"] == ["cpu", "gpu:0", "ram"]
    assert (found["method"]["gpu:0"], found["band"]["gpu:0"]) == ("counter", [-0.05, 0.05])
    assert found["energy_j"]["gpu:0"] == pytest.approx(gpu_j(machine, found), rel=0.02)
    assert not {"MODULE_COUNTER", "SCOPE_UNKNOWN", "CROSS_CHECK", "DEVICE_USER_UNKNOWN"} & set(found["codes"])
    books_balance(found)


@pytest.mark.heavy
def test_a_counter_of_a_module_that_cannot_be_read_gets_an_interval_that_holds_the_truth(run_on):
    machine = CardMachine().h100(SQUARE, name=GRACE_HOPPER, counter_gain=1.6)
    found = run_on(machine, program(5.5))
    truth_j = gpu_j(machine, found)
    lo, hi = found["band"]["gpu:0"]
    assert found["energy_j"]["gpu:0"] * (1 + lo) <= truth_j <= found["energy_j"]["gpu:0"] * (1 + hi)
    assert "SCOPE_UNKNOWN" in found["codes"]
    assert "may cover more than the GPU" in " ".join(found["text"].partition("carbon ")[0].split())
    books_balance(found)


def test_a_run_too_short_to_tell_the_scope_says_so_and_its_interval_holds_the_truth(run_on):
    machine = CardMachine().module(33.0).superchip(300.0)  # the module draws 11 % more: a publication late is as much
    found = run_on(machine, program(0.4, baseline_s=0))
    truth_j = gpu_j(machine, found)
    assert "SCOPE_UNKNOWN" in found["codes"]
    lo, hi = found["band"]["gpu:0"]
    assert found["energy_j"]["gpu:0"] * (1 + lo) <= truth_j <= found["energy_j"]["gpu:0"] * (1 + hi)
    assert found["energy_j"]["gpu:0"] == pytest.approx(truth_j, rel=0.05)
    assert "module:0" not in found["energy_j"]
    books_balance(found)


DOCTOR = """
import contextlib, io, json
from torchwatt.cli.doctor import print_discovery
out = io.StringIO()
with contextlib.redirect_stdout(out):
    print_discovery()
print(json.dumps({"text": out.getvalue()}))
"""


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (CardMachine().module(EXTRA_W).superchip(120.0, users=()), "covers the module, not the GPU"),
        (CardMachine().module(EXTRA_W).h100(120.0, users=(), module=0), "covers the GPU alone"),
    ],
    ids=["module", "GPU"],
)
def test_doctor_says_what_the_counter_covers(run_on, machine, said):
    assert said in run_on(machine, DOCTOR)["text"]
