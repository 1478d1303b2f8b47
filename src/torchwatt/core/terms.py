"""The vocabulary: domains, phases, reserved names, provenance, methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Phase = Literal["forward", "backward", "optimizer", "data", "transfer", "communication", "compile", "other"]
Method = Literal["counter", "power_integral", "load_model", "fit", "time_share", "replay"]
Provenance = Literal["measured", "derived", "apportioned", "sourced", "modelled", "declared", "assumed"]

PHASES: tuple[Phase, ...] = get_args(Phase)
METHODS: tuple[Method, ...] = get_args(Method)
# From best known to least known; a result is never better known than its inputs.
PROVENANCES: tuple[Provenance, ...] = get_args(Provenance)

IDLE = "(idle)"  # nothing ran
UNATTRIBUTED = "(unattributed)"  # work that no module claims
OUTSIDE = "(outside)"  # before the first and after the last span
OPTIMIZER = "(optimizer)"
DATA = "(data)"
TRANSFER = "(transfer)"
COMMUNICATION = "(communication)"
ROOT = "(root)"  # what the model itself does outside its children
COMPILE = "(compile)"  # torch.compile: Dynamo, Inductor, Triton, autotuning, capture of CUDA graphs
PROFILER = "(profiler)"  # torchwatt's own work on the program's threads, only where it was done
OTHER_PROCESSES = "(other processes)"  # a device that only others are proven to have used
ORPHAN = "(orphan)"  # device work that was launched before the trace began
NO_RANK = "(no rank)"  # joules of a job's machine that none of its ranks used
RESERVED = (
    IDLE, UNATTRIBUTED, OUTSIDE, ORPHAN, OPTIMIZER, DATA, TRANSFER, COMMUNICATION, COMPILE, PROFILER, OTHER_PROCESSES,
    NO_RANK,
)  # fmt: skip
# What a step of the program's main loop did; empty: nothing is known of it.
TRAIN, VALIDATION, INFERENCE = "train", "validation", "inference"

# Gauges of a GPU: the power of the superchip that it is on, and who uses it (`core.users.DeviceUsers`); of a process:
# whether it, or a descendant, has CUDA's driver library loaded.
MODULE_POWER, USERS, CUDA_LIBRARY = "power_module", "users", "cuda_library"

# Events that say where a part of a meter's joules is unknown, or was taken from something else than its readings.
COVERAGE = "COVERAGE"
METER_LOSSES = frozenset({
    COVERAGE, "SAMPLE_GAP", "SENSOR_LOST", "SENSOR_MISSING", "SENSOR_ERROR", "COUNTER_RESET", "COUNTER_JUMP",
    "COUNTER_LOST", "COUNTER_UNSURE", "COUNTER_FROZEN", "COUNTER_LATE", "POWER_ABSURD", "CLOCK_STEP", "SAMPLER_LOST",
    "READINGS_LOST", "READINGS_LEFT_OUT", "LAYERS_END", "RECOVERED", "JOURNAL_STOPPED", "JOURNAL_DAMAGED",
})  # fmt: skip

# The sensor of a channel whose readings a driver took and dated itself, in a ring that is read now and then.
POWER_SAMPLES = "nvml_power_samples"


def weakest(*inputs: Provenance) -> Provenance:
    """Return the least known of several provenances."""
    return max(inputs, key=PROVENANCES.index)


@dataclass(frozen=True, slots=True, order=True)
class Domain:
    """What one meter covers: `gpu:0`, `cpu:0` a package, `dram:0`, `cpu` and `ram` modelled.

    In a job over several machines the machine is part of the name: `node1/gpu:0`.
    """

    kind: str
    index: int | None = None
    node: int | None = None

    def __str__(self) -> str:
        name = self.kind if self.index is None else f"{self.kind}:{self.index}"
        return name if self.node is None else f"node{self.node}/{name}"

    @classmethod
    def parse(cls, text: str) -> Domain:
        """Read back what `str` wrote."""
        node, _, name = text.rpartition("/")
        kind, _, index = name.partition(":")
        return cls(kind, int(index) if index else None, int(node.removeprefix("node")) if node else None)


def kind_of(device_id: str) -> str:
    """Return the kind in a domain's name, whatever else is in it."""
    return device_id.rpartition("/")[2].partition(":")[0]


@dataclass(frozen=True, slots=True)
class Slot:
    """What a joule can be booked to: a module (or a reserved name) in a phase."""

    fqn: str
    phase: Phase
