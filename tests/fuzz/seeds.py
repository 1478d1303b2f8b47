"""Valid inputs to start from, one or more a target: small, and with every part that a parser looks at."""

from __future__ import annotations

import gzip
import io
import json
import sqlite3
import tempfile
import time
from dataclasses import fields
from functools import cache
from pathlib import Path

import numpy as np

from tests.fuzz.files import joined, packed

BASE_NS = 1_700_000_000_000_000_000
RAPL = "powercap/intel-rapl:0"

HEADER = b"timestamp, index, power.draw [W], energy_mj\n"
POWER = HEADER + b"".join(
    f"2023/11/14 22:13:{20 + i // 10}.{i % 10}00, 0, {100 + 40 * (i % 7)}.5 W, {i * 10_000}\n".encode()
    for i in range(40)
)
IDLE = b"t_unix_s,power_w\n" + b"".join(f"{1_700_000_000 + i / 10},{50 + i % 3}\n".encode() for i in range(30))


def _event(cat: str, name: str, ts: float, dur: float, **more: object) -> dict[str, object]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": 100, "ts": ts, "dur": dur, **more}


def _trace(steps: int = 4) -> dict[str, object]:
    """Build a run of steps: modules, operators with sequence numbers, launches, kernels, a graph, an arrow."""
    events: list[dict[str, object]] = []
    for i in range(steps):
        at, seq, c = 500_000.0 * i, 2 * i, 10 * i
        events += [
            _event("user_annotation", f"ProfilerStep#{i}", at, 450_000),
            _event("python_function", "nn.Module: Linear_0", at + 10, 200_000),
            _event("cpu_op", "aten::linear", at + 20, 100, args={"Sequence number": seq, "Fwd thread id": 0}),
            _event("cpu_op", "autograd::engine::evaluate_function: AddmmBackward0", at + 300_000, 100, tid=200,
                   args={"Sequence number": seq, "Fwd thread id": 1}),
            _event("cuda_runtime", "cudaLaunchKernel", at + 30, 5, args={"correlation": c}),
            _event("kernel", "gemm", at + 1000, 150_000, pid=0, tid=7,
                   args={"device": 0, "stream": 7, "correlation": c, "grid": [1, 2, 3], "block": [32, 1, 1]}),
            _event("cuda_runtime", "cudaGraphLaunch", at + 300_010, 5, tid=200, args={"correlation": c + 1}),
            _event("kernel", "triton_poi_fused_add_0", at + 300_100, 100_000, pid=0, tid="stream 7",
                   args={"device": 0, "stream": 7, "correlation": c + 1, "graph node id": 5}),
            _event("gpu_memcpy", "Memcpy HtoD", at + 420_000, 900, pid=0, tid=7,
                   args={"device": 0, "stream": 7, "correlation": c + 2, "Collective name": "allreduce"}),
            {"ph": "s", "cat": "fwdbwd", "name": "fwdbwd", "id": i, "pid": 1, "tid": 100, "ts": at + 20},
            {"ph": "f", "cat": "fwdbwd", "name": "fwdbwd", "id": i, "pid": 1, "tid": 200, "ts": at + 300_000},
        ]  # fmt: skip
    return {
        "schemaVersion": 1,
        "deviceProperties": [{"id": 0, "name": "NVIDIA H100"}],
        "distributedInfo": {"rank": 0, "world_size": 2},
        "traceEvents": events,
        "baseTimeNanoseconds": BASE_NS,
    }


TRACE = json.dumps(_trace()).encode()
OFFLINE = {"t.json": TRACE, "power.csv": POWER}


def traces() -> list[bytes]:
    """Return a trace, a short one, a bare list and one with the odd numbers of C++."""
    bare = json.dumps(_trace(1)["traceEvents"]).encode()
    odd = json.dumps(_trace(1)).replace("150000", "nan(ind)").replace('"gemm"', r'"C:\gemm"').encode()
    return [TRACE, json.dumps(_trace(1), indent=1).encode(), bare, odd]


def traces_gz() -> list[bytes]:
    """Return traces as they lie on disks."""
    return [gzip.compress(one, mtime=0) for one in traces()]


def offline() -> list[bytes]:
    """Return a trace with its power log, and with an idle log."""
    return [packed({"power.csv": POWER}), packed({"idle.csv": IDLE, "t.json": TRACE})]


def sidecars() -> list[bytes]:
    """Return a sidecar."""
    graphs = {"fx1": {"triton_0": [["fc", "forward", 2.0], ["act", "forward", 1.0]]}, "*": {"k#0": [["a", "other", 1]]}}
    return [json.dumps({"format": "torchwatt-inductor/1", "graphs": graphs}).encode()]


def exchanges() -> list[bytes]:
    """Return what a worker writes."""
    out = io.BytesIO()
    slots = [["fc", "forward", "decode"]]
    word = {"device": "gpu:0", "signatures": ["gemm"], "covered": [[0, 9]], "notes": [], "slots": slots}
    told = np.frombuffer(json.dumps({"activities": [word]}).encode(), dtype=np.uint8)
    columns = {f"0_{name}": np.arange(1) for name in ("slot", "start_ns", "end_ns", "stream", "signature")}
    np.savez(out, _words=told, **columns)
    return [out.getvalue()]


def power_logs() -> list[bytes]:
    """Return logs of nvidia-smi, of a script, and of all the programs that docs/power_logs.md names."""
    from tests.sensors.logs.power_log_variants import READ, REFUSED

    variants = [variant.bytes for variant in (*READ, *REFUSED)]
    return [
        *variants,
        POWER[:600],
        IDLE[:300],
        b"\xef\xbb\xbft_ns,gpu,power_mw,energy_j\r\n1,0,1000,1\r\n2000000,0,2000,2\r\n",
    ]


def calibrations() -> list[bytes]:
    """Return the file of calibrations."""
    kernel = {"window_s": 0.025}
    model = {"kernel": kernel, "period_s": 0.1, "rms_w": 1.0, "gain": 1.01, "offset_w": 2.0, "source": "calibrated"}
    sensors = {"GPU-1/590/nvml_power": model}
    return [json.dumps({"format": "torchwatt-calibrations", "version": 1, "sensors": sensors}).encode()]


@cache
def _recording() -> bytes:
    from tests.support.worlds import World
    from torchwatt.core.meter import Event, Unavailable
    from torchwatt.sensors.recordings import save_recording

    world = World([50.0, 90.0], [5.0, 7.0], steps=3)
    found = world.recording()
    values = {field.name: getattr(found, field.name) for field in fields(found)}
    values |= {
        "unavailable": (Unavailable("gpu", "none"),), "anchors": ((0, BASE_NS),),
        "events": (Event(5, "info", "CODE", "run", "text"),), "meta": {"host": "x"},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.jsonl"
        save_recording(type(found)(**values), path)
        return path.read_bytes()


def recordings() -> list[bytes]:
    """Return a recording."""
    return [_recording()]


def recordings_gz() -> list[bytes]:
    """Return a recording, gzipped."""
    return [gzip.compress(_recording(), mtime=0)]


MACHINE = {
    f"{RAPL}/name": b"package-0\n", f"{RAPL}/energy_uj": b"123456\n", f"{RAPL}/max_energy_range_uj": b"262143328850\n",
    f"{RAPL}/intel-rapl:0:0/name": b"dram\n", f"{RAPL}/intel-rapl:0:0/energy_uj": b"77\n",
    f"{RAPL}/intel-rapl:0:0/max_energy_range_uj": b"65712999613\n",
    "powercap/intel-rapl:1/name": b"package-0-die-1\n", "powercap/intel-rapl:1/energy_uj": b"123456\n",
    "perf/type": b"22\n", "perf/cpumask": b"0,8-9\n", "perf/events/energy-pkg": b"event=0x02\n",
    "perf/events/energy-pkg.scale": b"2.3283064365386962890625e-10\n",
    "cpuinfo": b"processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Gold 6126 CPU @ 2.60GHz\nphysical id\t: 0\n"
               b"flags\t\t: fpu hypervisor\n\n",
    "stat": b"cpu  10 20 30 40 50 60 70 80 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n",
}  # fmt: skip


def machines() -> list[bytes]:
    """Return files of a machine with RAPL."""
    return [packed({name: content}) for name, content in MACHINE.items()] + [packed(MACHINE)]


def factors() -> list[bytes]:
    """Return a file of factors, one with hours, and a history of Electricity Maps."""
    head = "kind,value,unit,source_name,lo,hi,accounting_method,source_url,device,data_year,is_estimated\n"
    rows = (
        "grid_gwp,50,g{CO2e}/kW.h,TSO,40,60,location,https://example.org,,2025,false\n"
        "pue,1.2,1,landlord,1.1,1.3,,,,,\n"
        "embodied_gwp,164,kg{CO2e},maker,150,180,,https://example.org/pcf,gpu,,\n"
        "lifetime,4,a,policy,3,6,,,gpu,,\nshare,0.5,1,scheduler,0.5,0.5,,,gpu,,\n"
    )
    hours = "kind,value,unit,source_name,temporal_resolution,valid_from,valid_to\n" + "".join(
        f"grid_gwp,{40 + i},g{{CO2e}}/kW.h,TSO,hour,2026-01-01T0{i}:00:00Z,2026-01-01T0{i + 1}:00:00Z\n"
        for i in range(3)
    )
    names = "Datetime (UTC),Country,Zone Name,Zone Id,Carbon Intensity gCO₂eq/kWh (direct),"
    history = names + "Carbon Intensity gCO₂eq/kWh (LCA),Data Source,Data Estimated,Data Estimation Method\n"
    history += "".join(f"2026-01-01 0{i}:00:00,France,France,FR,20,3{i}.5,rte,false,\n" for i in range(3))
    return [(head + rows).encode(), hours.encode(), history.encode()]


def answers() -> list[bytes]:
    """Return an answer of the API."""
    row = {"zone": "FR", "carbonIntensity": 53, "datetime": "2025-11-24T16:00:00.000Z", "isEstimated": False,
           "emissionFactorType": "lifecycle", "estimationMethod": None}  # fmt: skip
    return [json.dumps({"zone": "FR", "data": [row, row | {"datetime": "2025-11-24T17:00:00.000Z"}]}).encode()]


def bundles() -> list[bytes]:
    """Return the files of a good bundle, each alone, with a chain, a link and something missing."""
    from tests.fuzz.targets import _bundle_tables
    from torchwatt.audit.seal import statement

    tables = _bundle_tables()
    digest = "a" * 64
    words = ("manifest_sha256", "prev_chain_sha256", "chain_sha256")
    link = {"index": 0, "run_id": "x", "bundle": "audit"} | dict.fromkeys(words, "0" * 64)
    chain = json.dumps(link).encode() + b"\n"
    more = {
        "statement.json": statement({"run.csv": digest}, "x", None), "chain.jsonl": chain,
        "MANIFEST.sha256": f"{digest}  run.csv\n{digest}  ../../escape.csv\n".encode(),
        "sample.csv.gz": gzip.compress(b"run_id,device_id,t_ns,power_w,energy_j,provenance\n", mtime=0),
        "statement.json.sig": b"-----BEGIN SSH SIGNATURE-----\nU1NIU0lH\n-----END SSH SIGNATURE-----\n",
    }  # fmt: skip
    alone = [packed({name: content}) for name, content in (dict(tables) | more).items() if len(content) < 8000]
    hostile = [
        joined([("link", "event.csv", b"/etc/hostname"), ("gone", "window.csv", b"")]),
        joined([("gone", "statement.json", b""), ("link", "run.csv", b"run.csv")]),
    ]
    return [*alone, *hostile]


def chains() -> list[bytes]:
    """Return a chain of two links."""
    from torchwatt.audit.seal import FIRST_CHAIN_HASH, chain_hash

    one = chain_hash(FIRST_CHAIN_HASH, "a" * 64)
    two = chain_hash(one, "b" * 64)
    links = [
        {"index": 0, "run_id": "r0", "bundle": "audit", "manifest_sha256": "a" * 64,
         "prev_chain_sha256": FIRST_CHAIN_HASH, "chain_sha256": one},
        {"index": 1, "run_id": "r1", "bundle": "audit2", "manifest_sha256": "b" * 64, "prev_chain_sha256": one,
         "chain_sha256": two},
    ]  # fmt: skip
    return ["".join(json.dumps(link) + "\n" for link in links).encode()]


@cache
def _index() -> bytes:
    from torchwatt.audit.run_index import _COLUMNS

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "i.sqlite"
        database = sqlite3.connect(path)
        database.execute("PRAGMA page_size = 512")
        database.execute(f"CREATE TABLE run ({', '.join(_COLUMNS)})")
        database.execute("PRAGMA user_version = 1")
        database.commit()
        database.close()
        return path.read_bytes()


def stores() -> list[bytes]:
    """Return the index of an empty store."""
    return [_index()]


def formulas() -> list[bytes]:
    """Return formulas."""
    return [b"energy_j/3.6e6*pue*grid_gwp", b"-(a + 2)*(b_1 - 1e3)/units", b"usage + embodied"]


def names() -> list[bytes]:
    """Return names that a view must show as text."""
    from tests.fuzz.pages import HOSTILE

    return [name.encode("utf-8", "surrogateescape") for name in HOSTILE]


@cache
def journals() -> list[bytes]:
    """Return the frames of a short run's journal: all of them, and those before it ended."""
    import torch

    import torchwatt as tw
    from torchwatt.core.journal_format import Frame, FrameKind, decode_frames

    with tempfile.TemporaryDirectory() as temporary:
        folder, model = Path(temporary) / "journal", torch.nn.Linear(4, 4)
        with tw.profile(model, journal=folder, powercap_root=Path(temporary), baseline_s=0) as run:
            for _ in range(6):
                model(torch.ones(2, 4)).sum().backward()
                run.step()
                time.sleep(0.05)
        files = {name: (folder / f"{name}.journal").read_bytes() for name in ("work", "readings")}
    parts = [
        ("file", f"{name}/{int(frame.kind)}.{i}{'.json' if frame.payload[:1] == b'{' else ''}", frame.payload)
        for name, data in files.items()
        for i, frame in enumerate(decode_frames(data))
        if isinstance(frame, Frame)
    ]
    ends = tuple(f"work/{int(kind)}." for kind in (FrameKind.STOP, FrameKind.END))
    return [joined(parts), joined([part for part in parts if not part[1].startswith(ends)])]
