"""`run`: the run, its time, its energy and boundary, and the user's declarations."""

from __future__ import annotations

from torchwatt.audit.schema.table_schema import (
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
from torchwatt.core.units import Z90

LEVELS = ("M0", "M1", "M2", "M3", "M4")

_SYSTEMATIC = "what another meter would say of energy_it_j: the meters' bands, added, and the errors of reading them"
_STATISTICAL = "90 % interval of energy_it_j: what another repeat of the run would give; of the domains, added"

_MEASURED = (
    string("run_id", "UUIDv7; salt of every hash in the bundle", required=True),
    string("schema_version", "version of these tables", required=True),
    string("tool_name", "torchwatt", required=True),
    string("tool_version", "version of torchwatt"),
    string("name", "what the user called the run"),
    timestamp("started_at", "UTC", required=True),
    timestamp("ended_at", "UTC, started_at and the monotonic duration", required=True),
    number("duration_s", "s", "monotonic wall time", required=True, minimum=0),
    string("status", "how it ended", required=True, values=("running", "complete", "partial", "aborted")),
    string("exit_reason", "why it was not complete"),
    string("boundary", "domains inside the total; empty: nothing was metered", many=True, refers="device.device_id"),
    string("boundary_excluded", "what could not be metered", many=True, refers="device.device_id"),
    number("energy_it_j", "J", "sum of the domains that count", minimum=0),
    number("energy_it_reading_u_j", "J", "of reading them, root sum of squares; empty if one has none", minimum=0),
    provenance("energy_it_provenance", "the weakest of the domains"),
    number("energy_accelerator_j", "J", "the part of gpu domains", minimum=0),
    number("energy_cpu_j", "J", "the part of cpu domains", minimum=0),
    number("energy_dram_j", "J", "the part of dram and ram domains", minimum=0),
    number("energy_other_j", "J", "the rest", minimum=0),
    number("energy_unattributed_j", "J", "rows of layer named (unattributed): work that no module claims"),
    number("closure_residual_j", "J", "total minus the sum of all layer rows"),
    number("coverage_ratio", "1", "the least covered domain's known part of the run", minimum=0, maximum=1),
    string("functional_unit", "what J per unit refers to; `run` if nothing was counted", required=True),
    number("functional_unit_count", "1", "how many", required=True, minimum=0),
    provenance("functional_unit_provenance", "declared by the user, or assumed", required=True),
    string("units_counted", "all units that the user counted, name=count, ;-list; as many as fit in 20,000 characters"),
    integer("step_count", "1", "steps seen", required=True, minimum=0),
    string("zone", "zone of the grid factor"),
    number("pue", "1", "facility energy over IT energy, the value of pue_factor_id", minimum=1),
    string("pue_factor_id", "row of factor", refers="factor.factor_id"),
    string("sampler_mode", "who sampled", required=True, values=("process", "thread", "replay", "none")),
    number("sampler_cpu_s", "s", "CPU time of sampling", required=True, minimum=0),
    integer("sampler_missed", "1", "readings that came too late", required=True, minimum=0),
    number("tracing_cost_s", "s", "time that tracing took from the user's thread", minimum=0),
    string("os", "operating system"),
    string("python_version", "Python"),
    string("torch_version", "PyTorch"),
    string("host_hash", "SHA-256 of run_id and host name"),
    number("energy_it_systematic_lo_j", "J", _SYSTEMATIC, minimum=0),
    number("energy_it_systematic_hi_j", "J", _SYSTEMATIC, minimum=0),
    number(
        "energy_facility_j", "J", "the building's share included; empty without a PUE", minimum=0,
        derived="energy_it_j*pue",
    ),
    number("sample_interval_p50_s", "s", "median distance of the points of sample", minimum=0),
    number("sample_interval_p99_s", "s", "99th percentile of it", minimum=0),
    number("overhead_ratio", "1", "tracing_cost_s over duration_s", minimum=0, derived="tracing_cost_s/duration_s"),
    string("overhead_method", "how the overhead is known", values=("ab_run", "self_timed", "assumed")),
    string(
        "measurement_level", "the weakest aspect of the counting domains: M0 modelled, M1 accelerator's own counter, "
        "M2 and package and DRAM counters, M3 the host's supply, M4 a calibrated external meter; empty: no meter",
        values=LEVELS,
    ),
    string("kernel", "version of the operating system's kernel"),
    string("driver_version", "driver of the accelerators, ;-list"),
    number("energy_it_lo_j", "J", _STATISTICAL, minimum=0),
    number("energy_it_hi_j", "J", _STATISTICAL, minimum=0),
    number(
        "energy_it_u_j", "J", "standard uncertainty of what another repeat would give, the one of energy_it_hi_j",
        minimum=0, derived=f"(energy_it_hi_j-energy_it_j)/{Z90}",
    ),
    integer("traced_step_count", "1", "steps whose modules were traced; the others are filled in from them", minimum=0),
)  # fmt: skip

# Declarations of the user, empty if not given (BoAmps 1.1, SCI for AI, the documentation form of the EU AI Act).
_DECLARED = (
    string("parent_run_id", "experiment or job, so that failed and stopped runs can be summed"),
    string("job_id", "of the scheduler"),
    integer("node_count", "1", "machines of the job", minimum=1),
    integer("world_size", "1", "processes of the job", minimum=1),
    string("organisation", "who ran it"),
    string("accountable_contact", "whom to ask"),
    string("confidentiality", "of this bundle", values=("public", "internal", "confidential", "secret")),
    string(
        "lifecycle_stage", "what the run was for",
        values=("data_preparation", "pretraining", "finetuning", "evaluation", "inference", "other"),
    ),
    string("persona", "whose view, SCI for AI", values=("provider", "consumer", "na")),
    string("task_family", "such as textGeneration (BoAmps)"),
    string("model_id", "name of the model"),
    string("model_revision", "version of the model"),
    string("model_sha256", "hash of its weights"),
    string("architecture", "kind of model"),
    integer("params_total", "1", "parameters of the model", minimum=0),
    integer("params_active", "1", "parameters that work on one token", minimum=0),
    string("dtype", "of the weights"),
    string("quantization", "of the weights"),
    string("dataset_id", "name of the data"),
    string("dataset_sha256", "hash of the data"),
    number("input_quantity", "", "in quantity_unit", minimum=0),
    number("output_quantity", "", "in quantity_unit", minimum=0),
    string("quantity_unit", "of both"),
    string("functional_unit_basis", "gross: all of them; effective: what was used", values=("gross", "effective")),
    number("batch_size", "1", "units a call", minimum=0),
    number("mean_concurrency", "1", "requests at a time", minimum=0),
    number("flops_total", "{FLOP}", "operations of the run (AI Act, annex XI)", minimum=0),
    provenance("flops_provenance", "how they are known"),
    string("flops_method", "how they were counted"),
    string("quality_metric", "what quality_value measures"),
    number("quality_value", "", "quality of the same run"),
    number("quality_u", "", "its standard uncertainty", minimum=0),
    string("quality_source", "who says so"),
    string("zone_system", "of zone", values=("iso3166-1", "iso3166-2", "electricitymaps", "egrid", "biddingzone")),
    string("facility_preset", "such as scaleway/fr-par-2"),
    string("infra_type", "where it ran", values=("publicCloud", "privateCloud", "onPremise", "other")),
    string("cloud_provider", "name"),
    string("cloud_region", "name"),
    string("instance_type", "name"),
    string("git_commit", "of the user's code"),
    boolean("git_dirty", "true: the user's code differed from git_commit"),
    string("env_lock_sha256", "hash of the list of packages"),
    string("container_digest", "of the image"),
)  # fmt: skip

DECLARED: tuple[str, ...] = tuple(column.name for column in _DECLARED)
RUN = Table(
    "run",
    ("run_id",),
    "one row: what ran, for how long, how many joules inside which boundary",
    _MEASURED + _DECLARED,
)


_DEVICE_SYSTEMATIC = "what another meter would say: the band of this one, and the errors of reading it (90 %)"
_COUNTED_J = "(counter_end_raw-counter_start_raw+counter_wraps*counter_modulus_raw)*counter_unit_j"

DEVICE = Table(
    "device",
    ("run_id", "device_id"),
    "one row a domain, with its meter; also those that could not be metered, and why",
    (
        RUN_ID,
        string("device_id", "the domain of one meter: gpu:0, cpu:0, ram", required=True),
        string("kind", "gpu, cpu, dram, ram, psys, ...", required=True),
        boolean(
            "counted", "true: inside run.energy_it_j; false: in no total, its rows of layer (if any) add up to it",
            required=True,
        ),
        string("vendor", "vendor"),
        string("model", "model"),
        string("device_hash", "SHA-256 of run_id and the device's UUID"),
        string("driver_version", "driver"),
        number("power_limit_w", "W", "power limit in force at start", minimum=0),
        string("scope", "device: everyone's joules; process: this process's share", values=("device", "process")),
        boolean("shared_with_others", "other users' joules are known to be inside"),
        string("sensor", "nvml_energy_counter, nvml_power, rapl, tdp_model, replay, ...", many=True),
        number("sensor_update_s", "s", "how often it was read", minimum=0),
        number("sensor_accuracy_lo_rel", "1", "systematic band, as a factor: common to every joule", maximum=0),
        number("sensor_accuracy_hi_rel", "1", "systematic band, as a factor", minimum=0),
        string("sensor_accuracy_source", "who states the band"),
        number("energy_j", "J", "what the meter says; empty: not metered", minimum=0),
        number("reading_u_j", "J", "standard uncertainty of reading the meter, without its band", minimum=0),
        number("static_w", "W", "power when nothing runs, at run clocks", minimum=0),
        number("coverage_ratio", "1", "known part of the run", minimum=0, maximum=1),
        number("cross_check_j", "J", "the other route: integrated power beside a counter", minimum=0),
        number("cross_check_rel_diff", "1", "how far the two routes are apart", derived="cross_check_j/energy_j-1"),
        method("how the joules were got"),
        provenance("provenance", "how they are known"),
        string("how_known", "one sentence"),
        string("notes", "of the meter, ;-list"),
        string("unavailable_reason", "why there is no meter, or none from some moment on"),
        string("unavailable_fix", "what would help"),
        integer("counter_start_raw", "", "the counter's first reading in the run, in its own unit", minimum=0),
        integer("counter_end_raw", "", "its last reading in the run", minimum=0),
        number("counter_unit_j", "J", "joules per unit of the counter", minimum=0),
        integer("counter_wraps", "1", "how often it wrapped in between", minimum=0),
        integer("counter_modulus_raw", "", "where it wraps, in its own unit; 0: never", minimum=0),
        number("counter_difference_j", "J", "the two readings' difference in joules", derived=_COUNTED_J),
        number(
            "counter_gap_j", "J", "energy_j beyond the two readings: joules dated to the run's ends between two slow "
            "readings, or bridged over a reset (see event)", derived="energy_j-counter_difference_j",
        ),
        string("parent_device_id", "the domain that contains this one", refers="device.device_id"),
        string("partition", "MIG or vGPU profile"),
        integer("memory_bytes", "By", "of the device", minimum=0),
        number("share_ratio", "1", "part of the device that was this run's; empty: all of it", minimum=0, maximum=1),
        number("embodied_lifetime_s", "s", "how long the device is used, for its embodied part", minimum=0),
        string("embodied_factor_id", "row of factor", refers="factor.factor_id"),
        number("reserved_s", "s", "how long it was reserved for the run", minimum=0),
        number("energy_lo_j", "J", "90 % interval: what another repeat of the run would give", minimum=0),
        number("energy_hi_j", "J", "90 % interval: what another repeat of the run would give", minimum=0),
        number(
            "energy_u_j", "J", "standard uncertainty of what another repeat would give, the one of energy_hi_j",
            minimum=0, derived=f"(energy_hi_j-energy_j)/{Z90}",
        ),
        number(
            "energy_systematic_lo_j", "J", _DEVICE_SYSTEMATIC,
            minimum=0,
        ),
        number(
            "energy_systematic_hi_j", "J", _DEVICE_SYSTEMATIC,
            minimum=0,
        ),
        string(
            "device_key", "tells that two runs met one device: SHA-256 of its UUID, else of its machine and PCI "
            "address or domain, with scope `process` of the process; not salted by the run; empty: not identified",
        ),
        string(
            "machine_key", "SHA-256 of the boot of the machine that the device is in: the same for all runs until it "
            "boots again; empty: not known",
        ),
    ),
)  # fmt: skip


EVENT = Table(
    "event",
    ("run_id", "event_index"),
    "what is worth telling, in time order",
    (
        RUN_ID,
        integer("event_index", "1", "0, 1, 2, ...", required=True, minimum=0),
        integer("t_ns", "ns", "since the start of the run", required=True),
        timestamp("t", "UTC", required=True),
        string("severity", "how bad", required=True, values=("info", "warning", "error")),
        string("code", "stable", required=True),
        string("subject", "a domain, a layer or the run"),
        string("message", "in words"),
    ),
)
