"""Scenarios of simulated machines, the program that is metered on them, and the true joules by a plain clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

OURS = "proc self 4g 90 C"  # whoever looks: the sampler is a part of the program
LOW_W, HIGH_W, HALF_S = 100.0, 400.0, 0.5


def square_w(t_s: float) -> float:
    """Return the watts of a GPU that works every other half second."""
    return HIGH_W if t_s % (2 * HALF_S) >= HALF_S else LOW_W


SQUARE = f"phase 0 period {2 * HALF_S}\nseg 0 {LOW_W}\nseg {HALF_S} {HIGH_W}"


def steady(watts: float) -> str:
    """Return the true power of a GPU that draws the same all the time."""
    return f"phase 0\nseg 0 {watts}"


def gpu(index: int, power: str, *lines: str, name: str = "NVIDIA H100 80GB HBM3") -> str:
    """Return one GPU of a scenario."""
    uuid = f"GPU-11111111-2222-3333-4444-{index:012d}"
    return "\n".join(("gpu hopper", f"name {name}", f"uuid {uuid}", "noise_w 1", *lines, power))


def superchip(index: int, power: str, *lines: str, module: int = 0, extra_w: float = 150.0) -> str:
    """Return a GPU whose energy counter is its module's."""
    own = (f"module {module}", f"module_extra_w {extra_w}", "energy_scope module")
    return gpu(index, power, *own, *lines, name="NVIDIA GH200 480GB")


def true_j(watts: Callable[[float], float], found: dict[str, Any], domain: str, pieces: int = 40_000) -> float:
    """Add up the true watts over the time of a domain's curve, piece by piece."""
    start_s, end_s = ((t_ns - found["epoch_ns"]) / 1e9 for t_ns in found["span_ns"][domain])
    width_s = (end_s - start_s) / pieces
    return sum(watts(start_s + (i + 0.5) * width_s) for i in range(pieces)) * width_s


PROGRAM = """
import json, math, tempfile, time
import torch
import torchwatt as tw
from torchwatt.audit import verify, write_bundle
from torchwatt.views import to_payload
net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
sgd = torch.optim.SGD(net.parameters(), lr=0.01)
with tw.profile(net) as run:
    end = time.monotonic() + {seconds}
    while time.monotonic() < end:
        net(torch.randn(32, 64)).square().mean().backward(); sgd.step(); sgd.zero_grad()
report = run.report
offset = report.start_unix_ns - report.start_ns
ledgers = {{str(x.domain): x for x in report.ledgers}}
folder = tempfile.mkdtemp() + "/bundle"
write_bundle(report, folder)
findings = verify(folder)
rows = run.layers
by_name = {{n: g.groupby("fqn").energy_self_j.sum() for n, g in rows.groupby("domain")}}
print(json.dumps({{
    "energy_j": {{n: x.energy_j for n, x in ledgers.items()}},
    "booked_j": {{n: math.fsum(e.energy_self_j for e in x.entries) for n, x in ledgers.items()}},
    "rows": {{n: sorted({{e.fqn for e in x.entries}}) for n, x in ledgers.items()}},
    "rows_j": {{n: {{fqn: float(j) for fqn, j in found.items()}} for n, found in by_name.items()}},
    "counted": sorted(n for n, x in ledgers.items() if x.counted),
    "part_of": {{n: x.part_of for n, x in ledgers.items()}},
    "method": {{n: x.method for n, x in ledgers.items()}},
    "sentence": {{n: x.sentence for n, x in ledgers.items()}},
    "band": {{str(m.domain): m.accuracy_rel for m in report.meters}},
    "span_ns": {{str(c.domain): [c.start_ns + offset, c.end_ns + offset] for c in report.curves}},
    "duration_s": report.duration_s,
    "total_j": report.energy_j,
    "counted_rows_j": float(rows[rows.counted].energy_self_j.sum()),
    "step_j": float(run.steps.energy_j.sum()),
    "codes": sorted({{e.code for e in report.events}}),
    "text": str(run),
    "html": run._repr_mimebundle_()["text/html"],
    "notes": to_payload(report)["notes"],
    "ok": findings.ok,
    "findings": [str(f) for f in findings.findings],
}}))
"""


def program(seconds: float) -> str:
    """Return the code of a training on the CPU that reports what its run found."""
    return PROGRAM.format(seconds=seconds)
