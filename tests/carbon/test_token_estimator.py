"""The estimator of ecologits: by hand from its formula, by its own function, and one assumption at a time."""

from math import ceil, exp, isclose, log, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.lazy_module import LazyModule, skip_without
from torchwatt.carbon.ecologits import TokenEstimator, TokenLoad
from torchwatt.core.errors import TorchwattError

skip_without("ecologits", reason="the estimator is its function")
llm = LazyModule("ecologits.impacts.llm")
mixes = LazyModule("ecologits.electricity_mix_repository")
tracers = LazyModule("ecologits.tracers.utils")

LIFE_S = 3 * 365 * 24 * 3600
PUE = (1.09, 1.14)  # of huggingface_hub, in ecologits 0.11.3


def by_hand(total, active, batch=64):
    """Return (joules of IT equipment, grams embodied) of one output token, by the formula of ecologits 0.11.3."""
    total, active = total / 1e9, active / 1e9
    gpus = 2 ** ceil(log2(ceil(1.2 * total * 16 / 8 / 80)))
    gpu_wh = 1.1665273170451914e-06 * exp(-0.011205921025579175 * batch) * active + 4.052928146734005e-05
    token_s = 0.0006785088094353663 * active + 0.0003119310311688259 * batch + 0.019473717579473387
    server_wh = token_s / 3600 * 1200 * gpus / 8 / batch
    embodied_kg = token_s * (gpus / 8 * 5700 + gpus * 273) / (LIFE_S * batch)
    return 3600 * (server_wh + gpus * gpu_wh), embodied_kg * 1e3


# SmolLM2-135M on one GPU, Mixtral 8x7B on two, Llama-3.1-405B on sixteen.
BY_HAND = (
    (134_515_008, 134_515_008, 1),
    (46_702_792_704, 12_879_925_248, 2),
    (405_853_388_800, 405_853_388_800, 16),
)


@pytest.mark.parametrize(("total", "active", "gpus"), BY_HAND)
@pytest.mark.parametrize("batch", [64, 1, 7.5])
def test_three_models_by_hand(total, active, gpus, batch):
    estimator = TokenEstimator(total, active, "FRA")
    energy_j, embodied_g = by_hand(total, active, batch)
    estimate = estimator.estimate({"batch_size": batch})
    assert estimator.gpus == gpus
    assert estimate.energy_j.lo == pytest.approx(energy_j * PUE[0], rel=1e-12)
    assert estimate.energy_j.hi == pytest.approx(energy_j * PUE[1], rel=1e-12)
    assert estimate.energy_j.mean == pytest.approx(energy_j * sum(PUE) / 2, rel=1e-12)
    assert estimate.embodied["gwp"].lo == pytest.approx(embodied_g, rel=1e-12)
    if batch == 64:
        assert estimator.estimate() == estimate


def test_two_figures_computed_once_with_a_calculator():
    # 8 B: 1.1665273e-6 * e^(-0.0112059 * 64) * 8 + 4.0529281e-5 = 4.508459e-5 Wh = 162.305 mJ; the server adds
    # (5.428e-3 + 0.0199636 + 0.0194737) s * 150 W / 64 = 105.154 mJ.
    estimator = TokenEstimator(8_000_000_000, 8_000_000_000)
    hardware, boundary = (estimator.assumptions(TokenLoad(1, 1, 1, 1))[i] for i in (2, 3))
    assert hardware.assumed.mean == pytest.approx(0.162305, rel=1e-5)
    assert boundary.assumed.mean == pytest.approx(150)
    assert estimator.estimate({"datacenter_pue": 1.0}).energy_j.mean == pytest.approx(0.162305 + 0.105154, rel=1e-4)


SIZES = ((1e6, 1e6), (1.35e8, 1.35e8), (4.9e8, 4.9e8), (1.1e9, 1.1e9), (2.5e9, 2.5e9), (6.9e9, 1.3e9), (8e9, 8e9),
         (1.43e10, 2.7e9), (7e10, 7e10), (6.71e11, 3.7e10))  # fmt: skip


@pytest.mark.parametrize(("total", "active"), SIZES)
@pytest.mark.parametrize("zone", ["FRA", "", "nowhere"])
def test_ten_models_by_the_library(total, active, zone):
    provider = tracers.PROVIDER_CONFIG_MAP["huggingface_hub"]
    mix = mixes.electricity_mixes.find_electricity_mix("FRA" if zone == "FRA" else provider.datacenter_location)
    impacts = llm.compute_llm_impacts(
        model_active_parameter_count=active / 1e9, model_total_parameter_count=total / 1e9, output_token_count=500,
        if_electricity_mix_adpe=mix.adpe, if_electricity_mix_pe=mix.pe, if_electricity_mix_gwp=mix.gwp,
        if_electricity_mix_wue=mix.wue, datacenter_pue=provider.datacenter_pue, datacenter_wue=provider.datacenter_wue,
    )  # fmt: skip
    estimator = TokenEstimator(int(total), int(active), zone)
    estimate = estimator.estimate()
    assert estimator.zone == mix.zone
    assert estimate.energy_j.lo * 500 == pytest.approx(impacts.energy.value.min * 3.6e6, rel=1e-12)
    assert estimate.energy_j.hi * 500 == pytest.approx(impacts.energy.value.max * 3.6e6, rel=1e-12)
    for name, scale in (("gwp", 1e3), ("adpe", 1), ("pe", 1), ("wcf", 1)):
        usage = getattr(impacts.usage, name).value
        assert estimate.usage[name].lo * 500 == pytest.approx(usage.min * scale, rel=1e-12)
        assert estimate.usage[name].hi * 500 == pytest.approx(usage.max * scale, rel=1e-12)
    for name, scale in (("gwp", 1e3), ("adpe", 1), ("pe", 1)):
        assert estimate.embodied[name].lo * 500 == pytest.approx(getattr(impacts.embodied, name).value * scale)
    assert "wcf" not in estimate.embodied


loads = st.builds(
    TokenLoad,
    batch=st.floats(1, 512),
    tokens_per_s=st.floats(0.1, 1e4),
    device_j=st.just(0.0) | st.floats(1e-4, 1e3),
    host_w=st.floats(0.1, 1e4),
)


@given(loads, st.sampled_from(BY_HAND))
def test_all_assumptions_replaced_give_the_figure_of_the_run(load, sizes):
    estimator = TokenEstimator(*sizes[:2])
    every = {}
    for replaced in estimator.replacements(load).values():
        assert not every.keys() & replaced.keys()  # each argument belongs to one assumption
        every |= replaced
    estimated = estimator.estimate(every).energy_j
    assert isclose(estimated.lo, load.energy_j, rel_tol=1e-9)
    assert estimated.lo == estimated.hi


@given(loads)
def test_each_assumption_is_replaced_alone(load):
    total, active, gpus = BY_HAND[1]
    estimator = TokenEstimator(total, active)
    own_j, own_pue = by_hand(total, active)[0], sum(PUE) / 2
    token_s = 0.0006785088094353663 * active / 1e9 + 0.0003119310311688259 * 64 + 0.019473717579473387
    server_j = token_s * 150 * gpus / 64
    expected = {
        "batch": by_hand(total, active, load.batch)[0] * own_pue,
        "tokens per second": (own_j - server_j + 150 * gpus / 64 / load.tokens_per_s) * own_pue,
        "hardware": (server_j + load.device_j) * own_pue,
        "boundary": (own_j - server_j + load.host_w * token_s / 64) * own_pue,
        "PUE": own_j,
    }
    rows = {row.name: row for row in estimator.assumptions(load)}
    assert rows.keys() == expected.keys()
    for name, energy_j in expected.items():
        assert rows[name].replaced_j.mean == pytest.approx(energy_j, rel=1e-9), name
        assert rows[name].log_ratio == pytest.approx(log(energy_j / (own_j * own_pue)), abs=1e-9), name


def test_without_the_package_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ecologits.impacts.llm", None)
    with pytest.raises(TorchwattError, match=r"pip install 'torchwatt\[ecologits\]'") as caught:
        TokenEstimator(1, 1)
    assert len(str(caught.value).splitlines()) == 1
