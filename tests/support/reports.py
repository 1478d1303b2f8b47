"""A made report that looks like a real one: two metered domains, one modelled, one that cannot be metered."""

from __future__ import annotations

from dataclasses import replace
from math import fsum, sin

import numpy as np

from torchwatt.attribution.accuracy_bands import add_bands
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.factor import Factor, Impact, with_factor_id
from torchwatt.core.ledger import Entry, Ledger
from torchwatt.core.meter import Channel, Event, Meter, SamplerStats, Series, Unavailable, series_from_readings
from torchwatt.core.report import PhaseInterval, Report, Step, Window
from torchwatt.core.terms import PHASES, TRAIN, VALIDATION, Domain
from torchwatt.core.trace import ModuleInfo
from torchwatt.views import LiveSums

GPU, CPU, RAM = Domain("gpu", 0), Domain("cpu", 0), Domain("ram")
RUN_ID = "0193f2c1-7a55-7c11-9d2e-3f1a5b6c7d8e"
START_NS = 5_000_000_000_000
DURATION_S = 24.0
STEPS = 40
UUID = "GPU-6b8a3f0e-1111-2222-3333-444455556666"

# name, class, parameters, share of forward time, share of backward time
LAYERS = (
    ("(root)", "TinyGPT", 0, 0.004, 0.002),
    ("embed", "Embedding", 6_553_600, 0.012, 0.03),
    ("blocks.0.norm1", "LayerNorm", 1024, 0.006, 0.009),
    ("blocks.0.attn", "Attention", 0, 0.031, 0.066),
    ("blocks.0.attn.qkv", "Linear", 787_968, 0.024, 0.049),
    ("blocks.0.attn.proj", "Linear", 262_656, 0.009, 0.018),
    ("blocks.0.mlp.fc1", "Linear", 1_050_624, 0.034, 0.071),
    ("blocks.0.mlp.act", "GELU", 0, 0.005, 0.007),
    ("blocks.0.mlp.fc2", "Linear", 1_049_088, 0.033, 0.069),
    ("blocks.1.norm1", "LayerNorm", 1024, 0.006, 0.009),
    ("blocks.1.attn", "Attention", 0, 0.03, 0.065),
    ("blocks.1.attn.qkv", "Linear", 787_968, 0.024, 0.05),
    ("blocks.1.attn.proj", "Linear", 262_656, 0.009, 0.018),
    ("blocks.1.mlp.fc1", "Linear", 1_050_624, 0.034, 0.07),
    ("blocks.1.mlp.act", "GELU", 0, 0.005, 0.007),
    ("blocks.1.mlp.fc2", "Linear", 1_049_088, 0.033, 0.068),
    ("head", "Linear", 6_553_600, 0.041, 0.083),
    ("frozen_probe", "Linear", 4096, 0.003, None),
)
RESERVED_SHARES = (
    ("(optimizer)", "optimizer", 0.052),
    ("(data)", "data", 0.021),
    ("(transfer)", "transfer", 0.008),
    ("(idle)", "other", 0.043),
    ("(unattributed)", "other", 0.011),
    ("(outside)", "other", 0.009),
)


def sample_report(**changes) -> Report:
    """Build the sample; `changes` replaces fields of the report."""
    curves = tuple(_curve(*a) for a in ((GPU, 236.0, "counter"), (CPU, 74.0, "counter"), (RAM, 9.4, "load_model")))
    report = Report(
        run_id=RUN_ID,
        name="train tiny GPT",
        status="complete",
        start_ns=START_NS,
        end_ns=START_NS + int(DURATION_S * 1e9),
        start_unix_ns=1_795_500_000_123_456_789,
        ledgers=add_bands((_ledger(curve) for curve in curves), _meters()),
        curves=curves,
        meters=_meters(),
        unavailable=(
            Unavailable("dram:0", "no dram zone in powercap", "a server CPU has one; nothing to install"),
            Unavailable("psys", "readable by root only", "sudo setfacl -m u:$USER:r /sys/class/powercap/*/energy_uj"),
        ),
        events=(
            Event(
                START_NS + 3_100_000_000,
                "warning",
                "SHARED_DEVICE",
                "gpu:0",
                "another process (pid 4711) used 3 % of gpu:0",
            ),
            Event(
                START_NS + 12_400_000_000, "info", "COUNTER_WRAP", "cpu:0", "the counter wrapped once and was unwrapped"
            ),
        ),
        steps=_steps(curves),
        windows=(
            Window(
                "warm up", START_NS, START_NS + 2_000_000_000, curves[0].between(START_NS, START_NS + 2_000_000_000)
            ),
        ),
        modules=tuple(ModuleInfo(n, c, p, 4 * p) for n, c, p, _, _ in LAYERS),
        units={"token": 1_310_720.0},
        sampler=SamplerStats("process", 0.31, 24.2, {"gpu:0/energy": 480}, {"gpu:0/energy": 2}),
        tracing_cost_s=0.19,
        traced_steps=9,
        timeline=_timeline(),
        gauges=_gauges(),
        software={"torchwatt": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "os": "Linux 6.8", "host": "node-17"},
    )
    return replace(_with_carbon(report), **changes)


HOUR_NS = 3_600_000_000_000


def another_report(number: int, **changes) -> Report:
    """Build the sample again under another id and some hours later: at the same time it would be a copy."""
    later = {"run_id": f"run-{number}", "start_unix_ns": sample_report().start_unix_ns + number * HOUR_NS}
    return sample_report(**{**later, **changes})


def bare_report(**changes) -> Report:
    """Build a report of a machine without any meter: nothing is known and nothing may be 0."""
    report = Report(
        run_id="bare", name="", status="complete", start_ns=0, end_ns=1_000_000_000, start_unix_ns=0,
        ledgers=(), curves=(), meters=(),
        unavailable=(Unavailable("gpu", "no NVIDIA driver"), Unavailable("cpu", "no powercap")),
        carbon_hint="No carbon: no grid was named. Give region=.",
    )  # fmt: skip
    return replace(report, **changes)


def live_sums(report: Report) -> LiveSums:
    """Return the joules of a report as a live view has them: by module and phase, added up over its domains."""
    entries = [entry for ledger in report.counted for entry in ledger.entries]
    names = tuple(dict.fromkeys(entry.fqn for entry in entries))
    energy_j = np.zeros((len(PHASES), len(names)))
    for entry in entries:
        energy_j[PHASES.index(entry.phase), names.index(entry.fqn)] += entry.energy_self_j
    kinds = {name: (m.class_name, m.params) for m in report.modules for name in (m.fqn, *m.aliases)}
    return LiveSums(names, energy_j, np.full(len(names), np.nan), kinds, "apportioned", 1.0)


def named_report(*names: str) -> Report:
    """Build a report whose layers have these names, 1 J forward and 2 J backward each."""
    entries = tuple(
        Entry(
            GPU,
            name,
            phase,
            energy_j,
            None,
            None,
            None,
            None,
            energy_j / (3.0 * len(names)),
            1,
            "time_share",
            "apportioned",
        )
        for name in names
        for phase, energy_j in (("forward", 1.0), ("backward", 2.0))
    )
    total_j = fsum(entry.energy_self_j for entry in entries)
    curve = EnergyCurve(GPU, np.array([0, 10**9]), np.array([0.0, total_j]), "counter", "measured")
    ledger = Ledger(GPU, total_j, entries, "counter", "measured", 1.0, 1.0)
    return bare_report(
        run_id="named", name=names[0] if names else "", ledgers=(ledger,), curves=(curve,), unavailable=(),
        modules=tuple(ModuleInfo(name, name) for name in names),
        events=tuple(Event(1, "warning", "NAME", name, name) for name in names),
    )  # fmt: skip


HOSTILE = (
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2",
    "@SUM(A1)",
    "'quoted",
    "a,b;c",
    'say "hi"',
    "line\nbreak\r\ttab",
    "back\\slash",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt;",
    "\x1b[31mred",
    "1e400",
    "NaN",
    "null",
    "＝fullwidth",
    "層.重み",
    "e\u0301\u202egpj.exe",
    " spaces ",
    "x" * 300,
)


def _curve(domain: Domain, mean_w: float, method: str) -> EnergyCurve:
    t_s = np.linspace(0.0, DURATION_S, 241)
    wave = np.array([1 + 0.25 * sin(3.1 * t) + 0.1 * sin(23 * t) for t in t_s[1:]])
    ramp = np.clip(t_s[1:] / 1.5, 0.35, 1.0) * np.clip((DURATION_S - t_s[1:]) / 1.0 + 0.4, 0.4, 1.0)
    power_w = mean_w * (wave * ramp if method == "counter" else np.ones(240))
    energy_j = np.concatenate(([0.0], np.cumsum(np.round(power_w, 3) * np.diff(t_s))))
    provenance = "measured" if method == "counter" else "modelled"
    cross_check_j = float(energy_j[-1]) * 1.013 if domain == GPU else None
    t_ns = START_NS + np.round(t_s * 1e9).astype(np.int64)
    return EnergyCurve(domain, t_ns, energy_j, method, provenance, 1.5, cross_check_j)


def _ledger(curve: EnergyCurve) -> Ledger:
    entries = (_entry(curve, "(unattributed)", "other", 1.0),) if curve.domain == RAM else _entries(curve)
    sentence = {
        GPU: "energy counter of the device; layers by power fitted to 38 readings",
        CPU: "energy counter of the package; layers by time share",
        RAM: "modelled from installed memory, 0.3 W per GB; not split into layers",
    }
    return Ledger(
        domain=curve.domain,
        energy_j=curve.total_j,
        entries=entries,
        method=curve.method,
        provenance=curve.provenance,
        known_s=DURATION_S if curve.domain != CPU else 23.6,
        window_s=DURATION_S,
        energy_u_j={GPU: 12.0, CPU: 6.5, RAM: 40.0}[curve.domain],
        energy_lo_j=curve.total_j * 0.97,
        energy_hi_j=curve.total_j * 1.03,
        static_w={GPU: 81.0, CPU: 31.0, RAM: None}[curve.domain],
        cross_check_j=curve.cross_check_j,
        sentence=f"{curve.domain}: {sentence[curve.domain]}.",
    )


def _entries(curve: EnergyCurve) -> tuple[Entry, ...]:
    weights = [(n, p, w) for n, _, _, *both in LAYERS for p, w in zip(("forward", "backward"), both, strict=True) if w]
    weights += list(RESERVED_SHARES)
    total = fsum(w for _, _, w in weights)
    first = [_entry(curve, n, p, w / total) for n, p, w in weights[:-1]]
    rest_j = curve.total_j - fsum(e.energy_self_j for e in first)
    last = replace(_entry(curve, *weights[-1][:2], weights[-1][2] / total), energy_self_j=rest_j)
    return (*first, last)


def _entry(curve: EnergyCurve, fqn: str, phase: str, share: float) -> Entry:
    energy_j, fitted = curve.total_j * share, curve.domain == GPU
    whole = curve.domain == RAM
    return Entry(
        domain=curve.domain,
        fqn=fqn,
        phase=phase,
        energy_self_j=energy_j,
        energy_self_lo_j=energy_j * 0.94,
        energy_self_hi_j=energy_j * 1.07,
        energy_static_j=energy_j * 0.34 if fitted else None,
        energy_dynamic_j=energy_j * 0.66 if fitted else None,
        time_self_s=DURATION_S * share,
        calls=0 if fqn.startswith("(") and fqn != "(root)" else STEPS,
        method="load_model" if whole else "fit" if fitted else "time_share",
        provenance="modelled" if whole else "apportioned",
        carried_share=0.0 if fqn.startswith("(") else 0.9,
    )


def _steps(curves: tuple[EnergyCurve, ...]) -> tuple[Step, ...]:
    width_ns = int(22.0e9 / STEPS)
    starts = [START_NS + 1_500_000_000 + i * width_ns for i in range(STEPS)]
    return tuple(
        Step(
            i,
            s,
            s + width_ns,
            {str(c.domain): c.between(s, s + width_ns) for c in curves},
            stage=VALIDATION if i % 5 == 4 else TRAIN,
        )
        for i, s in enumerate(starts)
    )


def _timeline() -> tuple[PhaseInterval, ...]:
    width_ns = int(22.0e9 / STEPS)
    parts = (("data", 0.1, "(data)"), ("forward", 0.3, "blocks.*.mlp.fc*"), ("backward", 0.6, "blocks.*.mlp.fc*"))
    timeline, t_ns = [PhaseInterval(START_NS, START_NS + 1_200_000_000, "compile", 0.97, "(compile)")], 0
    for step in range(STEPS):
        t_ns = START_NS + 1_500_000_000 + step * width_ns
        for phase, part, group in parts:
            timeline.append(PhaseInterval(t_ns, t_ns + int(part * width_ns), phase, 0.95, group))
            t_ns += int(part * width_ns)
    return tuple(timeline)


def _gauges() -> tuple[Series, ...]:
    """Return utilisation and temperature of the GPU, read once a second; none from 10 to 14 s."""
    seconds = [t for t in range(1, 24) if not 10 <= t < 14]
    channels = (
        Channel(GPU, "utilization", "gauge", "1", 0.01, 1_000_000_000, "nvml_utilization"),
        Channel(GPU, "temperature", "gauge", "Cel", 1.0, 1_000_000_000, "nvml_temperature"),
    )
    values = ([60 + (7 * t) % 38 for t in seconds], [41 + min(t, 18) for t in seconds])
    return tuple(
        series_from_readings(c, [(START_NS + t * 10**9, float(v)) for t, v in zip(seconds, column, strict=True)])
        for c, column in zip(channels, values, strict=True)
    )


def _meters() -> tuple[Meter, ...]:
    # Read so seldom that a run may hold no two readings: `rich_report` gives those of the GPU.
    def energy(domain: Domain, sensor: str, scale: float) -> Channel:
        return Channel(
            domain, "energy", "counter", "J", scale, 12_000_000_000, sensor, 2**32 if domain == CPU else None
        )

    gpu_facts = (("uuid", UUID), ("driver", "590.12"), ("power_limit_w", "700"))
    return (
        Meter(
            GPU,
            (energy(GPU, "nvml_energy_counter", 1e-3),),
            "measured",
            "device",
            "NVIDIA H200",
            "NVIDIA",
            (-0.05, 0.05),
            "Yang et al., SC'24",
            shared=True,
            facts=gpu_facts,
        ),
        Meter(
            CPU,
            (energy(CPU, "rapl", 1e-6),),
            "measured",
            "device",
            "Xeon Platinum 8480+",
            "Intel",
            (-0.05, 0.05),
            "Khan et al. 2018",
            notes=("package domain",),
        ),
        Meter(
            RAM,
            (Channel(RAM, "power", "power", "W", 1.0, 10**9, "tdp_model"),),
            "modelled",
            "device",
            "32 GB",
            "",
            (-0.5, 0.5),
            "declared by torchwatt",
        ),
    )


def _with_carbon(report: Report) -> Report:
    grid = Factor(
        "", "grid_gwp", 56.039, "g{CO2e}/kW.h", "sourced",
        "Our World in Data, from Ember", "FRA", 2023,
        "lifecycle", "CO2e", "production", "location", "https://ourworldindata.org", "codecarbon 3.3.2", "CC BY 4.0",
        coverage_note="yearly mean of the country's own generation, imports left out",
    )  # fmt: skip
    pue = with_factor_id(Factor("", "pue", 1.2, "1", "declared", "declared by the user"))
    grid = with_factor_id(grid)
    subjects = [("run", report.energy_j)] + [(f"device:{x.domain}", x.energy_j) for x in report.ledgers]
    impacts = tuple(
        Impact(subject, "gwp", "usage", energy_j / 3.6e6 * pue.value * grid.value, "g{CO2e}",
               "energy_j/3.6e6*pue*grid_gwp", (pue.factor_id, grid.factor_id), "derived",
               "declared")
        for subject, energy_j in subjects
    )  # fmt: skip
    return replace(report, factors=(pue, grid), impacts=impacts)
