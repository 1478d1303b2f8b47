"""Planted defects: a kind, its variants, the honest bundles that they go into, and where `verify` must point.

Every kind was written from the schema and the issue, before anybody looked at what `verify` checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

from tests.audit.planted.forger import LAYER_JOULES, Z90, Cells, Forger, table_bytes_of, times

Place = tuple[str, Cells | None]  # a table and the row that was spoilt; None where a row is missing
Spoil = Callable[[Forger, str], list[Place]]


@dataclass(frozen=True, slots=True)
class Plant:
    """One planted defect."""

    kind: str
    bundle: str
    variant: str
    spoil: Spoil
    argument: str = ""  # why no rule over the contents separates it from an honest bundle

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.bundle}-{self.variant}" if self.variant else f"{self.kind}-{self.bundle}"


PLANTS: list[Plant] = []


def plant(bundles: str, *variants: str, argument: str = "") -> Callable[[Spoil], Spoil]:
    """Register a kind of defect for some bundles, once a variant."""

    def register(spoil: Spoil) -> Spoil:
        PLANTS.extend(
            Plant(spoil.__name__, bundle, variant, spoil, argument)
            for bundle in bundles.split()
            for variant in variants or ("",)
        )
        return spoil

    return register


def whole(table: str, rows: list[Cells]) -> list[Place]:
    return [(table, row) for row in rows]


def later(text: str, **shift: float) -> str:
    """Move a timestamp."""
    moved = datetime.fromisoformat(text) + timedelta(**shift)
    return moved.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def grid(f: Forger) -> Cells:
    return f.row("factor", kind="grid_gwp")


# Factors: what they are, under an id that is a hash of it


@plant("counter", "value", "data_year", "zone", "source_name", "licence", "perspective", "coverage_note", "lo")
@plant("hours", "value", "valid_to", "source_sha256", "is_estimated")
def factor_changed_under_its_id(f: Forger, column: str) -> list[Place]:
    row = grid(f)
    hour = later(row["valid_from"], hours=2) if row["valid_from"] else ""
    new = {
        "value": repr(float(row["value"]) * 0.5), "data_year": "2025", "zone": "SWE", "source_name": "RTE",
        "licence": "CC0", "perspective": "consumption", "coverage_note": "", "lo": "1.0",
        "valid_to": hour, "source_sha256": "0" * 64, "is_estimated": "true",
    }  # fmt: skip
    row[column] = new[column]
    if column == "zone":
        f.run["zone"] = "SWE"
    f.price()
    return [("factor", row)]


@plant("counter factors", "pue-value", "pue-hi")
def pue_changed_under_its_id(f: Forger, what: str) -> list[Place]:
    row = f.row("factor", kind="pue")
    row[what.removeprefix("pue-")] = "1.05"
    if what == "pue-value":
        f.run["pue"] = "1.05"
    f.settle()
    return [("factor", row)]


@plant("counter", "g{CO2e}/MJ", "kg{CO2e}/kW.h")
def factor_in_another_unit(f: Forger, unit: str) -> list[Place]:
    row = grid(f)
    row["unit"] = unit
    f.identify(row)
    return [("factor", row)]


@plant("factors", "embodied_gwp", "lifetime", "share", "wue", "pue")
def other_factor_in_another_unit(f: Forger, kind: str) -> list[Place]:
    row = f.row("factor", kind=kind)
    row["unit"] = {"embodied_gwp": "g{CO2e}", "lifetime": "s", "share": "%", "wue": "mL/kW.h", "pue": "%"}[kind]
    f.identify(row)
    return [("factor", row)]


@plant("factors", "pue", "share", "lifetime", "grid_gwp")
def impossible_factor(f: Forger, kind: str) -> list[Place]:
    row = f.row("factor", kind=kind)
    value = {"pue": "0.4", "share": "1.5", "lifetime": "0.0", "grid_gwp": "-50.0"}[kind]
    row.update(value=value, lo="", hi="")
    f.identify(row)
    if kind == "pue":
        f.run["pue"] = "0.4"
    f.settle()
    return [("factor", row)]


@plant("factors counter", "")
def factor_outside_its_own_interval(f: Forger, _: str) -> list[Place]:
    row = grid(f)
    row.update(lo="70.0", hi="90.0")
    f.identify(row)
    return [("factor", row)]


@plant("factors repriced", "market as location")
def factor_of_another_nature(f: Forger, _: str) -> list[Place]:
    row = f.row("factor", kind="residual_mix")
    row.update(kind="contract_gwp", accounting_method="location")
    for impact in f.tables["impact"]:
        impact["formula"] = impact["formula"].replace("residual_mix", "contract_gwp")
    f.identify(row)
    rows = [i for i in f.tables["impact"] if row["factor_id"] in i["factor_ids"]]
    return [("factor", row), *whole("impact", rows)]


@plant("counter", "")
def declared_factor_called_sourced(f: Forger, _: str) -> list[Place]:
    row = f.row("factor", kind="pue")
    row["provenance"] = "sourced"
    f.identify(row)
    rows = [i for i in f.tables["impact"] if row["factor_id"] in i["factor_ids"]]
    for impact in rows:
        impact["weakest_input"] = "sourced"
    return [("factor", row), *whole("impact", rows)]


@plant("counter hours")
def factor_that_no_row_uses(f: Forger, _: str) -> list[Place]:
    new = dict(grid(f)) | {"factor_id": "", "value": "3.0", "kind": "grid_wue", "unit": "L/kW.h"}
    f.tables["factor"].append(new)
    f.identify(new)
    return [("factor", new)]


# Grams: the formula that the schema fixes for the row


@plant(
    "counter", "energy_j/3.6e6*grid_gwp", "energy_j/7.2e6*pue*grid_gwp", "energy_j/3.6e6*pue*grid_gwp/2",
    "energy_j/3.6e6*pue*pue*grid_gwp", "0.001", "energy_j/3.6e6*pue*grid_gwp-0.001", "energy_j/3.6e9*pue*grid_gwp",
)  # fmt: skip
def usage_by_another_formula(f: Forger, formula: str) -> list[Place]:
    rows = f.rows("impact", criterion="gwp")
    for row in rows:
        row["formula"] = formula
        if "pue" not in formula:
            row["factor_ids"] = ";".join(x for x in row["factor_ids"].split(";") if not x.startswith("pue"))
        if formula == "0.001":
            row["factor_ids"] = ""
            row["accounting_method"] = "location"
    f.price()
    return whole("impact", rows)


@plant("hours", "", "1")
def hours_by_the_cleanest_alone(f: Forger, number: str) -> list[Place]:
    rows = f.rows("impact", criterion="gwp")
    for row in rows:
        clean = [
            name for name in row["factor_ids"].split(";") if name != f.rows("factor", kind="grid_gwp")[1]["factor_id"]
        ]
        row["factor_ids"] = ";".join(clean) if not number else row["factor_ids"]
        row["formula"] = row["formula"].replace("grid_gwp", f"grid_gwp_{number}") if number else row["formula"]
    f.price()
    return whole("impact", rows)


@plant("factors repriced", "no share", "other life", "half a total", "no embodied", "units")
def embodied_by_another_formula(f: Forger, what: str) -> list[Place]:
    phase = "embodied" if what in {"no share", "other life"} else "total"
    rows = [row for row in f.rows("impact", phase=phase) if (row["criterion"] == "sci") == (what == "units")]
    for row in rows:
        row["formula"] = {
            "no share": row["formula"].replace("*share/", "/10/"),
            "other life": row["formula"].replace("31557600", "41557600"),
            "half a total": f"({row['formula']})/2",
            "no embodied": row["formula"].partition("+")[0],
            "units": f"({row['formula']})/1e3",
        }[what]
    f.price()
    return whole("impact", rows)


@plant("factors")
def wrong_water(f: Forger, _: str) -> list[Place]:
    rows = f.rows("impact", criterion="wcf")
    for row in rows:
        row["formula"] = "energy_j/3.6e6*wue/1000"
    f.price()
    return whole("impact", rows)


# Rows that a run with factors must have


@plant("counter", "run", "device", "all")
@plant("cpu", "run", "device", "gwp")
@plant("factors", "market", "embodied", "total", "sci", "run", "water")
@plant("repriced", "as_run", "half a scenario")
def grams_left_out(f: Forger, what: str) -> list[Place]:
    wanted: dict[str, Callable[[Cells], bool]] = {
        "run": lambda row: row["subject"] == "run",
        "device": lambda row: row["subject"] == f.tables["impact"][0]["subject"],
        "all": lambda row: True,
        "criterion": lambda row: row["criterion"] == "pe",
        "gwp": lambda row: row["criterion"] == "gwp",
        "market": lambda row: row["accounting_method"] == "market",
        "embodied": lambda row: row["phase"] in {"embodied", "total"},
        "total": lambda row: row["phase"] == "total" and row["criterion"] != "sci",
        "sci": lambda row: row["criterion"] == "sci",
        "water": lambda row: row["criterion"] == "wcf",
        "as_run": lambda row: row["scenario"] == "as_run",
        "half a scenario": lambda row: row["scenario"] != "as_run" and row["subject"] == "run",
    }
    f.remove("impact", [row for row in f.tables["impact"] if wanted[what](row)])
    return [*whole("impact", f.tables["impact"]), *whole("factor", f.tables["factor"])]


@plant("counter", "same", "half", "as-run", "As_Run")
@plant("repriced", "same", "half")
def duplicate_under_a_new_scenario(f: Forger, what: str) -> list[Place]:
    scenario = what if what.lower().startswith("as") else "repriced:better"
    old = [row for row in f.tables["impact"] if row["scenario"] == "as_run"]
    new = [row | {"scenario": scenario} for row in old]
    if what == "half":
        for row in new:
            row["formula"] = f"({row['formula']})/2"
    f.tables["impact"] += new
    f.price()
    return whole("impact", new)


@plant("counter", "scope3_1")
def one_row_of_another_scope(f: Forger, scope: str) -> list[Place]:
    row = f.row("impact", subject="run", criterion="gwp")
    row["ghg_scope"] = scope
    return [("impact", row)]


@plant("factors", "usage", "total")
def interval_of_grams_narrowed(f: Forger, phase: str) -> list[Place]:
    rows = [row for row in f.rows("impact", phase=phase) if row["lo"]]
    if not rows:  # the meter states no band: the forger invents one
        rows = f.rows("impact", phase=phase)
    for row in rows:
        row["lo"], row["hi"] = repr(float(row["value"]) * 0.999), repr(float(row["value"]) * 1.001)
    return whole("impact", rows)


@plant("counter", "weakest", "provenance")
def grams_better_known_than_their_inputs(f: Forger, what: str) -> list[Place]:
    row = f.row("impact", subject="run", criterion="gwp")
    row["weakest_input" if what == "weakest" else "provenance"] = "measured"
    return [("impact", row)]


@plant("counter factors hours", "run alone", "run and rows")
def pue_left_out(f: Forger, what: str) -> list[Place]:
    run = f.run
    run.update(pue="", pue_factor_id="", energy_facility_j="")
    if what == "run alone":
        return [("run", run)]
    rows = [row for row in f.tables["impact"] if "pue" in row["formula"]]
    for row in rows:
        row["formula"] = row["formula"].replace("*pue", "").replace("pue*", "")
        row["factor_ids"] = ";".join(x for x in row["factor_ids"].split(";") if not x.startswith("pue"))
    f.price()
    return [("run", run), ("factor", None), *whole("factor", f.rows("factor", kind="pue"))]


@plant("repriced", "2026")
def reprice_without_the_declared_pue(f: Forger, _: str) -> list[Place]:
    rows = [row for row in f.tables["impact"] if row["scenario"] != "as_run" and "pue" in row["formula"]]
    for row in rows:
        row["formula"] = row["formula"].replace("*pue", "").replace("pue*", "")
        row["factor_ids"] = ";".join(x for x in row["factor_ids"].split(";") if not x.startswith("pue"))
    f.price()
    return whole("impact", rows)


@plant("repriced", "layer", "run", "sample")
def measurement_changed_after_the_first_seal(f: Forger, table: str) -> list[Place]:
    if table == "layer":
        row = f.row("layer", fqn="layer0")
        row["module_class"] = "Linear"
    elif table == "run":
        row = f.run
        row["name"] = "another"
    else:
        row = f.rows("sample")[1]
        row["power_w"] = repr(float(row["power_w"]) + 1e-12)
    return [(table, row), (table, None), ("original.MANIFEST.sha256", None)]


@plant("repriced")
def first_seal_left_out(f: Forger, _: str) -> list[Place]:
    f.other.clear()
    rows = [row for row in f.tables["impact"] if row["scenario"] != "as_run"]
    return [("original.MANIFEST.sha256", None), *whole("impact", rows)]


# Hours and dates


@plant("hours", "swapped", "all in the clean hour", "a tenth moved")
def joules_of_hours_moved(f: Forger, what: str) -> list[Place]:
    first, second = f.tables["hourly"]
    a, b = float(first["energy_j"]), float(second["energy_j"])
    moved = {"swapped": (b, a), "all in the clean hour": (a + b, 0.0), "a tenth moved": (a + 0.1 * b, 0.9 * b)}[what]
    first["energy_j"], second["energy_j"] = map(repr, moved)
    f.price()
    return whole("hourly", [first, second])


@plant("hours counter imported cpu", "days", "hours")
def hours_of_another_time(f: Forger, unit: str) -> list[Place]:
    for row in f.tables["hourly"]:
        row["hour_utc"] = later(row["hour_utc"], **{unit: 5})
    if f.rows("factor", temporal_resolution="hour"):
        for row in f.rows("factor", temporal_resolution="hour"):
            row.update(valid_from=later(row["valid_from"], **{unit: 5}), valid_to=later(row["valid_to"], **{unit: 5}))
            f.identify(row)
    return whole("hourly", f.tables["hourly"])


@plant("counter imported cpu job")
def hour_that_is_none(f: Forger, _: str) -> list[Place]:
    rows = f.tables["hourly"]
    for row in rows:
        row["hour_utc"] = later(row["hour_utc"], minutes=7)
    return whole("hourly", rows)


@plant("hours", "year", "day")
def run_moved_away_from_its_factors(f: Forger, unit: str) -> list[Place]:
    days = {"year": 365, "day": 1}[unit]
    run = f.run
    run.update(started_at=later(run["started_at"], days=days), ended_at=later(run["ended_at"], days=days))
    for row in f.tables["event"]:
        row["t"] = later(row["t"], days=days)
    for row in f.tables["hourly"]:
        row["hour_utc"] = later(row["hour_utc"], days=days)
    return [*whole("hourly", f.tables["hourly"]), *whole("factor", f.rows("factor", kind="grid_gwp")),
            *whole("impact", f.tables["impact"])]  # fmt: skip


@plant("hours", "other day", "both the same", "longer")
def hourly_factor_of_another_hour(f: Forger, what: str) -> list[Place]:
    first, second = f.rows("factor", kind="grid_gwp")
    if what == "other day":
        second.update(valid_from=later(second["valid_from"], days=-1), valid_to=later(second["valid_to"], days=-1))
    elif what == "both the same":
        second.update(valid_from=first["valid_from"], valid_to=first["valid_to"])
    else:
        second["valid_to"] = later(second["valid_to"], hours=3)
    f.identify(second)
    f.price()
    return [("factor", second), *whole("impact", f.tables["impact"])]


@plant("hours")
def hourly_factor_of_another_year(f: Forger, _: str) -> list[Place]:
    row = grid(f)
    row["data_year"] = "2019"
    f.identify(row)
    return [("factor", row)]


@plant("counter hours", "backwards")
def factor_valid_backwards(f: Forger, _: str) -> list[Place]:
    row = grid(f)
    row.update(valid_from="2026-12-31T00:00:00.000000Z", valid_to="2026-01-01T00:00:00.000000Z")
    f.identify(row)
    return [("factor", row), *whole("impact", f.tables["impact"])]


@plant("hours", "removed")
def hours_left_out(f: Forger, _: str) -> list[Place]:
    f.remove("hourly", f.tables["hourly"][:])
    rows = f.rows("impact", criterion="gwp")
    name = grid(f)["factor_id"]
    for row in rows:
        row["factor_ids"] = ";".join(x for x in row["factor_ids"].split(";") if x.startswith("pue") or x == name)
    f.price()
    return [("hourly", None), *whole("impact", rows)]


# Provenance by what the sensor is


@plant("cpu", "everything", "device", "sample", "hourly", "one layer", "window", "run")
@plant("job", "everything", "sample", "hourly", "rank_layer")
def modelled_called_measured(f: Forger, what: str) -> list[Place]:
    device = f.row("device", device_id="ram")
    mine = {"device_id": "ram"}
    tables = {"everything": ("sample", "hourly", "layer", "rank_layer"), "one layer": ("layer",)}.get(what, (what,))
    places: list[Place] = []
    if what in {"everything", "device"}:
        device.update(provenance="measured")
        places.append(("device", device))
    if what == "run":
        f.run.update(energy_it_provenance="measured", measurement_level="M2")
        return [("run", f.run)]
    if what == "window":
        rows = f.tables["window"][:1]
        rows[0]["provenance"] = "measured"
        return whole("window", rows)
    for table in tables:
        if table == "device":
            continue
        rows = f.rows(table, **mine)[: 1 if what == "one layer" else None]
        for row in rows:
            row["provenance"] = "apportioned" if what == "everything" and "layer" in table else "measured"
        places += whole(table, rows)
    if what == "everything":
        f.settle()
    return places


@plant("cpu", "counter", "power_integral")
def modelled_by_a_method_of_meters(f: Forger, method: str) -> list[Place]:
    rows = [f.row("device", device_id="cpu")]
    rows[0]["method"] = method
    return whole("device", rows)


@plant("cpu", "declared as rapl", "declared as nvml")
def model_renamed_to_a_meter(f: Forger, what: str) -> list[Place]:
    row = f.row("device", device_id="cpu")
    row.update(sensor="rapl" if "rapl" in what else "nvml_energy_counter", provenance="measured", method="counter")
    for table in ("sample", "hourly"):
        for each in f.rows(table, device_id="cpu"):
            each["provenance"] = "measured"
    for each in f.rows("layer", device_id="cpu"):
        each.update(provenance="apportioned", method="time_share")
    f.settle()
    return [("device", row), *whole("layer", f.rows("layer", device_id="cpu"))]


@plant("counter job", "gpu sensor")
def sensor_of_another_kind_of_device(f: Forger, _: str) -> list[Place]:
    row = f.row("device", device_id="cpu:0")
    row["sensor"] = "nvml_energy_counter"
    return [("device", row)]


@plant("counter factors job imported", "layer", "hourly")
def sure_rows_of_an_unsure_kind(f: Forger, table: str) -> list[Place]:
    row = f.tables[table][0]
    row["provenance"] = "measured" if table == "layer" else "sourced"
    return [(table, row)]


@plant("imported", "half", "a tenth")
def time_share_not_by_time(f: Forger, what: str) -> list[Place]:
    """Move joules from one layer to another that took as long; every sum and share stays right."""
    rows = [r for r in f.tables["layer"] if r["method"] in {"time_share", "load_model"} and float(r["time_self_s"]) > 0]
    first = rows[0]
    second = next(r for r in rows[1:] if r["device_id"] == first["device_id"])
    moved = float(first["energy_self_j"]) * (0.5 if what == "half" else 0.1)
    for row, change in ((first, -moved), (second, moved)):
        times(row, (float(row["energy_self_j"]) + change) / float(row["energy_self_j"]), *LAYER_JOULES)
    f.settle()
    return whole("layer", [first, second])


@plant("cpu imported job", "")
def time_share_called_fit(f: Forger, _: str) -> list[Place]:
    rows = [row for row in f.tables["layer"] if row["method"] in {"time_share", "load_model"}]
    for row in rows:
        row["method"] = "fit"
    return [*whole("layer", rows), *whole("device", f.tables["device"])]


@plant("counter factors", "no interval", "no fit told")
def fit_that_does_not_say_to_what(f: Forger, what: str) -> list[Place]:
    if what == "no fit told":
        row = f.row("device", device_id="cpu:0")
        row["how_known"] = ""
        return [("device", row), *whole("layer", f.rows("layer", method="fit"))]
    rows = f.rows("layer", method="fit")
    for row in rows:
        for column in LAYER_JOULES:
            if column.endswith(("_lo_j", "_hi_j")):
                row[column] = ""
    return whole("layer", rows)


@plant("imported", "device", "layer")
def narrower_than_the_meter(f: Forger, table: str) -> list[Place]:
    rows = [row for row in f.tables[table] if row["device_id"] == "gpu:0"]
    for row in rows:
        joules = float(row["energy_j" if table == "device" else "energy_self_j"])
        row["energy_systematic_lo_j"], row["energy_systematic_hi_j"] = repr(joules * 0.999), repr(joules * 1.001)
    return whole(table, rows)


# The meter's own readings


@plant("counter factors", "0.5", "0.9", "2.0")
def joules_away_from_the_counter(f: Forger, factor: str) -> list[Place]:
    f.scale("cpu:0", float(factor))
    return [("device", f.row("device", device_id="cpu:0"))]


@plant("counter", "0.001", "1000.0")
def counter_in_another_unit(f: Forger, factor: str) -> list[Place]:
    row = f.row("device", device_id="cpu:0")
    row["counter_unit_j"] = repr(float(row["counter_unit_j"]) * float(factor))
    f.settle()
    return [("device", row)]


@plant("counter")
def unit_and_joules_by_a_thousand(f: Forger, _: str) -> list[Place]:
    """Milliwatt-hours for kilowatt-hours: the readings stay, the unit and every joule are a thousandth."""
    row = f.row("device", device_id="cpu:0")
    row["counter_unit_j"] = repr(float(row["counter_unit_j"]) / 1000)
    f.scale("cpu:0", 0.001)
    return [("device", row)]


@plant("counter factors", "1", "-1")
def a_wrap_more_or_less(f: Forger, change: str) -> list[Place]:
    row = f.row("device", device_id="cpu:0")
    row["counter_wraps"] = str(int(row["counter_wraps"]) + int(change))
    added = int(change) * int(row["counter_modulus_raw"]) * float(row["counter_unit_j"])
    f.scale("cpu:0", 1 + added / float(row["energy_j"]))
    return [("device", row), ("event", None)]


@plant("counter", "end", "start")
def reading_moved(f: Forger, end: str) -> list[Place]:
    row = f.row("device", device_id="cpu:0")
    row[f"counter_{end}_raw"] = str(int(row[f"counter_{end}_raw"]) + 4_000_000)
    f.settle()
    return [("device", row)]


@plant("counter")
def reading_beyond_its_modulus(f: Forger, _: str) -> list[Place]:
    row = f.row("device", device_id="cpu:0")
    modulus = int(row["counter_modulus_raw"])
    row["counter_end_raw"] = str(int(row["counter_end_raw"]) + modulus)
    row["counter_wraps"] = str(int(row["counter_wraps"]) - 1)
    return [("device", row)]


@plant("counter")
def counter_that_wraps_without_a_modulus(f: Forger, _: str) -> list[Place]:
    row = f.row("device", device_id="cpu:0")
    wraps, modulus = int(row["counter_wraps"]), int(row["counter_modulus_raw"])
    row.update(counter_modulus_raw="0", counter_end_raw=str(int(row["counter_end_raw"]) + wraps * modulus))
    return [("device", row)]


@plant("counter", "all", "unit", "end")
def readings_left_out(f: Forger, what: str) -> list[Place]:
    row = f.row("device", device_id="cpu:0")
    columns = [c for c in row if c.startswith("counter_")]
    for column in columns if what == "all" else [f"counter_{what}_raw" if what == "end" else "counter_unit_j"]:
        row[column] = ""
    if what != "all":
        row["counter_difference_j"] = row["counter_gap_j"] = ""
    return [("device", row)]


@plant("counter factors", "0.0", "1e-7")
def reading_error_below_the_counters_step(f: Forger, u: str) -> list[Place]:
    row = f.row("device", device_id="cpu:0")
    row["reading_u_j"] = u
    f.settle()
    return [("device", row)]


@plant("gpu", "0.2", "4.0")
def other_route_far_away(f: Forger, factor: str) -> list[Place]:
    row = next(r for r in f.tables["device"] if r["cross_check_j"])
    row["cross_check_j"] = repr(float(row["energy_j"]) * float(factor))
    # A loaded machine's own run may have events that explain it.
    f.tables["event"] = [e for e in f.tables["event"] if e["code"] not in {"CROSS_CHECK", "SAMPLE_GAP"}]
    for number, event in enumerate(f.tables["event"]):
        event["event_index"] = str(number)
    f.settle()
    return [("device", row)]


@plant("counter job imported", "half the mean")
def mean_power_above_the_limit(f: Forger, _: str) -> list[Place]:
    row = f.metered()[0]
    row["power_limit_w"] = repr(0.5 * float(row["energy_j"]) / float(f.run["duration_s"]))
    return [("device", row)]


@plant("counter job imported", "five times the mean")
def static_power_above_the_mean(f: Forger, _: str) -> list[Place]:
    row = f.metered()[0]
    row["static_w"] = repr(5.0 * float(row["energy_j"]) / float(f.run["duration_s"]))
    return [("device", row)]


@plant("gpu", "3.0")
def static_part_too_large(f: Forger, factor: str) -> list[Place]:
    row = next(r for r in f.tables["layer"] if r["energy_static_j"] and float(r["energy_self_j"]) > 0)
    row["energy_static_j"] = repr(float(row["energy_self_j"]) * float(factor))
    f.settle()
    return [("layer", row)]


@plant("job", "")
def one_card_twice(f: Forger, _: str) -> list[Place]:
    """Call another domain the same card: its joules are in the total twice."""
    rows = f.rows("device", kind="gpu")[:2]
    for row in rows:
        row["device_hash"] = "a" * 64
    return whole("device", rows)


# Coverage, gaps, resets, events, status


@plant("imported", "complete", "covered", "both")
def half_a_run_called_whole(f: Forger, what: str) -> list[Place]:
    run, row = f.run, f.row("device", device_id="gpu:0")
    if what != "covered":
        run["status"] = "complete"
    if what != "complete":
        row["coverage_ratio"] = "1.0"
        f.settle()
    return [("run", run), ("device", row)]


@plant("counter cpu", "0.5", "0.9")
def coverage_without_an_event(f: Forger, coverage: str) -> list[Place]:
    row = f.metered()[0]
    row["coverage_ratio"] = coverage
    f.settle()
    return [("device", row), ("run", f.run)]


@plant("counter", "points gone", "with its joules")
def hole_in_the_curve(f: Forger, what: str) -> list[Place]:
    """Take away the readings of the middle third, as if they had never been; power is the slope again."""
    points = f.rows("sample", device_id="cpu:0")
    third = len(points) // 3
    f.remove("sample", points[third : 2 * third])
    after = points[2 * third]
    before = points[third - 1]
    seconds = (int(after["t_ns"]) - int(before["t_ns"])) / 1e9
    after["power_w"] = repr((float(after["energy_j"]) - float(before["energy_j"])) / seconds)
    if what == "with its joules":
        after["power_w"] = ""
    return [("sample", after), ("sample", None), ("run", f.run), ("device", f.row("device", device_id="cpu:0"))]


@plant("counter factors", "COUNTER_WRAP")
@plant("imported", "TIME_SHARE")
@plant("job", "RANK_MISSING")
def events_left_out(f: Forger, code: str) -> list[Place]:
    f.remove("event", f.rows("event", code=code))
    return [("event", None), *whole("device", f.tables["device"]), *whole("rank", f.tables.get("rank", [])),
            *whole("layer", f.tables["layer"])]  # fmt: skip


@plant("job", "RANK_MISSING")
def event_made_harmless(f: Forger, code: str) -> list[Place]:
    row = f.row("event", code=code)
    row["severity"] = "info"
    return [("event", row)]


@plant("counter", "fallback without event", "event without fallback")
def fallback_not_told(f: Forger, what: str) -> list[Place]:
    row = grid(f)
    if what == "fallback without event":
        row["fallback_from"] = "hours.csv (3 of 4 hours missing)"
        f.identify(row)
        return [("factor", row), ("event", None)]
    f.add_event("FACTOR_FALLBACK", "run")
    return [("event", f.tables["event"][0]), ("factor", None)]


@plant("counter", "SAMPLE_GAP")
def event_of_a_loss_in_a_whole_run(f: Forger, code: str) -> list[Place]:
    f.add_event(code, "cpu:0")
    message = "no power reading for 0.70 s: the energy of that time is unknown, and not counted"
    next(row for row in f.tables["event"] if row["code"] == code)["message"] = message
    return [("event", f.tables["event"][0]), ("run", f.run), ("device", f.row("device", device_id="cpu:0"))]


@plant("counter", "complete with a reason", "aborted without one")
def status_that_contradicts_itself(f: Forger, what: str) -> list[Place]:
    run = f.run
    run["exit_reason"] = "KeyboardInterrupt" if what == "complete with a reason" else ""
    run["status"] = {"complete with a reason": "complete"}.get(what, "aborted")
    return [("run", run)]


# Plausibility of the run


@plant("counter cpu", "10", "3")
@plant("imported", "10")
def more_time_than_there_was(f: Forger, factor: str) -> list[Place]:
    rows = [row for row in f.tables["layer"] if float(row["time_self_s"]) > 0]
    for row in rows:
        times(row, float(factor), "time_self_s")
    return [*whole("layer", rows), ("layer", None)]


@plant("job", "10")
def rank_with_more_time_than_there_was(f: Forger, factor: str) -> list[Place]:
    rows = f.rows("rank_layer", rank="0")
    for row in rows:
        times(row, float(factor), "time_self_s")
    return [*whole("rank_layer", rows), ("rank_layer", None), *whole("layer", f.tables["layer"]), ("layer", None)]


@plant("counter cpu", "swapped", "half", "zero")
def percentiles_of_other_samples(f: Forger, what: str) -> list[Place]:
    run = f.run
    p50, p99 = run["sample_interval_p50_s"], run["sample_interval_p99_s"]
    new = {"swapped": (p99, p50), "half": (repr(float(p50) / 2), p99), "zero": ("0.0", "0.0")}[what]
    run["sample_interval_p50_s"], run["sample_interval_p99_s"] = new
    return [("run", run)]


@plant("counter", "2.0", "0.5")
def duration_of_another_run(f: Forger, factor: str) -> list[Place]:
    run = f.run
    seconds = float(run["duration_s"]) * float(factor)
    run["duration_s"] = repr(seconds)
    run["ended_at"] = later(run["started_at"], microseconds=int(seconds * 1e9) // 1000)
    f.settle()
    return [("run", run), ("sample", None), *whole("device", f.tables["device"]), *whole("layer", f.tables["layer"]),
            ("layer", None), *whole("event", f.tables["event"])]  # fmt: skip


@plant("job", "world_size", "node_count", "source_run_id", "own source", "local_rank", "host")
def job_that_contradicts_its_ranks(f: Forger, what: str) -> list[Place]:
    first, second = f.tables["rank"][:2]
    if what in {"world_size", "node_count"}:
        f.run[what] = "7"
        return [("run", f.run), ("rank", None)]
    new = {
        "source_run_id": ("source_run_id", first["source_run_id"]), "own source": ("source_run_id", f.run["run_id"]),
        "local_rank": ("local_rank", first["local_rank"]), "host": ("host_hash", "b" * 64),
    }[what]  # fmt: skip
    second[new[0]] = new[1]
    return [("rank", second)]


@plant("job")
def rank_alive_that_left_nothing(f: Forger, _: str) -> list[Place]:
    row = f.row("rank", status="missing")
    row.update(status="complete", reason="")
    return [("rank", row), ("event", None), *whole("event", f.tables["event"]), ("run", f.run)]


@plant("cpu counter", "cyrillic", "space", "capital", "full width", "zero width", "no bracket")
def confusable_reserved_name(f: Forger, how: str) -> list[Place]:
    row = next(r for r in f.tables["layer"] if r["fqn"] == "(unattributed)")
    name = row["fqn"]
    row["fqn"] = {
        "cyrillic": name.replace("a", "\u0430"), "space": "(unattributed )", "capital": "(Unattributed)",
        "full width": "\uff08unattributed\uff09", "zero width": "(unattri\u200bbuted)", "no bracket": "unattributed)",
    }[how]  # fmt: skip
    row["reserved"] = "false"
    f.settle()
    return [("layer", row)]


@plant("cpu", "module as reserved", "reserved as module", "class")
def reserved_row_that_is_none(f: Forger, what: str) -> list[Place]:
    module = next(r for r in f.tables["layer"] if r["module_class"])
    reserved = next(r for r in f.tables["layer"] if r["reserved"] == "true")
    row = module if what == "module as reserved" else reserved
    if what == "class":
        row["module_class"] = "Linear"
    else:
        row["reserved"] = "true" if row is module else "false"
    return [("layer", row)]


@plant("counter", "10.0", "1e6")
@plant("factors", "10.0")
def more_units_than_were_counted(f: Forger, factor: str) -> list[Place]:
    run = f.run
    run["functional_unit_count"] = repr(float(run["functional_unit_count"]) * float(factor))
    f.settle()
    return [("run", run)]


@plant("counter", "measured", "assumed", "unit")
def unit_that_nobody_counted(f: Forger, what: str) -> list[Place]:
    run = f.run
    if what == "unit":
        run["functional_unit"] = "token"
    else:
        run["functional_unit_provenance"] = what
    return [("run", run)]


@plant("cpu")
def more_traced_steps_than_steps(f: Forger, _: str) -> list[Place]:
    f.run["traced_step_count"] = "4000"
    return [("run", f.run)]


@plant("counter", "M2", "M3", "M4")
def better_level_than_its_meters(f: Forger, level: str) -> list[Place]:
    f.run["measurement_level"] = level
    return [("run", f.run)]


@plant("counter", "1.2.0", "two")
def another_version_of_the_tables(f: Forger, version: str) -> list[Place]:
    f.run["schema_version"] = version
    return [("run", f.run), ("run", None)]


@plant("counter cpu")
def sealed_by_another_tool(f: Forger, _: str) -> list[Place]:
    f.run["tool_name"] = "energy-wizard"
    return [("run", f.run)]


@plant("cpu", "overlap", "same number", "measured", "more units", "tokens of nobody", "outside")
def step_that_contradicts_the_others(f: Forger, what: str) -> list[Place]:
    first, second = f.rows("window", kind="step")[:2]
    if what == "overlap":
        second["t_start_ns"] = str(int(first["t_end_ns"]) - 1_000_000)
    elif what == "same number":
        second["name"] = first["name"]
    elif what == "measured":
        second["provenance"] = "measured"
    elif what == "more units":
        second["units"] = "1e9"
    elif what == "tokens of nobody":
        second["output_tokens"] = "512"
    else:
        second["t_start_ns"] = "-5000"
    return whole("window", [first, second])


@plant("cpu job", "params", "class")
def one_module_of_two_kinds(f: Forger, what: str) -> list[Place]:
    name = next(r["fqn"] for r in f.tables["layer"] if r["module_class"] and len(f.rows("layer", fqn=r["fqn"])) > 1)
    rows = f.rows("layer", fqn=name)
    if what == "params":
        rows[1]["params"] = str(int(rows[1]["params"] or 0) + 7)
    else:
        rows[1]["module_class"] = "Nothing"
    return whole("layer", rows)


@plant("cpu", "taken out", "put in")
def domain_counted_or_not(f: Forger, what: str) -> list[Place]:
    if what == "taken out":
        row = f.row("device", device_id="ram")
        row["counted"] = "false"
        f.remove("hourly", f.rows("hourly", device_id="ram"))
        f.remove("impact", f.rows("impact", subject="device:ram"))
    else:
        row = f.row("device", device_id="gpu")
        row["counted"] = "true"
    f.settle()
    return [("device", row), ("layer", None), ("run", f.run)]


@plant("counter", "kind", "excluded", "excluded and metered")
def device_that_is_another(f: Forger, what: str) -> list[Place]:
    row = f.row("device", device_id="cpu:0")
    if what == "kind":
        row["kind"] = "gpu"
        f.settle()
        return [("device", row), ("run", f.run)]
    f.run["boundary_excluded"] = "cpu:0"
    if what == "excluded and metered":
        row["unavailable_reason"] = "no meter"
    return [("run", f.run), ("device", row)]


@plant("counter", "")
def tracing_that_cost_more_than_the_run(f: Forger, _: str) -> list[Place]:
    f.run["tracing_cost_s"] = repr(float(f.run["duration_s"]) * 3)
    f.settle()
    return [("run", f.run)]


# What was tried against `verify` when all of the above was found


@plant("cpu", "two machines", "one key for two", "no hash")
def keys_of_devices(f: Forger, what: str) -> list[Place]:
    row = f.row("device", device_id="ram")
    if what == "one key for two":
        row["device_key"] = f.row("device", device_id="cpu")["device_key"]
    else:
        row["machine_key"] = "c" * 64 if what == "two machines" else "c"
    return [("device", row)]


@plant("cpu")
def live_run_called_a_recording(f: Forger, _: str) -> list[Place]:
    f.run["sampler_mode"] = "replay"
    return [*whole("device", f.tables["device"]), ("run", f.run)]


@plant("counter")
def meter_of_everybody_called_a_process_share(f: Forger, _: str) -> list[Place]:
    row = f.row("device", device_id="cpu:0")
    row["scope"] = "process"
    return [("device", row)]


@plant("cpu", "itself", "each other", "inside of one that counts")
def device_inside_of_another(f: Forger, what: str) -> list[Place]:
    one, other = f.row("device", device_id="cpu"), f.row("device", device_id="ram")
    one["parent_device_id"] = {"itself": "cpu", "each other": "ram", "inside of one that counts": ""}[what]
    other["parent_device_id"] = "" if what == "itself" else "cpu"
    return whole("device", [one, other])


@plant("cpu")
def band_narrower_than_its_source(f: Forger, _: str) -> list[Place]:
    rows = f.metered()
    for row in rows:
        row.update(sensor_accuracy_lo_rel="-0.0001", sensor_accuracy_hi_rel="0.0001")
        joules, reading_j = float(row["energy_j"]), Z90 * float(row["reading_u_j"])
        row["energy_systematic_lo_j"] = repr(max(joules - 1e-4 * joules - reading_j, 0.0))
        row["energy_systematic_hi_j"] = repr(joules + 1e-4 * joules + reading_j)
    f.settle()
    return whole("device", rows)


@plant("counter")
def readings_of_a_counter_called_an_integral(f: Forger, _: str) -> list[Place]:
    row = f.row("device", device_id="cpu:0")
    row["method"] = "power_integral"
    return [("device", row)]


@plant("counter cpu")
def event_long_after_the_run(f: Forger, _: str) -> list[Place]:
    f.add_event("CROSS_CHECK", "run", t_ns=int(float(f.run["duration_s"]) * 1e9) + 3600 * 10**9, severity="info")
    row = f.tables["event"][0]
    row["t"] = later(f.run["started_at"], microseconds=int(row["t_ns"]) / 1000)
    return [("event", row)]


@plant("counter", "world_size", "parent_run_id")
def relatives_that_cannot_be(f: Forger, column: str) -> list[Place]:
    f.run[column] = "4" if column == "world_size" else f.run["run_id"]
    return [("run", f.run)]


@plant("cpu")
def window_inside_of_itself(f: Forger, _: str) -> list[Place]:
    row = f.tables["window"][0]
    row["parent_window_id"] = row["window_id"]
    return [("window", row)]


@plant("counter")
def joules_of_what_took_no_time(f: Forger, _: str) -> list[Place]:
    row = f.row("layer", fqn="layer1")
    row["time_self_s"] = "0.0"
    return [("layer", row)]


@plant("counter cpu")
def reserved_row_of_another_phase(f: Forger, _: str) -> list[Place]:
    row = f.row("layer", fqn="(unattributed)")
    row["phase"] = "optimizer"
    return [("layer", row)]


@plant("factors")
def making_by_another_kind_of_factor(f: Forger, _: str) -> list[Place]:
    row = f.row("device", device_id="cpu:0")
    row["embodied_factor_id"] = f.row("factor", kind="lifetime")["factor_id"]
    return [("device", row)]


@plant("hours")
def hours_of_two_grids(f: Forger, _: str) -> list[Place]:
    row = f.rows("factor", kind="grid_gwp")[1]
    row["zone"] = "POL"
    f.identify(row)
    return whole("impact", f.rows("impact", criterion="gwp"))


@plant("counter factors", "expired", "not yet")
def factor_of_other_dates(f: Forger, what: str) -> list[Place]:
    row, years = grid(f), (2001, 2002) if what == "expired" else (2090, 2091)
    row["valid_from"], row["valid_to"] = (f"{year}-01-01T00:00:00.000000Z" for year in years)
    f.identify(row)
    return [("factor", row)]


@plant("counter")
def factor_of_a_later_year(f: Forger, _: str) -> list[Place]:
    row = grid(f)
    row["data_year"] = "2099"
    f.identify(row)
    return [("factor", row)]


@plant("factors")
def grams_with_an_uncertainty_of_their_own(f: Forger, _: str) -> list[Place]:
    row = f.row("impact", subject="run", criterion="gwp", phase="embodied")
    row["u"] = "1e-9"
    return [("impact", row)]


# What no rule over the contents separates from an honest bundle


@plant("counter", argument=(
    "Readings and joules agree: a run half as hungry on a meter that counted half as much has the same cells."
))  # fmt: skip
def everything_halved_with_its_readings(f: Forger, _: str) -> list[Place]:
    row = f.row("device", device_id="cpu:0")
    joules = float(row["energy_j"]) / 2
    raw = round(joules / float(row["counter_unit_j"]))
    modulus, start = int(row["counter_modulus_raw"]), int(row["counter_start_raw"])
    row["counter_wraps"], row["counter_end_raw"] = map(str, divmod(start + raw, modulus))
    wraps = f.rows("event", code="COUNTER_WRAP")
    f.remove("event", wraps[int(row["counter_wraps"]) :])
    f.scale("cpu:0", 0.5)
    return [("device", row)]


@plant("counter", argument=(
    "A counter that started again has joules that its readings lack, and an event that says so: a forger can write it."
))  # fmt: skip
def joules_taken_off_with_an_event_that_excuses_it(f: Forger, _: str) -> list[Place]:
    f.scale("cpu:0", 0.9)
    f.add_event("COUNTER_RESET", "cpu:0")
    return [("device", f.row("device", device_id="cpu:0"))]


@plant("cpu", argument="A modelled run has no readings; a model of a smaller machine writes these very cells.")
def modelled_run_halved(f: Forger, _: str) -> list[Place]:
    for row in f.metered():
        f.scale(row["device_id"], 0.5)
    return whole("device", f.tables["device"])


@plant(
    "counter", argument="Every time in the bundle moves by the same days: an honest run of that day has these cells."
)
def whole_run_on_another_day(f: Forger, _: str) -> list[Place]:
    for table, columns in {"run": ("started_at", "ended_at"), "event": ("t",), "hourly": ("hour_utc",)}.items():
        for row in f.tables[table]:
            for column in columns:
                row[column] = later(row[column], days=-30)
    return [("run", f.run)]


@plant("counter", "organisation", "model_id", "params_total", "flops_total", argument=(
    "The user declares it and nothing in the bundle is computed from it."
))  # fmt: skip
def declared_fact(f: Forger, column: str) -> list[Place]:
    f.run[column] = {"params_total": "7000000000", "flops_total": "1e21"}.get(column, "ACME")
    return [("run", f.run)]


@plant(
    "counter", argument="The user counts units; twice as many, counted and divided by alike, are another honest run."
)
def units_counted_twice(f: Forger, _: str) -> list[Place]:
    run = f.run
    run["functional_unit_count"] = repr(2 * float(run["functional_unit_count"]))
    run["units_counted"] = f"image={run['functional_unit_count']}"
    f.settle()
    return [("run", run)]


@plant(
    "counter", argument="A PUE is the user's word: 1.05 under its own id and applied everywhere is an honest bundle."
)
def another_pue_declared(f: Forger, _: str) -> list[Place]:
    row = f.row("factor", kind="pue")
    row["value"] = f.run["pue"] = "1.05"
    f.identify(row)
    f.settle()
    return [("factor", row)]


@plant("counter", argument=(
    "A grid's number under the id of its new content is a factor that a user may have brought in a file."
))  # fmt: skip
def another_grid_factor_sourced(f: Forger, _: str) -> list[Place]:
    row = grid(f)
    row.update(value="30.0", lo="", hi="", distribution="", source_version="table 7")
    f.identify(row)
    f.settle()
    return [("factor", row)]


@plant("counter", argument="What a layer is called is known to its program alone; no joule moves.")
def layers_renamed(f: Forger, _: str) -> list[Place]:
    one, other = f.row("layer", fqn="layer0"), f.row("layer", fqn="layer2")
    one["fqn"], other["fqn"] = "layer2", "layer0"
    return [("layer", one)]


@plant("counter", argument=(
    "A fit decides between layers by readings that the bundle holds as their sum alone; inside the intervals of the "
    "rows another split is another honest fit."
))  # fmt: skip
def joules_moved_between_fitted_layers(f: Forger, _: str) -> list[Place]:
    one, other = f.row("layer", fqn="layer0"), f.row("layer", fqn="layer1")
    moved = 0.2
    for row, change in ((one, -moved), (other, moved)):
        row["energy_self_j"] = repr(float(row["energy_self_j"]) + change)
    f.settle()
    return whole("layer", [one, other])


@plant("cpu", argument=(
    "Load changes from reading to reading, and rows shared by time have the powers of the readings in which they ran: "
    "inside the span of the curve's powers another split is that of a program that ran at other times."
))  # fmt: skip
def joules_moved_within_the_powers_of_the_curve(f: Forger, _: str) -> list[Place]:
    return time_share_not_by_time(f, "a tenth")


@plant("cpu", argument="What a step did is said by the program; its joules and times stay.")
def steps_of_another_stage(f: Forger, _: str) -> list[Place]:
    for row in f.rows("window", kind="step"):
        row["stage"] = "inference"
    return whole("window", f.rows("window", kind="step"))


@plant("counter", argument="The names of the machine's software are told once and nothing follows from them.")
def another_operating_system(f: Forger, _: str) -> list[Place]:
    f.run.update(os="Windows", torch_version="1.0")
    return [("run", f.run)]


@plant("imported", argument="A note of the reader of a log about its own assumption; without it the rows are the same.")
def note_left_out(f: Forger, _: str) -> list[Place]:
    f.remove("event", f.rows("event", code="CLOCK_ASSUMED"))
    return [("event", None)]


@plant(
    "counter",
    argument="That nobody else used the package is not in its counter: a shared and a private run look alike.",
)
def sharing_not_told(f: Forger, _: str) -> list[Place]:
    f.row("device", device_id="cpu:0")["shared_with_others"] = ""
    return [("device", f.row("device", device_id="cpu:0"))]


@plant(
    "counter", argument="What a meter is called stands in no other cell: a renamed meter of the same kind is a meter."
)
def meter_renamed(f: Forger, _: str) -> list[Place]:
    f.row("device", device_id="cpu:0")["model"] = "Xeon Platinum 8480+"
    return [("device", f.row("device", device_id="cpu:0"))]


@plant("repriced", argument=(
    "The first manifest is a file like any other: who rewrites it with the tables has made the first seal anew. Its "
    "hash in a chain, or a signature, shows it."
))  # fmt: skip
def measurement_and_first_seal_changed(f: Forger, _: str) -> list[Place]:
    before = f.other["original.MANIFEST.sha256"].decode()
    old = sha256(table_bytes_of(f, "run")).hexdigest()
    f.run["name"] = "another"
    new = sha256(table_bytes_of(f, "run")).hexdigest()
    assert old in before
    f.other["original.MANIFEST.sha256"] = before.replace(old, new).encode()
    return [("run", f.run)]


# What follows from other cells, and is said otherwise


@plant("factors", "usage", "embodied", "total", "sci")
@plant("counter", "energy", "pue")
def another_dominant_uncertainty(f: Forger, what: str) -> list[Place]:
    wanted = {"criterion": "sci"} if what == "sci" else {"criterion": "gwp", "phase": what}
    row = f.row("impact", **(wanted if what in {"usage", "embodied", "total", "sci"} else {"criterion": "gwp"}))
    honest = row["dominant_uncertainty"]
    other = {"energy": "energy_j", "pue": "wue"}.get(what, "lifetime" if honest != "lifetime" else "energy_j")
    row["dominant_uncertainty"] = other if other != honest else "wue"
    return [("impact", row)]


@plant("hours factors counter")
def an_hour_with_an_uncertainty_of_its_own(f: Forger, _: str) -> list[Place]:
    row = f.rows("hourly")[0]
    row["reading_u_j"] = "0.001"
    return [("hourly", row)]


@plant("counter", "share_ratio", "embodied_lifetime_s", "reserved_s", "memory_bytes")
def a_device_says_what_no_writer_knows(f: Forger, column: str) -> list[Place]:
    row = f.metered()[0]
    row[column] = {"share_ratio": "0.25", "memory_bytes": "8"}.get(column, "1000000.0")
    return [("device", row)]


@plant("cpu", "flops", "bytes_moved")
def work_differs_between_the_devices_of_the_same_calls(f: Forger, column: str) -> list[Place]:
    row = [each for each in f.rows("layer") if each[column] not in {"", "0.0"}][-1]
    row[column] = repr(float(row[column]) * 1.5)
    return whole("layer", f.rows("layer", fqn=row["fqn"], phase=row["phase"], stage=row["stage"]))


@plant("cpu", "flops", "bytes_moved")
def work_of_a_row_whose_calls_are_unknown(f: Forger, column: str) -> list[Place]:
    row = next(each for each in f.rows("layer") if each[column] not in {"", "0.0"})
    row["calls"] = row["energy_per_call_j"] = ""
    return [("layer", row)]


@plant("cpu", "flops", "bytes_moved")
def work_of_a_reserved_row(f: Forger, column: str) -> list[Place]:
    row = next(each for each in f.rows("layer", reserved="true") if each["calls"] not in {"", "0"})
    row["flops"] = row["bytes_moved"] = "1000000.0"
    return [("layer", row)]


@plant("cpu", "flops", "bytes_moved")
def work_below_zero(f: Forger, column: str) -> list[Place]:
    row = next(each for each in f.rows("layer") if each[column] not in {"", "0.0"})
    row[column] = "-" + row[column]
    return [("layer", row)]


@plant("counter", "flops", "bytes_moved", "rank")
def a_layer_says_what_no_writer_knows(f: Forger, column: str) -> list[Place]:
    row = f.rows("layer")[0]
    row[column] = "7" if column == "rank" else "1000000.0"
    return [("layer", row)]


@plant("counter cpu job", "gpu:7", "dram:3")
def event_about_a_device_that_is_not_there(f: Forger, subject: str) -> list[Place]:
    f.add_event("READ_SELDOM", subject)
    return [("event", f.rows("event")[0])]


@plant("counter cpu imported job")
def events_out_of_order(f: Forger, _: str) -> list[Place]:
    f.add_event("NOTE", "run", severity="info")
    row = f.rows("event")[0]
    row["t_ns"], row["t"] = "1000000000", later(f.run["started_at"], seconds=1)
    f.add_event("NOTE", "run", severity="info")
    events = f.tables["event"]
    events.insert(0, events.pop(1))
    for number, each in enumerate(events):
        each["event_index"] = str(number)
    return [("event", events[1])]


def long_window(f: Forger) -> Cells:
    """Lengthen a window to the whole run; return it with the run's interval."""
    row = f.rows("window")[0]
    row["t_start_ns"], row["t_end_ns"] = "0", str(int(float(f.run["duration_s"]) * 1e9))
    row.update(kind="other", name="all", energy_j=f.run["energy_it_j"])
    return row


@plant("cpu", "narrower", "none")
def a_long_window_with_another_interval(f: Forger, what: str) -> list[Place]:
    row = long_window(f)
    energy = float(row["energy_j"])
    known = f.run["energy_it_hi_j"] and what == "narrower"
    row["energy_lo_j"] = repr(energy * 0.999) if known else ("" if f.run["energy_it_hi_j"] else "0.0")
    row["energy_hi_j"] = repr(energy * 1.001) if known else ("" if f.run["energy_it_hi_j"] else repr(energy * 2))
    return [("window", row)]


@plant("cpu gpu")
def a_short_window_with_an_interval_over_repeats(f: Forger, _: str) -> list[Place]:
    row = next(row for row in f.rows("window", kind="step") if row["energy_j"])
    row["energy_lo_j"], row["energy_hi_j"] = "0.0", repr(float(row["energy_j"]) * 2)
    return [("window", row)]


@plant("cpu gpu", "lo", "hi")
def a_window_narrower_than_its_meters(f: Forger, end: str) -> list[Place]:
    row = next(row for row in f.rows("window", kind="step") if row[f"energy_systematic_{end}_j"])
    row[f"energy_systematic_{end}_j"] = row["energy_j"]
    return [("window", row)]


@plant("counter gpu")
def interval_over_repeats_narrowed_below(f: Forger, _: str) -> list[Place]:
    row = next(row for row in f.metered() if row["energy_lo_j"])
    row["energy_lo_j"] = repr(float(row["energy_j"]) * 0.9999)
    f.settle()
    return [("device", row)]


@plant("counter cpu")
def a_driver_of_no_device(f: Forger, _: str) -> list[Place]:
    f.run["driver_version"] = "570.1"
    return [("run", f.run)]


@plant("counter cpu", "ab_run", "assumed")
def a_method_for_an_overhead_that_is_not_there(f: Forger, method: str) -> list[Place]:
    f.run.update(tracing_cost_s="", overhead_ratio="", overhead_method=method)
    return [("run", f.run)]


# Requests of a language model


@plant("requests", "output_tokens", "input_tokens", "cached_tokens", "batch")
def one_row_of_a_request_with_another_count(f: Forger, column: str) -> list[Place]:
    row = f.row("token", request="0", stage="decode")
    row[column] = "7"
    return whole("token", f.rows("token", request="0"))


@plant("requests", "decode", "prefill")
def a_request_without_one_of_its_stages(f: Forger, stage: str) -> list[Place]:
    f.remove("token", f.rows("token", request="1", stage=stage))
    return whole("token", f.rows("token", request="1"))


@plant("requests", "accepted", "cached")
def more_of_a_part_than_of_the_whole(f: Forger, what: str) -> list[Place]:
    rows = f.rows("token", request="2" if what == "accepted" else "1")
    for row in rows:
        row[f"{what}_tokens"] = "50"
    return whole("token", rows)


@plant("requests", "all", "one of a batch")
def joules_of_requests_that_the_run_does_not_have(f: Forger, what: str) -> list[Place]:
    rows = f.rows("token") if what == "all" else f.rows("token", request="1", stage="decode")
    for row in rows:
        times(row, 40.0 if what == "all" else 1.5, "energy_j", "energy_lo_j", "energy_hi_j")
    return [*whole("token", rows), ("token", None)]


@plant("requests", "time", "end", "order")
def a_stage_outside_of_its_time(f: Forger, what: str) -> list[Place]:
    rows = f.rows("token", stage="decode", batch="0")
    for row in rows:
        if what == "time":
            row["time_s"] = "1.5"
        elif what == "end":
            row["t_end_ns"] = "9000000000"
        else:
            row["t_start_ns"], row["t_end_ns"] = row["t_end_ns"], row["t_start_ns"]
    return whole("token", rows)


@plant("requests")
def joules_of_a_request_called_measured(f: Forger, _: str) -> list[Place]:
    row = f.row("token", stage="decode")
    row["provenance"] = "measured"
    return [("token", row)]


@plant("requests")
def a_row_of_a_request_outside_of_its_interval(f: Forger, _: str) -> list[Place]:
    row = next(row for row in f.rows("token") if row["energy_lo_j"])
    row["energy_lo_j"] = repr(float(row["energy_j"]) * 1.1)
    return [("token", row)]


def numbers() -> Iterator[tuple[str, int]]:
    """Return how many defects there are of each kind."""
    kinds = dict.fromkeys(each.kind for each in PLANTS)
    yield from ((kind, sum(each.kind == kind for each in PLANTS)) for kind in kinds)
