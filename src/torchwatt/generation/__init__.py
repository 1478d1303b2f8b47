"""Stages and tokens that libraries show by themselves: generation, trainers, pipelines. Imports none of them."""

from torchwatt.generation.library_monitor import MONITOR, LibraryTools
from torchwatt.generation.request_log import RequestLog

__all__ = ["MONITOR", "LibraryTools", "RequestLog"]
