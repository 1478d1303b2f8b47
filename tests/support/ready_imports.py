"""What `tests.support.ready` imports before its processes begin: all that a session imports when it needs it."""

import gc
from importlib import import_module

for name in (
    "pandas",
    "pytest",  # as `tests.support.ready` does in each process
    "pyarrow.parquet",
    "torch._dynamo",  # as the first optimizer does
    "torchwatt.audit",
    "torchwatt.carbon.grid_tables",
    "torchwatt.cli.command_table",
    "torchwatt.sensors",
    "torchwatt.session.profile",
    "torchwatt.tracing.tracer",
    "torchwatt.views",
):
    import_module(name)

# What was imported stays: looking through it would copy its pages into every process.
gc.collect()
gc.freeze()
