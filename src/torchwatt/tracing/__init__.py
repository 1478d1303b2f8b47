"""Record which module ran, and when. Importing this package imports no torch; starting a `Tracer` does."""

from torchwatt.tracing.scope import Scope, ignore_stages, listen_to_stages, scope, stage
from torchwatt.tracing.tracer import Tracer
from torchwatt.tracing.user_process import cuda_domains, wait_for_devices

__all__ = [
    "Scope", "Tracer", "cuda_domains", "ignore_stages", "listen_to_stages", "scope", "stage", "wait_for_devices",
]  # fmt: skip
