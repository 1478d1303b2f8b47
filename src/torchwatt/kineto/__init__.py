"""Read saved traces of torch.profiler and join every device record to a module and a phase. No torch."""

from torchwatt.kineto.joined_trace import NAMED_OUTCOMES, OUTCOME_MEANINGS, OUTCOMES, JoinedTrace, Outcome
from torchwatt.kineto.trace_join import join_trace
from torchwatt.kineto.trace_labels import Sidecar, read_sidecar, stage_name
from torchwatt.kineto.trace_reader import read_trace

__all__ = [
    "NAMED_OUTCOMES",
    "OUTCOMES",
    "OUTCOME_MEANINGS",
    "JoinedTrace",
    "Outcome",
    "Sidecar",
    "join_trace",
    "read_sidecar",
    "read_trace",
    "stage_name",
]
