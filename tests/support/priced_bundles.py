"""Bundles to export: one run with grams of both methods, embodied figures and a counted unit."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.support.reports import bare_report, sample_report
from torchwatt.audit import write_bundle
from torchwatt.carbon import CarbonOptions, ecologits
from torchwatt.carbon.pricing_plan import make_plan
from torchwatt.reports.emissions import add_impacts

FACTORS = """\
kind,value,unit,source_name,lo,hi,source_url,device,data_year,basis,accounting_method
grid_gwp,50.0,g{CO2e}/kW.h,A grid operator,40.0,60.0,https://example.org/grid,,2025,lifecycle,location
residual_mix,300.0,g{CO2e}/kW.h,A residual mix,290.0,310.0,https://example.org/mix,,2025,direct,market
pue,1.2,1,A landlord,1.1,1.3,https://example.org/pue,,2025,,
embodied_gwp,164.0,kg{CO2e},A maker,150.0,180.0,https://example.org/pcf,gpu,,,
lifetime,4.0,a,A policy,3.0,6.0,https://example.org/policy,gpu,,,
share,0.5,1,A scheduler,0.5,0.5,https://example.org/jobs,gpu,,,
"""


@pytest.fixture(autouse=True)
def one_source(monkeypatch):
    monkeypatch.setattr(ecologits, "installed_version", lambda: "")


def priced(report, **asked):
    return add_impacts(
        replace(report, factors=(), impacts=()), make_plan(CarbonOptions(**asked), datetime(2026, 11, 24, tzinfo=UTC))
    )


@pytest.fixture
def factors(tmp_path):
    path = tmp_path / "factors.csv"
    path.write_text(FACTORS)
    return path


@pytest.fixture
def bundle(tmp_path, factors):
    """Return the folder of a bundle with everything."""
    return write_bundle(priced(sample_report(), factors=factors), tmp_path / "bundle")


@pytest.fixture
def joules_only(tmp_path):
    """Return the folder of a bundle without a region."""
    return write_bundle(priced(sample_report()), tmp_path / "joules")


@pytest.fixture
def unmetered(tmp_path):
    """Return the folder of a bundle of a machine without any meter."""
    return write_bundle(bare_report(), tmp_path / "bare")
