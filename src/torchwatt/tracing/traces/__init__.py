"""Read saved traces of torch.profiler and join every device record to a module and a phase. No torch."""

from torchwatt.tracing.traces.join import join
from torchwatt.tracing.traces.outcome import MEANING, NAMED, OUTCOMES, Joined, Outcome
from torchwatt.tracing.traces.read import read_trace
from torchwatt.tracing.traces.sidecar import Sidecar, read_sidecar

__all__ = ["MEANING", "NAMED", "OUTCOMES", "Joined", "Outcome", "Sidecar", "join", "read_sidecar", "read_trace"]
