"""A file with the calls of several processes cannot say whose a kernel is."""

import json

import pytest

from torchwatt.core.errors import TraceError
from torchwatt.kineto.trace_reader import read_trace


def event(category, name, ts, pid, tid, **args):
    return {"ph": "X", "cat": category, "name": name, "ts": ts, "dur": 10, "pid": pid, "tid": tid, "args": args}


def rank(process, device, module, steps=3):
    return [
        each
        for n in range(steps)
        for each in (
            event("python_function", f"nn.Module: {module}_0", 100 * n, process, 1, **{"Python id": 1}),
            event("cpu_op", "aten::mm", 100 * n + 1, process, 1),
            event("cuda_runtime", "cudaLaunchKernel", 100 * n + 2, process, 1, correlation=n),
            event("kernel", "gemm", 100 * n + 5, device, 7, device=device, stream=7, correlation=n),
        )
    ]


def write(folder, events):
    path = folder / "trace.json"
    path.write_text(json.dumps({"traceEvents": events}))
    return path


@pytest.mark.parametrize("processes", [(10, 11), ("[TP00] 10", "[TP01] 11"), (10, 11, 12, 13)])
@pytest.mark.parametrize("devices", ["same", "each its own"])
@pytest.mark.parametrize("kinds", [{"python_function"}, {"cpu_op"}, {"cuda_runtime"}, set()], ids=str)
def test_ranks_in_one_file_are_refused_with_their_processes(processes, devices, kinds, tmp_path):
    events = [
        each
        for n, process in enumerate(processes)
        for each in rank(process, n if devices == "each its own" else 0, f"Stage{n}")
        if not kinds or each["cat"] in {*kinds, "kernel"}
    ]
    with pytest.raises(TraceError, match=f"{len(processes)} processes .*one --trace per rank") as caught:
        read_trace(write(tmp_path, events))
    assert str(processes[0]) in str(caught.value)


def test_one_process_with_several_devices_and_threads_is_read(tmp_path):
    events = rank(10, 0, "A") + [{**each, "tid": 2} for each in rank(10, 1, "B") if each["cat"] != "kernel"]
    events += [event("cpu_op", "aten::mm", 900, "damaged", 1)]
    assert read_trace(write(tmp_path, events)) is not None
