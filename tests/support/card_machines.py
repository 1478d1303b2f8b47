"""Simulated machines with one kind of card, and the program that is metered on them."""

from __future__ import annotations

from typing import Self

from tests.support.nvml_simulator import PowerTrace, Scenario

H100, GRACE_HOPPER = "NVIDIA H100 80GB HBM3", "NVIDIA GH200 480GB"
# A GPU that works every other half second.
SQUARE = PowerTrace.steps((0.0, 100.0), (0.5, 400.0), repeat_s=1.0)


class CardMachine(Scenario):
    """A scenario whose GPUs are used by whoever reads them (the sampler is a part of the program), or by others."""

    def h100(self, power: PowerTrace | float, *, users: tuple[int | str, ...] = ("self",), **settings: object) -> Self:
        """Add an H100, or a card of another name with its sensors."""
        self.gpu("hopper", power, **{"name": H100, "noise_w": 1.0, **settings})
        for pid in users:
            self.process(pid)
        return self

    def superchip(
        self, power: PowerTrace | float, *, module: int = 0, users: tuple[int | str, ...] = ("self",)
    ) -> Self:
        """Add a GPU on a module, whose energy counter is its module's."""
        return self.h100(power, users=users, name=GRACE_HOPPER, module=module, counter="module")


PROGRAM = """
import json, math, tempfile, time
import torch
import torchwatt as tw
from torchwatt.audit import verify, write_bundle
from torchwatt.views import to_payload
net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
sgd = torch.optim.SGD(net.parameters(), lr=0.01)
with tw.profile(net, baseline_s={baseline_s}) as run:
    end = time.monotonic() + {seconds}
    while time.monotonic() < end:
        net(torch.randn(32, 64)).square().mean().backward(); sgd.step(); sgd.zero_grad()
        time.sleep(0.005)  # several such programs run at a time
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


def program(seconds: float, baseline_s: float = 0.2) -> str:
    """Return the code of a training on the CPU that reports what its run found."""
    return PROGRAM.format(seconds=seconds, baseline_s=baseline_s)
