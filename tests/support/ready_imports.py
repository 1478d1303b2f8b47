"""What `tests.support.ready` imports before its processes begin: all that a session imports when it needs it."""

from importlib import import_module

for name in (
    "pandas",
    "pyarrow.parquet",
    "torch._dynamo",  # as the first optimizer does
    "torchwatt.audit",
    "torchwatt.carbon.tables",
    "torchwatt.sensors",
    "torchwatt.session.profile",
    "torchwatt.tracing.tracer",
    "torchwatt.views",
):
    import_module(name)
