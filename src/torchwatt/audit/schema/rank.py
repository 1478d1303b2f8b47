"""`rank` and `rank_layer`: a job of several processes, rank by rank; only in the bundle of a merged job."""

from __future__ import annotations

from torchwatt.audit.schema.model import RUN_ID, Table, integer, method, number, provenance, string
from torchwatt.core.terms import PHASES

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
        integer("calls", "1", "how often it ran", required=True, minimum=0),
        number("time_self_s", "s", "time without children", required=True, minimum=0),
        number("energy_self_j", "J", "without children", required=True),
        method("how it was found", required=True),
        provenance("provenance", "how it is known", required=True),
        string("stage", "as in layer"),
    ),
    optional=True,
)  # fmt: skip
