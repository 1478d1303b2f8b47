"""What a session keeps of its requests: everything, in little memory."""

import itertools
import tracemalloc

from torchwatt.core.requests import RequestBatch
from torchwatt.generation import RequestLog


def test_requests_are_given_back_as_they_were_added():
    batches = (
        RequestBatch((3, None), (5, 7), 10, 90, (("prefill", 10, 20), ("decode", 20, 60), ("draft", 61, 90)), 2, 4, 3,
                     (20, 40, 60), 2, 1024),
        RequestBatch((1,), (None,), 95, 99),
        RequestBatch((1,), (2,), 2**62, 2**62 + 5, (("decode", 2**62, 2**62 + 5),), token_ns=(2**62 + 1,)),
    )  # fmt: skip
    log = RequestLog(lambda: 0)
    for batch in batches:
        log.add(batch)
    assert log.batches() == batches
    assert log.batches(2) == batches[2:]


def test_a_stage_for_each_token_takes_a_few_bytes():
    times, tokens = itertools.count(1_000_000_000, 1_000), 20_000
    log = RequestLog(lambda: next(times))
    log.begin(0)

    def request():
        log.stage_began("prefill", next(times))
        log.stage_ended("prefill", next(times))
        for _ in range(49):
            log.stage_began("decode", next(times))
            log.stage_ended("decode", next(times))
        log.add_tokens(6, 50, 0)

    request()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(tokens // 50):
            request()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / tokens < 50
    (last,) = log.batches(tokens // 50)
    assert len(last.stretches) == 50
