"""Finds stages and tokens of libraries (generation, trainers, pipelines) without a change of the program.

Imports none of the libraries.
"""

from torchwatt.generation.library_monitor import MONITOR, LibraryTools
from torchwatt.generation.request_log import RequestLog

__all__ = ["MONITOR", "LibraryTools", "RequestLog"]
