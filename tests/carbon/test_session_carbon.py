"""From `profile()` to grams, to files, to the store; and not one socket on the way."""

import socket
from dataclasses import replace

import pytest
import torch
from torch import nn

import torchwatt as tw
from tests.support.powercap import FakePowercap
from tests.support.reports import GPU, sample_report
from torchwatt.audit import read_bundle, verify
from torchwatt.audit.exports import FORMATS, export
from torchwatt.audit.store import Store
from torchwatt.carbon import CarbonOptions
from torchwatt.core.errors import ConfigError, FactorError
from torchwatt.offline.repricing import reprice
from torchwatt.reports.emissions import report_usage

FACTORS = (
    "kind,value,unit,source_name,lo,hi,device\n"
    "residual_mix,300,g{CO2e}/kW.h,A residual mix,290,310,\n"
    "embodied_gwp,25,kg{CO2e},A maker,20,30,cpu\n"
    "lifetime,4,a,A policy,3,6,cpu\n"
    "share,1,1,All of it,1,1,cpu\n"
)


@pytest.fixture
def no_sockets(monkeypatch):
    """Refuse every connection and every look-up of a name; local pairs that Python makes for itself stay."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("a socket was used")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.fixture
def metered(tmp_path):
    with FakePowercap(tmp_path / "powercap", {"intel-rapl:0": ("package-0", 40.0)}) as tree:
        yield tree.root


def work():
    model = nn.Linear(16, 16)
    for _ in range(20):
        model(torch.ones(8, 16)).sum().backward()


def profiled(root, **asked):
    with tw.profile(powercap_root=root, baseline_s=0.15, **asked) as run:
        work()
        run.count("image", 160)
        torch.zeros(1)
        import time

        time.sleep(0.15)
    return run


def test_the_refusal_refuses(no_sockets):
    with pytest.raises(AssertionError, match="socket"):
        socket.create_connection(("127.0.0.1", 9))
    with pytest.raises(AssertionError, match="socket"), socket.socket() as one:
        one.connect(("127.0.0.1", 9))


def test_the_whole_way_opens_no_socket(no_sockets, metered, tmp_path):
    factors = tmp_path / "factors.csv"
    factors.write_text(FACTORS)
    run = profiled(metered, region="FRA", pue=(1.2, 1.1, 1.3), factors=factors)
    assert run.carbon_g == pytest.approx(run.energy_j / 3.6e6 * 1.2 * 56.039)
    bundle = run.to_csv(tmp_path / "b")
    assert verify(bundle).ok, str(verify(bundle))
    again = reprice(bundle, CarbonOptions(facility="scaleway/fr-par-2"), scenario="dc").directory
    assert verify(again).ok, str(verify(again))
    declared = {"confidentiality": "public", "lifecycle_stage": "training", "task_family": "imageClassification",
                "quantity_unit": "image", "infra_type": "onPremise"}  # fmt: skip
    pretraining = {"lifecycle_stage": "pretraining"}
    asked = {"cyclonedx": pretraining, "sci-ai": {"persona": "consumer"}, "boamps": declared}
    for to in FORMATS.keys() - {"xlsx", "spdx"}:  # need packages of their own
        export([again], to, tmp_path / f"x-{to}", asked.get(to))
    store = Store(tmp_path / "store")
    run.keep(store.root, project="p")
    assert [kept.run_id for kept in store.runs()] == [run.report.run_id]


def test_a_meter_that_was_away_gives_grams_without_an_interval():
    whole = sample_report()
    holed = replace(whole, ledgers=(replace(whole.ledgers[0], known_s=whole.duration_s / 2), *whole.ledgers[1:]))
    bounds = [{s.name: s.lo_j for s in report_usage(report).subjects}[f"device:{GPU}"] for report in (whole, holed)]
    assert bounds[0] is not None
    assert bounds[1] is None


def test_the_report_tells_both_methods_and_the_hardwares_share(metered, tmp_path):
    factors = tmp_path / "factors.csv"
    factors.write_text(FACTORS)
    run = profiled(metered, intensity_g_per_kwh=50, factors=factors)
    text = repr(run)
    assert "market-based:" in text
    assert "embodied" in text
    assert "SCI:" in text
    assert {impact.accounting_method for impact in run.report.impacts} == {"location", "market", "na"}


def test_a_market_factor_alone_gives_no_location_based_grams(metered):
    run = profiled(metered, market=12)
    assert run.carbon_g is None
    assert "market-based" in repr(run)
    assert "region=" in run.report.carbon_hint


def test_a_facility_is_written_into_the_row_of_the_run(metered, tmp_path):
    row = read_bundle(profiled(metered, facility="scaleway/fr-par-1").to_csv(tmp_path / "b")).run
    assert (row["facility_preset"], row["pue"], row["zone"]) == ("scaleway/fr-par-1", 1.45, "FRA")


def test_a_history_file_that_ends_before_the_run_ends_in_an_event_and_not_in_a_guess(metered, tmp_path):
    path = tmp_path / "FR_2020_hourly.csv"
    path.write_text(
        "Datetime (UTC),Zone id,Carbon intensity gCO₂eq/kWh (direct),Carbon intensity gCO₂eq/kWh (Life cycle)\n"
        "2020-01-01 00:00:00,FR,10,20\n2020-01-01 01:00:00,FR,10,20\n",
        encoding="utf-8",
    )
    run = profiled(metered, factors=path)
    assert run.energy_j > 0
    assert run.carbon_g is None
    assert "FACTOR_MISSING" in [event.code for event in run.report.events]
    assert "hours missing" in run.report.carbon_hint


def test_keep_writes_at_the_end_and_nothing_without_it(metered, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHWATT_STORE", str(tmp_path / "unused"))
    run = profiled(metered, keep=tmp_path / "store", project="llm", name="small")
    assert Store(tmp_path / "store").find("small").name == run.report.run_id
    assert not (tmp_path / "unused").exists()
    profiled(metered, keep=False)
    assert not (tmp_path / "unused").exists()
    assert not (tmp_path / "store" / "default").exists()
    own = profiled(metered, keep=True)
    assert (tmp_path / "unused" / "default" / own.report.run_id).is_dir()


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"market": -1}, "market=-1"),
        ({"market": True}, "market=True"),
        ({"pue": (1.2, 1.3, 1.4)}, r"\(value, lo, hi\)"),
        ({"pue": (1.2, 1.1)}, r"\(value, lo, hi\)"),
        ({"facility": "scaleway/fr-par-9"}, "did you mean scaleway/fr-par"),
        ({"factors": "none.csv"}, "cannot read"),
        ({"project": "x"}, "give keep="),
        ({"keep": "s", "project": "a/b"}, "project='a/b'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(asked, complaint):
    with pytest.raises((ConfigError, FactorError), match=complaint), tw.profile(**asked):
        pytest.fail("the block ran")
