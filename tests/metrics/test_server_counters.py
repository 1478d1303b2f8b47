"""Token counters of servers: each server's page, what is told apart, and the tokens of windows over restarts and gaps.

The pages are written here with the names, labels and types that the servers' sources have.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import fsum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.core.errors import ConfigError
from torchwatt.metrics.server_counters import (
    SERVER_KINDS,
    ScrapeError,
    ServerKind,
    check_url,
    is_loopback,
    parse_page,
)
from torchwatt.metrics.server_tally import ServerTally, compare_pages, sum_windows

# vllm/v1/metrics/loggers.py; `prometheus_client` adds the time of the start and `_created`.
VLLM = """\
# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.
# TYPE process_start_time_seconds gauge
process_start_time_seconds {start}
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="tiny, \\"x\\""}} 2.0
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{{engine="0",model_name="tiny, \\"x\\""}} {input}
vllm:prompt_tokens_total{{engine="1",model_name="tiny, \\"x\\""}} 0.0
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{{engine="0",model_name="tiny, \\"x\\""}} 1.7e+09
# TYPE vllm:prompt_tokens_cached_total counter
vllm:prompt_tokens_cached_total{{engine="0",model_name="tiny, \\"x\\""}} {cached}
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{{engine="0",model_name="tiny, \\"x\\""}} {output}
vllm:generation_tokens_total{{engine="1",model_name="tiny, \\"x\\""}} 0.0
# TYPE vllm:request_success_total counter
vllm:request_success_total{{engine="0",finished_reason="stop",model_name="tiny, \\"x\\""}} {requests}
vllm:request_success_total{{engine="0",finished_reason="length",model_name="tiny, \\"x\\""}} 0.0
# TYPE vllm:request_prompt_tokens histogram
vllm:request_prompt_tokens_sum{{engine="0",model_name="tiny, \\"x\\""}} 77.0
# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_sum{{engine="0",model_name="tiny, \\"x\\""}} 99.0
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{{engine="0",le="0.1",model_name="tiny, \\"x\\""}} {requests}
vllm:time_to_first_token_seconds_count{{engine="0",model_name="tiny, \\"x\\""}} {requests}
vllm:time_to_first_token_seconds_sum{{engine="0",model_name="tiny, \\"x\\""}} {first_token_s}
"""
# python/sglang/srt/observability/metrics_collector.py; `process_start_time_seconds` is not in multi-process pages.
SGLANG = """\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{{engine_type="unified",model_name="tiny",pp_rank="0",tp_rank="0"}} 2.0
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{{is_streaming="false",model_name="tiny"}} {input}
# TYPE sglang:generation_tokens_total counter
sglang:generation_tokens_total{{is_streaming="false",model_name="tiny"}} {output}
# TYPE sglang:cached_tokens_total counter
sglang:cached_tokens_total{{cache_source="device",model_name="tiny"}} {cached}
# TYPE sglang:num_requests_total counter
sglang:num_requests_total{{model_name="tiny"}} {requests}
# TYPE sglang:realtime_tokens_total counter
sglang:realtime_tokens_total{{mode="decode",model_name="tiny"}} 5.0
# TYPE sglang:time_to_first_token_seconds histogram
sglang:time_to_first_token_seconds_sum{{model_name="tiny"}} {first_token_s}
sglang:time_to_first_token_seconds_count{{model_name="tiny"}} {requests}
"""
# router/src of text-generation-inference: its exporter writes no `_total`, and histograms as sum and count.
TGI = """\
# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 2
# TYPE tgi_queue_size gauge
tgi_queue_size 0
# TYPE tgi_request_success counter
tgi_request_success {requests}
# TYPE tgi_request_input_length histogram
tgi_request_input_length_bucket{{le="+Inf"}} {requests}
tgi_request_input_length_sum {input}
tgi_request_input_length_count {requests}
# TYPE tgi_request_generated_tokens histogram
tgi_request_generated_tokens_sum {output}
tgi_request_generated_tokens_count {requests}
"""
# tools/server/server-task.cpp of llama.cpp: prompt tokens are without those from the cache.
LLAMA = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed, excluding cached tokens
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total {uncached}
# TYPE llamacpp:prompt_tokens_cached_total counter
llamacpp:prompt_tokens_cached_total {cached}
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total {output}
# TYPE llamacpp:n_decode_total counter
llamacpp:n_decode_total 41
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 2
"""
PAGES = {"vLLM": VLLM, "SGLang": SGLANG, "TGI": TGI, "llama.cpp": LLAMA}
NO_CACHED, NO_REQUESTS, NO_FIRST_TOKEN = {"TGI"}, {"llama.cpp"}, {"TGI", "llama.cpp"}
FRESH = "# TYPE tgi_queue_size gauge\ntgi_queue_size 0\n"
S = 1_000_000_000


def text_of(name, scale=1.0, start=1.7e9):
    counts = {"input": 1000.0, "cached": 300.0, "uncached": 700.0, "output": 250.0, "requests": 4.0}
    return PAGES[name].format(start=start, first_token_s=0.5 * scale, **{k: v * scale for k, v in counts.items()})


def page_of(name, scale=1.0, start=1.7e9):
    return parse_page(text_of(name, scale, start))


def tally_of(*pages):
    tally = ServerTally(0)
    for second, page in enumerate(pages):
        if page is None:
            tally.add_failure(second * S, "no page: refused")
        else:
            tally.add_page(second * S, page)
    return tally


def codes(tally):
    return [event.code for event in tally.events]


@pytest.mark.parametrize("name", PAGES)
def test_the_page_of_each_server_says_its_tokens(name):
    page = page_of(name)
    assert page.kind.name == name
    assert page.running == 2
    tally = tally_of(page, page_of(name, 3.0))
    (window,) = tally.windows
    assert (window.input_tokens, window.output_tokens) == (2000, 500)  # prompts with what came from a cache
    assert tally.cached == (None if name in NO_CACHED else 600)
    assert tally.requests == (None if name in NO_REQUESTS else 8)
    assert (tally.first_token_s, tally.first_tokens) == ((0, 0) if name in NO_FIRST_TOKEN else (1.0, 8))
    assert codes(tally) == ["SERVER_COUNTERS"]


def test_tokens_are_kept_by_model():
    def page(a, b):
        lines = [
            f'vllm:{what}_tokens_total{{engine="{engine}",model_name="{model}"}} {count}'
            for what in ("prompt", "generation")
            for model, engine, count in (("a", 0, a), ("a", 1, a), ("b", 0, b))
        ]
        return parse_page("\n".join(lines))

    assert dict(tally_of(page(1, 10), page(2, 40)).models) == {"a": (2, 2), "b": (30, 30)}


@pytest.mark.parametrize("name", ["SGLang", "TGI"])
def test_a_server_without_a_request_has_no_counters_yet(name):
    fresh = parse_page(FRESH if name == "TGI" else SGLANG.splitlines()[1].format())
    assert fresh.kind.name == name
    tally = tally_of(fresh, fresh, page_of(name), page_of(name, 2.0))
    assert [w.output_tokens for w in tally.windows] == [None, 250, 250]
    assert tally.windows[0].name == "no counters"
    assert "not on its page yet" in tally.events[0].message


def test_a_series_that_appears_was_at_0_and_one_that_goes_leaves_tokens_unknown():
    one, line = text_of("SGLang"), 'sglang:generation_tokens_total{is_streaming="true",model_name="tiny"} 7'
    tally = tally_of(*map(parse_page, (one, f"{one}{line}\n", one)))
    assert [w.output_tokens for w in tally.windows] == [7, None]
    assert codes(tally)[1:] == ["SERVER_LABELS", "SERVER_LABELS"]
    assert [e.severity for e in tally.events[1:]] == ["info", "warning"]
    assert "counted from 0" in tally.events[1].message
    assert "unknown" in tally.events[2].message


@pytest.mark.parametrize("name", PAGES)
def test_counters_that_go_back_are_a_restart(name):
    tally = tally_of(page_of(name, 3.0), page_of(name, 1.0), page_of(name, 2.0))
    assert [w.output_tokens for w in tally.windows] == [None, 250]
    assert codes(tally)[1:] == ["SERVER_RESTART"]
    assert tally.requests in (None, 4)


def test_a_restart_is_seen_by_its_time_where_counters_do_not_fall():
    tally = tally_of(page_of("vLLM", 1.0), page_of("vLLM", 2.0, start=1.8e9))
    assert tally.windows[0].output_tokens is None
    assert codes(tally)[1:] == ["SERVER_RESTART"]


def test_a_restart_of_a_server_whose_counters_come_with_requests_is_seen():
    tally = tally_of(page_of("TGI"), parse_page(FRESH))
    assert codes(tally)[1:] == ["SERVER_RESTART"]


def test_tokens_of_a_gap_are_known_only_of_the_same_process():
    same = tally_of(page_of("vLLM"), None, None, page_of("vLLM", 2.0))
    assert [(w.start_ns, w.end_ns, w.output_tokens) for w in same.windows] == [(0, 3 * S, 250)]
    unsure = tally_of(page_of("llama.cpp"), None, page_of("llama.cpp", 2.0))
    assert [(w.name, w.output_tokens) for w in unsure.windows] == [("no page", None)]
    for tally, reads in ((same, 2), (unsure, 1)):
        assert codes(tally)[1:] == ["SERVER_SILENT", "SERVER_BACK"]
        assert f"{reads} reads failed" in tally.events[-1].message


def test_an_old_llama_server_does_not_count_cached_prompts_and_that_is_said():
    old = "\n".join(line for line in text_of("llama.cpp").splitlines() if "cached_total" not in line)
    tally = tally_of(parse_page(old))
    assert "lacks those from its cache" in tally.events[0].message
    assert tally.cached is None


def test_six_digits_are_too_few_for_a_million_tokens():
    tally = tally_of(page_of("llama.cpp"), parse_page(text_of("llama.cpp").replace(" 250.0", " 1.25012e+06")))
    assert codes(tally)[1:] == ["TOKENS_ROUNDED"]
    assert "off by 10 or more" in tally.events[1].message


def test_a_window_without_requests_is_idle():
    quiet = [
        replace(page_of("vLLM"), series={k: 0.0 if "running" in k[0] else v for k, v in page_of("vLLM").series.items()})
    ]
    assert [w.kind for w in tally_of(*quiet * 2).windows] == ["idle"]
    assert [w.kind for w in tally_of(page_of("vLLM"), page_of("vLLM")).windows] == ["other"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<html>no counters</html>", "no counters of vLLM, SGLang, TGI or llama.cpp; .*--input-counter"),
        ("", "no counters"),
        ('python_gc_total{generation="0"} 5\n', "no counters"),
        (text_of("TGI") + text_of("llama.cpp"), "counters of TGI and llama.cpp; .*--output-counter"),
        (text_of("TGI") + "tgi_request_success 9\n", "given twice"),
        ("tgi_request_generated_tokens_sum NaN\n", "no count"),
        ("tgi_request_generated_tokens_sum -1\n", "no count"),
        ("tgi_request_generated_tokens_sum 1e300\n", "no count"),
        ("tgi_request_generated_tokens_sum ten\n", "cannot be read"),
        ('tgi_request_generated_tokens_sum{a="b} 1\n', "cannot be read"),
        (f"tgi_request_generated_tokens_sum {'1' * 20_000}\n", "more than"),
    ],
)  # fmt: skip
def test_what_is_no_page_of_a_server_is_refused_in_one_line(text, why):
    with pytest.raises(ScrapeError, match=why) as caught:
        parse_page(text)
    assert "\n" not in str(caught.value)


def test_other_servers_are_read_by_two_names():
    kind = ServerKind("named counters", "x:in_total", "x:out_total")
    page = parse_page('x:in_total 3\nx:out_total{m="1"} 4\nvllm:prompt_tokens_total 9\n', [kind])
    assert {key[0]: value for key, value in page.series.items()} == {"x:in_total": 3, "x:out_total": 4}
    with pytest.raises(ScrapeError, match="no x:out_total"):
        parse_page("x:in_total 3\n", [kind])


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://h/metrics", "http://", "http://u:p@h/", "http://h:99999/", "http://[::1", "http://h/\n"]
)  # fmt: skip
def test_an_address_that_cannot_be_read_is_refused(url):
    with pytest.raises(ConfigError, match="--url"):
        check_url(url)


def test_only_the_loopback_interface_is_this_machine():
    ours = ["http://127.0.0.1:8/metrics", "https://localhost/", "http://[::1]:8000/metrics"]
    assert all(is_loopback(check_url(url)) for url in ours)
    assert not any(is_loopback(url) for url in ("http://10.0.0.1/", "http://gpu-box/", "http://localhost.example/"))


# What happens to a server between two reads: tokens of each kind, a restart, or a read that fails.
happenings = st.lists(
    st.one_of(st.tuples(st.integers(0, 50), st.integers(0, 50)), st.just("restart"), st.just("fail"), st.just("page")),
    max_size=40,
)


@given(happenings, st.sampled_from(sorted(PAGES)))
def test_tokens_of_windows_are_those_that_the_server_made_and_never_more(happened, name):
    counts, made, starts, since_page = [0, 0], [0, 0], 1, []
    tally, expected = ServerTally(0), []

    def read(t_ns):
        cached = counts[0] // 3
        tally.add_page(t_ns, parse_page(PAGES[name].format(
            start=starts, first_token_s=0.0, input=counts[0], cached=cached, uncached=counts[0] - cached,
            output=counts[1], requests=counts[1] // 2,
        )))  # fmt: skip

    for second, what in enumerate(happened):
        if isinstance(what, tuple):
            counts = [count + more for count, more in zip(counts, what, strict=True)]
            made = [count + more for count, more in zip(made, what, strict=True)]
            since_page.append(what)
        elif what == "restart":
            counts, starts = [0, 0], starts + 1
            since_page.append(what)
        elif what == "fail":
            tally.add_failure(second * S, "refused")
        else:
            before = tally.page
            read(second * S)
            if before is not None:
                whole = "restart" not in since_page
                expected.append([fsum(w[i] for w in since_page) for i in (0, 1)] if whole else None)
            since_page = []
    found = [None if w.output_tokens is None else [w.input_tokens, w.output_tokens] for w in tally.windows]
    if name == "vLLM":  # it says when it started: every token between two reads of one process is known
        assert found == expected
    else:
        assert all(one is None or one == true for one, true in zip(found, expected, strict=True) if true is not None)
    known = [one for one in found if one is not None]
    assert all(count >= 0 for one in known for count in one)
    for i, most in enumerate(made):
        assert fsum(one[i] for one in known) <= most
        assert fsum(one[i] for one in known) == fsum(counts[i] for counts in tally.models.values())
    edges = [(w.start_ns, w.end_ns) for w in tally.windows]
    assert all(a[1] == b[0] for a, b in pairwise(edges))


def test_sums_are_over_windows_with_tokens_and_joules():
    (window,) = tally_of(page_of("vLLM"), page_of("vLLM", 2.0)).windows
    sums = sum_windows([replace(window, energy_j=10.0), window, replace(window, energy_j=90.0, output_tokens=None)])
    assert (sums.input, sums.output, sums.energy_j, sums.time_s, sums.windows) == (1000, 250, 10.0, 1.0, 1)
    assert sums.per_output_j() == 10 / 250
    assert sums.per_token_j() == 10 / 1250
    assert sum_windows([window]).per_output_j() is None


def test_pages_of_two_kinds_of_server_are_a_restart():
    assert compare_pages(page_of("vLLM"), page_of("TGI")).tokens is None


def test_names_of_counters_are_of_one_server_each():
    names = [name for kind in SERVER_KINDS for name in (*kind.counters, kind.running)]
    assert len(set(names)) == len(names)
    assert all(name.startswith(kind.prefix) for kind in SERVER_KINDS for name in (*kind.counters, kind.running))
