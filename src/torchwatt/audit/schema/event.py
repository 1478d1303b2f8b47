"""`event`: faults and notes of the run."""

from __future__ import annotations

from torchwatt.audit.schema.model import RUN_ID, Table, integer, string, timestamp

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
