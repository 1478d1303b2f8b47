import numpy as np

from torchwatt.tracing.aggregated_spans import AggregatedSpans
from torchwatt.tracing.overhead_budget import SpanLimit
from torchwatt.tracing.thread_log import ThreadLog


def records(n):
    column = np.arange(n, dtype=np.int64)
    return AggregatedSpans(column * 0, column, column + 1, column * 0 + 1, column, column)  # each in a run of its own


def test_records_that_cannot_be_put_together_count_as_what_is_kept():
    log = ThreadLog(0)
    log._records = records(500)
    assert log.kept() == log.total() + 500
    limit = SpanLimit(max_spans=400, start_ns=0)
    assert limit.allows(300, 10)
    assert not any(
        limit.allows(log.kept(), t_ns) for t_ns in range(20, 50)
    )  # so that fewer steps are traced, and fewer are made
