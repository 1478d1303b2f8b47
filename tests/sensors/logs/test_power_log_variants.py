"""Power logs of public tools: each is read right, or refused with its cause and what to do."""

from pathlib import Path

import pytest

from tests.sensors.logs.power_log_variants import READ, REFUSED
from torchwatt.attribution.metered_curve import build_metered_curve
from torchwatt.core.errors import SensorError
from torchwatt.sensors.logs.log_cards import LogCard
from torchwatt.sensors.logs.power_log import read_power_log

DOCS = Path(__file__).parents[3] / "docs" / "power_logs.md"


def joules(recording):
    """Joules of each card by the most telling of its names."""
    found = {}
    for meter in recording.meters:
        card = LogCard.of(meter)
        name = (
            card.uuid or card.bus_id or (card.host if len({LogCard.of(m).host for m in recording.meters}) > 1 else "")
        )
        found[name or str(meter.domain)] = pytest.approx(build_metered_curve(meter, recording).curve.total_j, rel=1e-9)
    return found


@pytest.mark.parametrize("variant", READ, ids=lambda variant: variant.name)
def test_a_log_is_read_with_the_joules_worked_out_by_hand(tmp_path, variant):
    path = tmp_path / "power.csv"
    path.write_bytes(variant.bytes)
    assert joules(read_power_log(path)) == variant.joules


@pytest.mark.parametrize("variant", REFUSED, ids=lambda variant: variant.name)
def test_a_log_is_refused_in_one_sentence_that_names_the_fix(tmp_path, variant):
    path = tmp_path / "power.csv"
    path.write_bytes(variant.bytes)
    with pytest.raises(SensorError, match=variant.refused) as error:
        read_power_log(path)
    assert "\n" not in str(error.value)
    assert "power.csv" in str(error.value)


def test_the_documentation_lists_every_variant():
    rows = [line.split("|") for line in DOCS.read_text().splitlines() if line.startswith("| ")]
    listed = {row[1].strip(): row[2].strip() for row in rows}
    assert {v.name: "read" for v in READ}.items() <= listed.items()
    assert {v.name: "refused" for v in REFUSED}.items() <= listed.items()
