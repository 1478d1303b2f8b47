"""What a running session shows is the total that its report will have."""

import pytest

from tests.support.card_machines import CardMachine

WATCHED = """
import json, time
import torchwatt as tw
from torchwatt.metrics.energy_counters import EnergyCounters
books = EnergyCounters()
books.open()
with tw.profile(layers="off", region="FRA") as run:
    pulse = run.pulse()
    end = time.monotonic() + 3.5
    while time.monotonic() < end:
        time.sleep(0.3)
        pulse.update()
        live_j, grams = pulse.energy_j, pulse.carbon_g()
        seen = {key.device: joules for key, joules in books.current_values().energy_j.items()}
settled = {key.device: joules for key, joules in books.current_values().energy_j.items()}
print(json.dumps({
    "live": live_j, "grams": grams, "seen": seen, "settled": settled,
    "total_j": run.energy_j, "duration_s": run.report.duration_s, "final_g": run.report.carbon_g,
    "ledgers": {str(x.domain): x.energy_j for x in run.report.ledgers if x.counted},
}))
"""


@pytest.mark.parametrize(
    ("machine", "domains"),
    [
        (CardMachine().module(150.0).superchip(300.0), {"module:0"}),
        (CardMachine().module(150.0).superchip(200.0).superchip(200.0), {"module:0"}),
        (CardMachine().h100(300.0), {"gpu:0", "cpu", "ram"}),
        (CardMachine().h100(300.0, users=()), {"cpu", "ram"}),
    ],
    ids=["GH200", "GB200", "H100", "a card of others"],
)
def test_live_figures_and_metrics_add_up_to_the_report(run_on, machine, domains):
    found = run_on(machine, WATCHED)
    assert set(found["ledgers"]) == set(found["live"]) == domains
    assert {device for device, joules in found["settled"].items() if joules} == domains
    # A live figure goes on from the last publications of a counter: where polls are late, it is so much ahead.
    ahead_rel = 0.25 / found["duration_s"]
    settled_j = {device: joules for device, joules in found["settled"].items() if joules}  # never goes back
    assert settled_j == pytest.approx(found["ledgers"], rel=ahead_rel)
    assert sum(found["seen"].values()) <= found["total_j"] * (1 + ahead_rel)
    assert sum(found["live"].values()) == pytest.approx(found["total_j"], rel=0.35)  # half a second is not seen yet
    assert found["grams"] <= found["final_g"] * (1 + ahead_rel)
