"""Finds all meters of this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torchwatt.core.meter import Unavailable
from torchwatt.sensors.load_model import modelled_source, process_source, read_cpu_info
from torchwatt.sensors.nvml import discover_nvml
from torchwatt.sensors.protocol import Discovery, merge_discoveries
from torchwatt.sensors.rapl import ROOT_VARIABLE, discover_perf, discover_rapl


def discover(
    *,
    powercap_root: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    nvml: bool = True,
    rapl: bool = True,
    perf: bool = True,
    modelled: bool = True,
    whole_machine: bool = False,
    family: int | None = None,
) -> Discovery:
    """Find all meters; never raises, and leaves no files or handles open.

    perf is used only if powercap has no readable package, the CPU model only if no package is measured, and the RAM
    model only if no DRAM is measured.

    Args:
        powercap_root: The powercap folder; by default TORCHWATT_POWERCAP_ROOT or /sys/class/powercap.
        environ: Environment to read instead of this process's (CUDA_VISIBLE_DEVICES, TORCHWATT_POWERCAP_ROOT).
        nvml: Look for NVIDIA GPUs.
        rapl: Look for powercap zones.
        perf: Look for perf power events.
        modelled: Fall back to models of CPU and RAM.
        whole_machine: Leave out what is known of this process only: its CPU time, and those models.
        family: Pid of the process whose GPU use, with that of its descendants, is ours; by default this process.
    """
    env = os.environ if environ is None else environ
    discoveries = [discover_nvml(env, pid=family)] if nvml else []
    gpus = any(discovery.sources for discovery in discoveries)
    cpu = _discover_cpu(powercap_root or env.get(ROOT_VARIABLE), rapl=rapl, perf=perf)
    kinds = {meter.domain.kind for meter in cpu.meters}
    discoveries.append(cpu)
    if not whole_machine:
        discoveries.append(Discovery((process_source(cuda=gpus),)))
    if modelled and not whole_machine:
        model = modelled_source(cpu="cpu" not in kinds, ram="dram" not in kinds)
        discoveries.append(Discovery((model,) if model else ()))
    return merge_discoveries(discoveries)


def _discover_cpu(root: str | os.PathLike[str] | None, *, rapl: bool, perf: bool) -> Discovery:
    model = read_cpu_info().model
    powercap = discover_rapl(root, model) if rapl else Discovery()
    if not perf or any(meter.domain.kind == "cpu" for meter in powercap.meters):
        return _report_missing_dram(powercap)
    second = discover_perf(model=model)
    if second.sources:
        return _report_missing_dram(second)
    return merge_discoveries([powercap, second])


def _report_missing_dram(discovery: Discovery) -> Discovery:
    """Add `dram` to the unavailable domains if CPU packages are metered but memory is not."""
    kinds = {meter.domain.kind for meter in discovery.meters} | {u.domain.split(":")[0] for u in discovery.unavailable}
    if not discovery.sources or "dram" in kinds:
        return discovery
    missing = Unavailable("dram", "this CPU has no DRAM energy counter (AMD and most desktop CPUs have none)")
    return merge_discoveries([discovery, Discovery((), (missing,))])
