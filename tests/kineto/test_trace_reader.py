"""Traces as they come: cut short, malformed, odd, in other spellings, in any block size."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tests.kineto.trace_files import BASE_NS, event, joined, kernel, launch, module, note, op, owned, pair, save
from tests.support.examples import examples
from torchwatt.core.errors import TraceError
from torchwatt.kineto import join_trace, read_sidecar, read_trace

FEW = examples(30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def steps(n=40):
    """A trace of n modules with names that try the reader: braces, brackets, escapes, commas, other alphabets."""
    events = []
    for i in range(n):
        name = ['f<{},{"x": [1]}>', "void k<T>(a, {b})", 'q"}, {"ph"', "λ→µ", "back\\slash", "plain"][i % 6]
        events += [module(f"L_{i}", i * 10, 9), *pair(i * 10 + 1, i * 10 + 2, 1 + i % 3, i + 1, name=name)]
        events += [op("aten::mm", i * 10 + 1, 2, seq=i)]
    return events


def same(a, b):
    assert owned(a) == owned(b)
    assert a.kernel_ns == b.kernel_ns
    assert a.activities[0].start_ns.tolist() == b.activities[0].start_ns.tolist()
    assert [a.activities[0].signatures[i] for i in a.activities[0].signature] == [
        b.activities[0].signatures[i] for i in b.activities[0].signature
    ]


@pytest.mark.parametrize("block", [64, 257, 1000, 4096, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_the_size_of_blocks_and_the_spacing_change_nothing(tmp_path, block, indent):
    whole = joined(tmp_path, steps())
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"baseTimeNanoseconds": BASE_NS, "traceEvents": steps()}, indent=indent))
    same(whole, join_trace(read_trace(path, block=block)))


def test_gzip_a_bare_list_and_a_base_written_last_are_the_same_trace(tmp_path):
    whole = joined(tmp_path, steps())
    last = tmp_path / "last.json"
    last.write_text(json.dumps({"traceEvents": steps(), "traceName": "x", "baseTimeNanoseconds": BASE_NS}))
    same(whole, join_trace(read_trace(last)))
    same(whole, join_trace(read_trace(last, block=300)))
    zipped = tmp_path / "zipped"
    zipped.write_bytes(gzip.compress(last.read_bytes()))
    same(whole, join_trace(read_trace(zipped)))
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(steps()))
    found = join_trace(read_trace(bare), offset_ns=BASE_NS)
    same(whole, found)
    assert found.clock == "unknown"


def test_what_follows_the_events_may_be_longer_than_a_block(tmp_path):
    path = tmp_path / "t.json"
    devices = [{"id": i, "name": "x" * 100} for i in range(50)]
    tail = {"deviceProperties": devices, "baseTimeNanoseconds": BASE_NS, "distributedInfo": {"rank": 3}}
    path.write_text(json.dumps({"traceEvents": steps(), **tail}))
    trace = read_trace(path, block=512)
    assert (trace.rank, len(trace.device_names), trace.clock) == (3, 50, "base")
    same(joined(tmp_path, steps()), join_trace(trace))


def test_unix_microseconds_are_known_by_their_size(tmp_path):
    path = tmp_path / "t.json"
    at = 1_700_000_000_000_000
    events = [{**e, "ts": e["ts"] + at} for e in steps(3)]
    path.write_text(json.dumps({"traceEvents": events}))
    trace = read_trace(path)
    assert trace.clock == "unix"
    assert int(trace.records.start_ns[0]) == (at + 2) * 1000


@FEW
@given(st.data(), st.sampled_from([100, 700, 1 << 18]))
def test_a_file_cut_anywhere_keeps_its_complete_events_and_says_so(tmp_path, data, block):
    text = save(tmp_path, steps(8)).read_bytes()
    first, last = text.index(b'[{"ph"') + 1, text.rindex(b"}]}")
    cut = data.draw(st.integers(first, last))
    path = tmp_path / "cut.json"
    path.write_bytes(text[:cut])
    # An event is complete when the JSON before the cut can be closed after it.
    complete = max((n for n in range(len(steps(8)) + 1) if len(json.dumps(steps(8)[:n])) - 2 <= cut - first), default=0)
    if complete == 0:
        with pytest.raises(TraceError, match="no complete event"):
            read_trace(path, block=block)
        return
    trace = read_trace(path, block=block)
    assert trace.events == complete
    assert any("cut short" in text for text in trace.notes)


def test_a_zipped_file_cut_short_keeps_what_can_be_unpacked(tmp_path):
    path = tmp_path / "t.json.gz"
    path.write_bytes(gzip.compress(save(tmp_path, steps(3000)).read_bytes())[:-2000])
    trace = read_trace(path, block=4096)
    assert 100 < trace.events < 3000 * 4
    assert any("cut short" in text for text in trace.notes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"not json", 'no list "traceEvents"'),
        (b'{"schemaVersion": 1}', 'no list "traceEvents"'),
        (b'{"traceEvents": []}', "no complete event"),
        (b"[]", "no complete event"),
        (b'{"traceEvents": [{"ph": "X"', "no complete event"),
        (b"\x1f\x8b\x08\x00broken", "is broken"),
        (b"\x89PNG\r\n\x1a\n\x00", 'no list "traceEvents"'),
    ],
)
def test_what_is_no_trace_gives_one_error_that_names_the_file(tmp_path, content, words):
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=words) as error:
        read_trace(path)
    assert "odd.json" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TraceError, match=r"none\.json.*No such file"):
        read_trace(tmp_path / "none.json")


ODD = st.sampled_from([
    float("nan"), float("inf"), -1, 10**30, -(10**30), 2**63, 2**64 - 1, "text", "12", None, True, [], {}, [1, "x"],
])  # fmt: skip


@FEW
@given(st.sampled_from(["ts", "dur", "name", "cat", "ph", "pid", "tid", "args", "id"]), ODD, st.integers(0, 119))
def test_an_odd_field_costs_at_most_its_own_event(tmp_path, field, value, at):
    events = steps(30)
    events[at] = {**events[at], field: value}
    good = joined(tmp_path, [e for i, e in enumerate(events) if i != at])
    trace = read_trace(save(tmp_path, events))
    found = join_trace(trace)
    assert good.records <= found.records <= good.records + 1
    assert good.total_kernel_ns <= found.total_kernel_ns or events[at]["cat"] != "kernel"


@FEW
@given(
    st.sampled_from(["correlation", "device", "stream", "Sequence number", "Fwd thread id", "grid", "block", "kernel"]),
    ODD,
    st.integers(0, 119),
)
def test_an_odd_argument_costs_at_most_its_own_events_owner(tmp_path, field, value, at):
    events = steps(30)
    events[at] = {**events[at], "args": {**events[at]["args"], field: value}}
    found = join_trace(read_trace(save(tmp_path, events)))
    assert found.records == 30
    assert found.total_kernel_ns == sum(e["dur"] * 1000 for e in events if e["cat"] == "kernel")


def test_numbers_and_paths_that_are_no_json_are_read_all_the_same(tmp_path):
    text = save(tmp_path, steps(6)).read_text()
    odd = text.replace('"schemaVersion": 1', '"schemaVersion": 1, "x": 1')
    odd = odd.replace('"stream": 7', '"memory bandwidth (GB/s)": inf, "x": -nan, "path": "C:\\Users\\me", "stream": 7')
    path = tmp_path / "odd.json"
    path.write_text(odd)
    trace = read_trace(path)
    assert trace.events == len(steps(6))
    same(joined(tmp_path, steps(6)), join_trace(trace))


def test_a_broken_event_in_the_middle_is_left_out_and_counted(tmp_path):
    events = [json.dumps(e) for e in steps(6)]
    events[9] = '{"ph": "X", "cat": "kernel", "name": }'
    path = tmp_path / "t.json"
    path.write_text(f'{{"baseTimeNanoseconds": {BASE_NS}, "traceEvents": [{", ".join(events)}]}}')
    trace = read_trace(path)
    assert trace.events == len(events) - 1
    assert any("make no sense" in text for text in trace.notes)


def test_bytes_that_are_no_utf8_are_only_a_name(tmp_path):
    text = save(tmp_path, steps(2)).read_bytes().replace(b"L_1", b"L\xff1")
    path = tmp_path / "t.json"
    path.write_bytes(text)
    assert join_trace(read_trace(path)).kernel_ns["module-forward"] == 3000


def test_times_that_make_no_sense_are_left_out_and_said(tmp_path):
    events = [*steps(2), kernel(10**17, 5, 1), kernel(5, -3, 1), launch(float("nan"), 9)]
    found = join_trace(read_trace(save(tmp_path, events)))
    assert found.records == 2
    assert any("3 events" in text and "no usable time" in text for text in found.notes)


def test_the_spelling_of_2021_is_understood(tmp_path):
    """Categories with capitals, threads and streams as words, annotations among the operators."""
    new = [
        note("Optimizer.step#SGD.step", 50, 20), op("aten::add_", 51, 5), *pair(52, 60, 4, 1),
        op("aten::mm", 0, 10), *pair(1, 3, 7, 2),
    ]  # fmt: skip
    old = []
    for e in new:
        cat = {"user_annotation": "Operator", "cpu_op": "Operator", "cuda_runtime": "Runtime", "kernel": "Kernel"}
        tid = f"stream {e['tid']}" if e["cat"] == "kernel" else str(e["tid"])
        old.append({**e, "cat": cat[e["cat"]], "tid": tid})
    assert owned(joined(tmp_path, old)) == owned(joined(tmp_path, new))


def test_a_sidecar_that_is_none_is_refused_by_name(tmp_path):
    path = tmp_path / "s.json"
    path.write_text('{"format": "other/1", "graphs": {}}')
    with pytest.raises(TraceError, match=r"s\.json.*other/1"):
        read_sidecar(path)
    path.write_text("[]")
    with pytest.raises(TraceError, match=r"s\.json"):
        read_sidecar(path)


def test_deep_nesting_and_crossing_ranges_are_no_error(tmp_path):
    events = [module(f"D_{i}", i, 1000 - 2 * i) for i in range(300)] + [module("X_0", 500, 1000)]
    events += pair(350, 400, 5, 1) + pair(1200, 1300, 5, 2)
    found = joined(tmp_path, events)
    # X_0 began inside D_299 and is cut at its end: what a range that outlives its caller owns is not known.
    assert (found.kernel_ns["module-forward"], found.kernel_ns["outside"]) == (5000, 5000)


def test_reading_and_joining_import_no_torch(tmp_path):
    path = save(tmp_path, steps(2))
    code = (
        "import sys; from torchwatt.kineto import read_trace, join_trace\n"
        f"join_trace(read_trace({str(path)!r})); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_memory_is_bounded_by_the_file(tmp_path):
    """Peak memory above that of a tiny trace, per byte of a file of 20 MB, in a fresh process."""
    padding = {"call stack": "x" * 80}
    many = [event("cpu_op", f"aten::op{i % 50}", i * 3, 2, **padding, **{"Sequence number": i}) for i in range(40_000)]
    many += [e for i in range(20_000) for e in pair(i * 3, i * 3 + 1, 1, i + 1)]
    large, small = save(tmp_path, many, "large.json"), save(tmp_path, steps(2), "small.json")

    def peak(path):
        # Not ru_maxrss: that survives exec, and would be this process's.
        code = (
            "from torchwatt.kineto import read_trace, join_trace\n"
            f"join_trace(read_trace({str(path)!r}))\n"
            "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return int(done.stdout) * 1024

    grown = peak(large) - peak(small)
    assert grown > 0  # the columns at least
    assert grown / large.stat().st_size < 4


def test_columns_have_one_length(tmp_path):
    records = read_trace(save(tmp_path, steps(5))).records
    assert len({len(getattr(records, name)) for name in records.__slots__}) == 1
    assert records.start_ns.dtype == np.int64
