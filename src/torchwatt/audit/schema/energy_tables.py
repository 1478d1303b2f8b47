"""`window`, `layer`, `hourly`, `sample`, and `factor` and `impact`: energy, and the carbon that is computed of it."""

from __future__ import annotations

from torchwatt.audit.schema.table_schema import (
    DEVICE_ID,
    RUN_ID,
    Table,
    boolean,
    integer,
    method,
    number,
    provenance,
    string,
    timestamp,
)
from torchwatt.core.terms import PHASES

_SYSTEMATIC = (
    "what another meter would say: the band of this one, if it states one, and what the split between rows leaves "
    "open: the fit's error, or, where layers were told apart by time alone, how far their powers usually spread"
)
WINDOW_KINDS = (
    "load", "compile", "warmup", "idle", "steady_state", "step", "epoch", "evaluation", "checkpoint", "prefill",
    "decode", "cell", "nested", "other",
)  # fmt: skip

WINDOW = Table(
    "window",
    ("run_id", "window_id"),
    "parts of the run, by time: steps, epochs, evaluations, checkpoints and nested sessions; their joules are inside "
    "the run's and never added to them",
    (
        RUN_ID,
        integer("window_id", "1", "0, 1, 2, ...", required=True, minimum=0),
        string("name", "what the user called it, or the step's number; 24-25: the row stands for these steps"),
        string("kind", "what it was", required=True, values=WINDOW_KINDS),
        integer("t_start_ns", "ns", "since the start of the run, monotonic", required=True),
        integer("t_end_ns", "ns", "since the start of the run, monotonic", required=True),
        number("energy_j", "J", "of all counting domains; empty: one of them was not known then", minimum=0),
        number("reading_u_j", "J", "standard uncertainty of reading the meters", minimum=0),
        provenance("provenance", "the weakest of the domains"),
        number("units", "1", "functional units inside", minimum=0),
        integer("parent_window_id", "1", "the window around it", minimum=0),
        string("cell_id", "of the notebook"),
        string("stage", "what a step did (train, validation, inference); empty: nothing is known of it"),
        number("energy_lo_j", "J", "90 % interval: what another repeat of the run would give", minimum=0),
        number("energy_hi_j", "J", "90 % interval: what another repeat of the run would give", minimum=0),
        number("energy_systematic_lo_j", "J", "what another meter would say: the bands of the meters", minimum=0),
        number("energy_systematic_hi_j", "J", "what another meter would say: the bands of the meters", minimum=0),
    ),
)

LAYER = Table(
    "layer",
    ("run_id", "device_id", "fqn", "phase", "stage"),
    "every joule of every domain once: layers by phase and stage, and the reserved rows",
    (
        RUN_ID,
        DEVICE_ID,
        string("fqn", "module name as in state_dict, or (idle), (unattributed), ...", required=True),
        string("phase", "what it did", required=True, values=PHASES),
        boolean("reserved", "true: not a module", required=True),
        string("module_class", "class of the module"),
        integer("params", "1", "parameters of the module itself", minimum=0),
        integer("param_bytes", "By", "their size", minimum=0),
        integer("calls", "1", "how often it ran; empty: not known of all steps", minimum=0),
        number("time_self_s", "s", "time without children", required=True, minimum=0),
        number("energy_self_j", "J", "without children; adds up to device.energy_j", required=True),
        number("energy_self_lo_j", "J", "90 % interval: what another repeat of the run would give"),
        number("energy_self_hi_j", "J", "90 % interval: what another repeat of the run would give"),
        number("energy_static_j", "J", "the static part of energy_self_j"),
        number("energy_dynamic_j", "J", "the rest of energy_self_j", derived="energy_self_j-energy_static_j"),
        number("energy_share", "1", "of device.energy_j", derived="energy_self_j/device_energy_j"),
        number("energy_per_call_j", "J", "of one call", derived="energy_self_j/calls"),
        method("how the part of the domain was found", required=True),
        provenance("provenance", "how it is known", required=True),
        number(
            "carried_share", "1", "part of time_self_s carried over from traced windows", required=True,
            minimum=0, maximum=1,
        ),
        string("module_parent", "fqn of the module around it"),
        integer("rank", "1", "process of a distributed job", minimum=0),
        number("flops", "{FLOP}", "operations of all calls", minimum=0),
        number("bytes_moved", "By", "memory traffic of all calls", minimum=0),
        string("dtype", "last seen"),
        number(
            "measured_share", "1", "how much of it the readings decided; the rest is prior", minimum=0, maximum=1
        ),
        string("measured_in", "where the row alone is an estimate: the smallest module around it that was measured"),
        number("time_share_j", "J", "what its share of time would have booked, to compare with", minimum=0),
        string("stage", "what the program was doing (prefill, decode, ...); empty until something names it"),
        number("energy_systematic_lo_j", "J", _SYSTEMATIC),
        number("energy_systematic_hi_j", "J", _SYSTEMATIC),
    ),
)  # fmt: skip

HOURLY = Table(
    "hourly",
    ("run_id", "hour_utc", "device_id"),
    "the joules of every counting domain by hour of the world's clock, for factors that change by the hour",
    (
        RUN_ID,
        timestamp("hour_utc", "start of the hour", required=True),
        DEVICE_ID,
        number("energy_j", "J", "in this hour; adds up to device.energy_j", required=True, minimum=0),
        number("reading_u_j", "J", "standard uncertainty of reading the meter", minimum=0),
        provenance("provenance", "how it is known", required=True),
    ),
)

SAMPLE = Table(
    "sample",
    ("run_id", "device_id", "t_ns"),
    "the energy curve of each domain; power is the mean since the point before",
    (
        RUN_ID,
        DEVICE_ID,
        integer("t_ns", "ns", "since the start of the run, monotonic", required=True),
        number("power_w", "W", "mean since the previous point; empty on the first", minimum=0),
        number("energy_j", "J", "since the first point of the domain", required=True, minimum=0),
        provenance("provenance", "how it is known", required=True),
    ),
    format="parquet",
)


RANK_ID = integer("rank", "1", "process of the job, 0 to run.world_size - 1", required=True, minimum=0)

RANK = Table(
    "rank",
    ("run_id", "rank"),
    "one row a rank of a merged job, also of those that left nothing; with the layer rows named (no rank), their "
    "joules are the run's",
    (
        RUN_ID,
        RANK_ID,
        integer("node", "1", "machine of the job, counted from that of the lowest rank", minimum=0),
        integer("local_rank", "1", "of its node", minimum=0),
        string(
            "status", "how it ended; missing: it left nothing to count", required=True,
            values=("complete", "partial", "aborted", "running", "missing"),
        ),
        string("reason", "why it was not complete"),
        string("source_run_id", "run_id of the rank's own bundle"),
        string("host_hash", "SHA-256 of run_id and the machine"),
        integer("t_start_ns", "ns", "since the start of the run, on the job's clock"),
        integer("t_end_ns", "ns", "since the start of the run, on the job's clock"),
        number("duration_s", "s", "of the rank", minimum=0, derived="(t_end_ns-t_start_ns)/1e9"),
        number("energy_j", "J", "sum of its rows of rank_layer; empty: nothing of it was metered", minimum=0),
        number("energy_communication_j", "J", "the part of collectives", minimum=0),
        number("cpu_s", "s", "CPU time of the process and its children", minimum=0),
        number("host_busy_s", "s", "CPU time of everything on its machine, where this rank metered it", minimum=0),
        integer("step_count", "1", "steps seen", required=True, minimum=0),
        string(
            "clock_method", "how its times became the job's: same_clock of rank 0's machine; store: ping-pong with "
            "rank 0 over the job's store; wall_clock: by unix time, error unknown",
            values=("same_clock", "store", "wall_clock"),
        ),
        integer("clock_bound_ns", "ns", "how wrong its times are at most, apart from drift; empty: unknown", minimum=0),
    ),
    optional=True,
)  # fmt: skip

RANK_LAYER = Table(
    "rank_layer",
    ("run_id", "rank", "device_id", "fqn", "phase", "stage"),
    "the rows of layer by rank: over all ranks they add up to layer, but for its rows named (no rank)",
    (
        RUN_ID,
        integer("rank", "1", "process of the job", required=True, minimum=0),
        string("device_id", "the domain of one meter", required=True, refers="device.device_id"),
        string("fqn", "module name as in state_dict, or (idle), ...", required=True),
        string("phase", "what it did", required=True, values=PHASES),
        integer("calls", "1", "how often it ran; empty: not known of all steps", minimum=0),
        number("time_self_s", "s", "time without children", required=True, minimum=0),
        number("energy_self_j", "J", "without children", required=True),
        method("how it was found", required=True),
        provenance("provenance", "how it is known", required=True),
        string("stage", "as in layer"),
    ),
    optional=True,
)  # fmt: skip


FACTOR_KINDS = (
    "grid_gwp", "grid_adpe", "grid_pe", "grid_wue", "pue", "wue", "embodied_gwp", "embodied_adpe", "embodied_pe",
    "lifetime", "share", "tdp", "estimator_coefficient", "equivalence", "residual_mix", "contract_gwp", "price",
)  # fmt: skip

FACTOR = Table(
    "factor",
    ("factor_id",),
    "the numbers about grid, building and hardware that impacts are made with",
    (
        string("factor_id", "kind and a hash of the content", required=True),
        string("kind", "what it is, and its name in a formula", required=True, values=FACTOR_KINDS),
        number("value", "", "in `unit`", required=True),
        string("unit", "UCUM", required=True),
        number("lo", "", "90 % interval, or the spread of two sources"),
        number("hi", "", "90 % interval, or the spread of two sources"),
        string(
            "basis", "what is inside",
            values=("lifecycle", "direct", "upstream", "combustion_only", "unknown"),
        ),
        string("gas", "CO2 alone, or all as CO2e", values=("CO2", "CO2e")),
        string(
            "perspective", "whose electricity",
            values=("production", "consumption", "marginal", "residual", "contract"),
        ),
        string("accounting_method", "GHG Protocol Scope 2", values=("location", "market")),
        string("zone", "country, or country/part"),
        integer("data_year", "a", "the year that the number is about"),
        string("source_name", "who published it", required=True),
        string("source_url", "where"),
        string("source_version", "package or file it was read from"),
        string("licence", "of the data"),
        string("coverage_note", "what is in it and what is not"),
        provenance("provenance", "how it is known", required=True),
        number("u", "", "standard uncertainty", minimum=0),
        string("distribution", "of lo..hi", values=("uniform", "normal", "triangular", "unknown")),
        string("gwp_set", "IPCC report of the warming potentials", values=("AR4", "AR5", "AR6", "unknown")),
        string("instrument", "contract behind a market-based number"),
        string("includes_td_losses", "losses of the grid inside", values=("yes", "no", "unknown")),
        string("zone_system", "of zone", values=("iso3166-1", "iso3166-2", "electricitymaps", "egrid", "biddingzone")),
        string("temporal_resolution", "how long it holds", values=("hour", "month", "year", "static")),
        timestamp("valid_from", "UTC"),
        timestamp("valid_to", "UTC, not included"),
        timestamp("retrieved_at", "UTC, when it was looked up"),
        string("source_sha256", "hash of the file it was read from"),
        boolean("is_estimated", "the source itself estimated it"),
        string("estimation_method", "how"),
        string("fallback_from", "what was asked for and not found"),
    ),
)  # fmt: skip

IMPACT = Table(
    "impact",
    ("run_id", "subject", "criterion", "phase", "accounting_method", "scenario"),
    "opinions about a grid and a year, re-computable from `formula`, the energy of the subject and the factors",
    (
        RUN_ID,
        string("subject", "run, device:<device_id>, window:<window_id> or layer:<fqn>", required=True),
        string("criterion", "what", required=True, values=("energy", "gwp", "adpe", "pe", "wcf", "cost", "sci")),
        string("phase", "of the life cycle", required=True, values=("usage", "embodied", "total")),
        number("value", "", "in `unit`", required=True),
        string("unit", "UCUM", required=True),
        number("lo", "", "90 % interval"),
        number("hi", "", "90 % interval"),
        string(
            "formula", "of numbers, + - * / ( ) and names: energy_j of the subject, duration_s, units of the run, "
            "share_ratio and reserved_s of the device, usage and embodied (values of the same subject), and the kinds "
            "of the factors (several of one kind: kind_1, kind_2, in the order of factor_ids; several with hours: the "
            "kind alone is their mean, weighted with the subject's joules of the hours)", required=True,
        ),
        string("factor_ids", "rows of factor", many=True, refers="factor.factor_id"),
        provenance("provenance", "how it is known", required=True),
        provenance("weakest_input", "the least known of what it is made of", required=True),
        string(
            "ghg_scope", "GHG Protocol; who runs on rented machines declares it",
            values=("scope2", "scope3_1", "scope3_2", "scope3_3", "na"),
        ),
        string(
            "accounting_method", "two totals side by side, never added", required=True,
            values=("location", "market", "na"),
        ),
        string("scenario", "as_run, or repriced:<name>", required=True),
        number("u", "", "standard uncertainty", minimum=0),
        number("per_unit_value", "", "value over run.functional_unit_count"),
        string("dominant_uncertainty", "the term that lo and hi mostly come from"),
    ),
)  # fmt: skip
