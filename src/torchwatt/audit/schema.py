"""The tables and columns of a bundle; the one place that knows them. Add columns at the end, never reorder.

Units are UCUM. Empty is missing, never 0. Joules everywhere but in `impact`; intervals `_lo_`/`_hi_` are 90 %,
`_u_` is a standard uncertainty (k=1). A key names the columns that make a row unique and give the order of rows.
A layer may be called `NA`, so pandas reads these files with `keep_default_na=False, na_values=[""]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

SCHEMA_VERSION = "1.0.0"

ColumnType = Literal["string", "integer", "number", "boolean", "timestamp"]
Value = str | int | float | bool | datetime | None
Row = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Column:
    """One column; `required` cells are never empty."""

    name: str
    type: ColumnType
    unit: str
    required: bool
    description: str


@dataclass(frozen=True, slots=True)
class Table:
    """One file of a bundle: `<name>.csv`."""

    name: str
    key: tuple[str, ...]
    description: str
    columns: tuple[Column, ...]

    @property
    def header(self) -> tuple[str, ...]:
        """Return the names of the columns in order."""
        return tuple(column.name for column in self.columns)


def _string(name: str, description: str, *, required: bool = False) -> Column:
    return Column(name, "string", "", required, description)


def _number(name: str, unit: str, description: str, *, required: bool = False) -> Column:
    return Column(name, "number", unit, required, description)


def _integer(name: str, unit: str, description: str, *, required: bool = False) -> Column:
    return Column(name, "integer", unit, required, description)


def _boolean(name: str, description: str, *, required: bool = False) -> Column:
    return Column(name, "boolean", "", required, description)


def _timestamp(name: str, description: str) -> Column:
    return Column(name, "timestamp", "", required=True, description=description)


_RUN_ID = _string("run_id", "the run; salt of every hash in the bundle", required=True)
_DEVICE_ID = _string("device_id", "the domain of one meter: gpu:0, cpu:0, ram", required=True)
_PROVENANCE = "measured, derived, apportioned, sourced, modelled, declared or assumed"

RUN = Table(
    "run",
    ("run_id",),
    "one row: what ran, for how long, how many joules inside which boundary",
    (
        _RUN_ID,
        _string("schema_version", "version of these tables", required=True),
        _string("tool_name", "torchwatt", required=True),
        _string("tool_version", "version of torchwatt"),
        _string("name", "what the user called the run"),
        _timestamp("started_at", "UTC"),
        _timestamp("ended_at", "UTC, from the monotonic duration"),
        _number("duration_s", "s", "monotonic wall time", required=True),
        _string("status", "running, complete, partial or aborted", required=True),
        _string("exit_reason", "why it was not complete"),
        _string("boundary", "the domains inside the total, ;-list; empty: nothing was metered"),
        _string("boundary_excluded", "what could not be metered, ;-list"),
        _number("energy_it_j", "J", "sum of the domains that count"),
        _number("energy_it_u_j", "J", "root sum of squares of the domains; empty if one has none"),
        _string("energy_it_provenance", f"the weakest of the domains: {_PROVENANCE}"),
        _number("energy_accelerator_j", "J", "the part of gpu domains"),
        _number("energy_cpu_j", "J", "the part of cpu domains"),
        _number("energy_dram_j", "J", "the part of dram and ram domains"),
        _number("energy_other_j", "J", "the rest"),
        _number("energy_unattributed_j", "J", "rows named (unattributed): work that no module claims"),
        _number("closure_residual_j", "J", "total minus the sum of all layer rows"),
        _number("coverage_ratio", "1", "the least covered domain's known part of the run"),
        _string("functional_unit", "what J per unit refers to; `run` if nothing was counted", required=True),
        _number("functional_unit_count", "1", "how many", required=True),
        _string("functional_unit_provenance", "declared by the user, or assumed", required=True),
        _string("units_counted", "all units that the user counted, name=count, ;-list"),
        _integer("step_count", "1", "steps seen", required=True),
        _string("zone", "zone of the grid factor"),
        _number("pue", "1", "declared facility energy over IT energy"),
        _string("pue_factor_id", "row of factor"),
        _string("sampler_mode", "who sampled: process, thread, replay or none", required=True),
        _number("sampler_cpu_s", "s", "CPU time of sampling", required=True),
        _integer("sampler_missed", "1", "readings that came too late", required=True),
        _number("tracing_cost_s", "s", "time that tracing took from the user's thread"),
        _string("os", "operating system"),
        _string("python_version", "Python"),
        _string("torch_version", "PyTorch"),
        _string("host_hash", "SHA-256 of run_id and host name"),
        _number("energy_it_lo_j", "J", "90 % interval of energy_it_j, the meters' bands included"),
        _number("energy_it_hi_j", "J", "90 % interval of energy_it_j, the meters' bands included"),
    ),
)

DEVICE = Table(
    "device",
    ("run_id", "device_id"),
    "one row a domain, with its meter; also those that could not be metered, and why",
    (
        _RUN_ID,
        _DEVICE_ID,
        _string("kind", "gpu, cpu, dram, ram, psys, ...", required=True),
        _boolean("counts_toward_total", "true: inside run.energy_it_j", required=True),
        _string("vendor", "vendor"),
        _string("model", "model"),
        _string("device_hash", "SHA-256 of run_id and the device's UUID"),
        _string("driver_version", "driver"),
        _number("power_limit_w", "W", "power limit in force at start"),
        _string("scope", "device: everyone's joules; process: this process's share"),
        _boolean("shared_with_others", "other users' joules are known to be inside"),
        _string("sensor", "nvml_energy_counter, nvml_power, rapl, tdp_model, replay, ... ;-list"),
        _number("sensor_update_s", "s", "how often it was read"),
        _number("sensor_accuracy_lo_rel", "1", "systematic band, as a factor: common to every joule"),
        _number("sensor_accuracy_hi_rel", "1", "systematic band, as a factor"),
        _string("sensor_accuracy_source", "who states the band"),
        _number("energy_j", "J", "what the meter says; empty: not metered"),
        _number("energy_u_j", "J", "standard uncertainty of reading the meter, without its band"),
        _number("static_w", "W", "power when nothing runs, at run clocks"),
        _number("coverage_ratio", "1", "known part of the run"),
        _number("cross_check_j", "J", "the other route: integrated power beside a counter"),
        _number("cross_check_rel_diff", "1", "cross_check_j / energy_j - 1"),
        _string("method", "counter, power_integral, load_model, fit, time_share or replay"),
        _string("provenance", _PROVENANCE),
        _string("how_known", "one sentence"),
        _string("notes", "of the meter, ;-list"),
        _string("unavailable_reason", "why there is no meter, or none from some moment on"),
        _string("unavailable_fix", "what would help"),
        _integer("counter_start_raw", "", "the counter's first reading in the run, in its own unit"),
        _integer("counter_end_raw", "", "its last reading in the run"),
        _number("counter_unit_j", "J", "joules per unit of the counter"),
        _integer("counter_wraps", "1", "how often it wrapped in between"),
    ),
)

LAYER = Table(
    "layer",
    ("run_id", "device_id", "fqn", "phase"),
    "every joule of every counting domain once: layers by phase, and the reserved rows",
    (
        _RUN_ID,
        _DEVICE_ID,
        _string("fqn", "module name as in state_dict, or (idle), (unattributed), ...", required=True),
        _string("phase", "forward, backward, optimizer, data, transfer, communication, other", required=True),
        _boolean("reserved", "true: not a module", required=True),
        _string("module_class", "class of the module"),
        _integer("params", "1", "parameters of the module itself"),
        _integer("param_bytes", "By", "their size"),
        _integer("calls", "1", "how often it ran", required=True),
        _number("time_self_s", "s", "time without children", required=True),
        _number("energy_self_j", "J", "without children; adds up to device.energy_j", required=True),
        _number("energy_self_lo_j", "J", "90 % interval"),
        _number("energy_self_hi_j", "J", "90 % interval"),
        _number("energy_static_j", "J", "the static part of energy_self_j"),
        _number("energy_dynamic_j", "J", "the rest of energy_self_j"),
        _number("energy_share", "1", "of the domain"),
        _number("energy_per_call_j", "J", "energy_self_j / calls"),
        _string("method", "fit, time_share, counter, ...", required=True),
        _string("provenance", _PROVENANCE, required=True),
        _number("carried_share", "1", "part of time_self_s carried over from traced windows", required=True),
    ),
)

SAMPLE = Table(
    "sample",
    ("run_id", "device_id", "t_ns"),
    "the energy curve of each domain; power is the mean since the point before",
    (
        _RUN_ID,
        _DEVICE_ID,
        _integer("t_ns", "ns", "since the start of the run, monotonic", required=True),
        _number("power_w", "W", "mean since the previous point; empty on the first"),
        _number("energy_j", "J", "since the first point of the domain", required=True),
        _string("provenance", _PROVENANCE, required=True),
    ),
)

FACTOR = Table(
    "factor",
    ("factor_id",),
    "the numbers about grid and building that grams were made with",
    (
        _string("factor_id", "hash of the content", required=True),
        _string("kind", "grid_gwp or pue", required=True),
        _number("value", "", "in `unit`", required=True),
        _string("unit", "UCUM", required=True),
        _number("lo", "", "90 % interval"),
        _number("hi", "", "90 % interval"),
        _string("basis", "lifecycle, direct, combustion_only or unknown"),
        _string("gas", "CO2 or CO2e"),
        _string("perspective", "production or consumption"),
        _string("accounting_method", "location or market"),
        _string("zone", "country, or country/part"),
        _integer("data_year", "a", "the year that the number is about"),
        _string("source_name", "who published it", required=True),
        _string("source_url", "where"),
        _string("source_version", "package it was read from"),
        _string("licence", "of the data"),
        _string("coverage_note", "what is in it and what is not"),
        _string("provenance", _PROVENANCE, required=True),
    ),
)

IMPACT = Table(
    "impact",
    ("run_id", "subject", "criterion", "phase"),
    "grams; opinions about a grid and a year, re-computable from `formula` and the energy of the subject",
    (
        _RUN_ID,
        _string("subject", "run, or device:<device_id>", required=True),
        _string("criterion", "gwp", required=True),
        _string("phase", "usage", required=True),
        _number("value", "", "in `unit`", required=True),
        _string("unit", "UCUM", required=True),
        _number("lo", "", "90 % interval"),
        _number("hi", "", "90 % interval"),
        _string("formula", "of energy_j and the kinds of the factors", required=True),
        _string("factor_ids", "rows of factor, ;-list", required=True),
        _string("provenance", _PROVENANCE, required=True),
        _string("weakest_input", _PROVENANCE, required=True),
    ),
)

EVENT = Table(
    "event",
    ("run_id", "event_index"),
    "what is worth telling, in time order",
    (
        _RUN_ID,
        _integer("event_index", "1", "0, 1, 2, ...", required=True),
        _integer("t_ns", "ns", "since the start of the run", required=True),
        _timestamp("t", "UTC"),
        _string("severity", "info, warning or error", required=True),
        _string("code", "stable", required=True),
        _string("subject", "a domain, a layer or the run"),
        _string("message", "in words"),
    ),
)

TABLES: tuple[Table, ...] = (RUN, DEVICE, LAYER, SAMPLE, FACTOR, IMPACT, EVENT)
