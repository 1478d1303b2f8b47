"""The vocabulary: domains, phases, reserved names, provenance, methods."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, get_args

Phase = Literal["forward", "backward", "optimizer", "data", "transfer", "communication", "compile", "other"]
Method = Literal["counter", "power_integral", "load_model", "fit", "time_share", "replay"]
Provenance = Literal["measured", "derived", "apportioned", "sourced", "modelled", "declared", "assumed"]

PHASES: tuple[Phase, ...] = get_args(Phase)
METHODS: tuple[Method, ...] = get_args(Method)
# From the strongest to the weakest; a result is never stronger than its inputs.
PROVENANCES: tuple[Provenance, ...] = get_args(Provenance)

IDLE = "(idle)"  # nothing ran
UNATTRIBUTED = "(unattributed)"  # work that belongs to no module
OUTSIDE = "(outside)"  # before the first and after the last span
OPTIMIZER = "(optimizer)"
DATA = "(data)"
TRANSFER = "(transfer)"
COMMUNICATION = "(communication)"
ROOT = "(root)"  # work of the model outside its children
COMPILE = "(compile)"  # torch.compile: Dynamo, Inductor, Triton, autotuning, capture of CUDA graphs
PROFILER = "(profiler)"  # torchwatt's work on the program's threads, without extrapolation
OTHER_PROCESSES = "(other processes)"  # use of a device by other processes only
ORPHAN = "(orphan)"  # device work that was launched before the trace began
NO_RANK = "(no rank)"  # energy of a job's machine that belongs to none of its ranks
RESERVED = (
    IDLE, UNATTRIBUTED, OUTSIDE, ORPHAN, OPTIMIZER, DATA, TRANSFER, COMMUNICATION, COMPILE, PROFILER, OTHER_PROCESSES,
    NO_RANK,
)  # fmt: skip
# Kinds of steps of the program's main loop; empty: unknown.
TRAIN, VALIDATION, INFERENCE = "train", "validation", "inference"
# Stages of a request. The first output token is made by the last prefill pass and belongs to `prefill`.
PREFILL, DECODE, ENCODE, DRAFT = "prefill", "decode", "encode", "draft"
REQUEST_STAGES = (PREFILL, DECODE)  # every request has a row of each

# Before the name of a stage in the trace of a user's own profiler.
STAGE_PREFIX = "stage: "

# Gauges of a GPU: the power of its superchip, and its users (`DeviceUsers`); of a process: whether it or a descendant
# has loaded CUDA's driver library.
MODULE_POWER, USERS, CUDA_LIBRARY = "power_module", "users", "cuda_library"
# Gauges of a device that views draw beside its power.
UTILIZATION, TEMPERATURE = "utilization", "temperature"
DRAWN_GAUGES = (UTILIZATION, TEMPERATURE)

# Events of meters with unknown energy in a part of the run, or with energy that is not from their readings.
COVERAGE = "COVERAGE"
METER_LOSSES = frozenset({
    COVERAGE, "SAMPLE_GAP", "SENSOR_LOST", "SENSOR_MISSING", "SENSOR_ERROR", "COUNTER_RESET", "COUNTER_JUMP",
    "COUNTER_LOST", "COUNTER_UNSURE", "COUNTER_FROZEN", "COUNTER_LATE", "POWER_ABSURD", "CLOCK_STEP", "SAMPLER_LOST",
    "SAMPLER_STOPPED", "READINGS_LOST", "READINGS_LEFT_OUT", "LAYERS_END", "RECOVERED", "JOURNAL_STOPPED",
    "JOURNAL_DAMAGED",
})  # fmt: skip

# The sensor of a channel whose readings the driver samples and stamps, in a ring buffer that is read periodically.
POWER_SAMPLES = "nvml_power_samples"


def weakest_provenance(*inputs: Provenance) -> Provenance:
    """Return the weakest of several provenances."""
    return max(inputs, key=PROVENANCES.index)


@dataclass(frozen=True, slots=True, order=True)
class Domain:
    """The part of a machine that one meter covers: `gpu:0`, `cpu:0` (a package), `dram:0`; modelled: `cpu`, `ram`.

    In a job over several machines the name includes the machine: `node1/gpu:0`.
    """

    kind: str
    index: int | None = None
    node: int | None = None

    def __str__(self) -> str:
        name = self.kind if self.index is None else f"{self.kind}:{self.index}"
        return name if self.node is None else f"node{self.node}/{name}"

    @classmethod
    def parse(cls, text: str) -> Domain:
        """Parse a name as `str` writes it."""
        node, _, name = text.rpartition("/")
        kind, _, index = name.partition(":")
        return cls(kind, int(index) if index else None, int(node.removeprefix("node")) if node else None)


def domain_kind(device_id: str) -> str:
    """Return the kind in a domain's name, without machine and index."""
    return device_id.rpartition("/")[2].partition(":")[0]


@dataclass(frozen=True, slots=True)
class Slot:
    """A module (or a reserved name) in a phase and a stage, to which energy is attributed.

    `stage` is what the program was doing, by a name that it or a library gave ("prefill"); empty: no name.
    """

    fqn: str
    phase: Phase
    stage: str = ""


def is_bare_stage(slot: Slot) -> bool:
    """Return whether spans of a slot are the time of a stage in which nothing else ran."""
    return slot.stage != "" and slot.fqn == UNATTRIBUTED and slot.phase == "other"


class DeviceUsers(IntEnum):
    """Users of a device at one instant; the values of the gauge `gpu:<n>/users`.

    `EMPTY`: the list is empty but may hide processes, as in a container. `HIDDEN`: the list has pids that do not exist
    in this PID namespace.
    """

    UNUSED = 0
    OTHERS = 1
    OURS = 2
    HIDDEN = 3
    EMPTY = 4
