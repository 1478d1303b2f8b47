"""Small usages and files for the tests of carbon."""

from datetime import UTC, datetime

from torchwatt.carbon import CarbonOptions, PricedSubject, RunUsage
from torchwatt.carbon.pricing_plan import make_plan
from torchwatt.core.units import hour_of

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = hour_of(NOON)
HISTORY_OLD = (
    "Datetime (UTC),Country,Zone Name,Zone Id,Carbon Intensity gCO₂eq/kWh (direct),Carbon Intensity gCO₂eq/kWh (LCA),"
    "Low Carbon Percentage,Renewable Percentage,Data Source,Data Estimated,Data Estimation Method"
)
HISTORY_NEW = (
    "Datetime (UTC),Country,Zone name,Zone id,Carbon intensity gCO₂eq/kWh (direct),"
    "Carbon intensity gCO₂eq/kWh (Life cycle),Carbon-free energy percentage (CFE%),Renewable energy percentage (RE%),"
    "Data source,Data estimated,Data estimation method"
)


def usage(*hourly_j, device="gpu:0", rel=0.1, unit="run", units=1.0, duration_s=3600.0, provenance="measured"):
    """Return a run of one device that used these joules in the hours from noon on."""
    by_hour = {HOUR + i: joules for i, joules in enumerate(hourly_j)}
    total_j = sum(hourly_j)
    lo_j, hi_j = (None, None) if rel is None else (total_j * (1 - rel), total_j * (1 + rel))
    names = ("run", f"device:{device}")
    subjects = tuple(PricedSubject(name, total_j, provenance, lo_j, hi_j, by_hour) for name in names)
    known = "assumed" if unit == "run" else "declared"
    return RunUsage(subjects, duration_s, tuple(by_hour), unit, units, known)


def planned(**asked):
    return make_plan(CarbonOptions(**asked), NOON)


def history(*grams, header=HISTORY_NEW, zone="FR", estimated="false", method="", start=12):
    rows = (
        f"2026-06-01 {start + i:02}:00:00,France,France,{zone},{g / 2},{g},90,20,rte-france.com,{estimated},{method}"
        for i, g in enumerate(grams)
    )
    return "\n".join((header, *rows)) + "\n"


def found(priced, subject, criterion, phase, method):
    wanted = (subject, criterion, phase, method)
    return next(i for i in priced.impacts if (i.subject, i.criterion, i.phase, i.accounting_method) == wanted)
