"""`device`: the meters with their energies, and the domains without a meter, with reasons."""

from __future__ import annotations

from torchwatt.audit.schema.model import RUN_ID, Table, boolean, integer, method, number, provenance, string

_SYSTEMATIC = "what another meter would say: the band of this one, and the errors of reading it (90 %)"
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
            minimum=0, derived="(energy_hi_j-energy_j)/1.6448536269514722",
        ),
        number(
            "energy_systematic_lo_j", "J", _SYSTEMATIC,
            minimum=0,
        ),
        number(
            "energy_systematic_hi_j", "J", _SYSTEMATIC,
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
