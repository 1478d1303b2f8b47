"""Interpret names in a trace: owner and phase; of compiled kernels by a sidecar of `torchwatt.offline.inductor`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np

from torchwatt.core.errors import TraceError
from torchwatt.core.intervals import NO_INDEX, nest_intervals
from torchwatt.core.meter import IntArray
from torchwatt.core.terms import (
    COMMUNICATION,
    DATA,
    OPTIMIZER,
    STAGE_PREFIX,
    TRANSFER,
    UNATTRIBUTED,
    Phase,
    Slot,
)
from torchwatt.core.terms import ORPHAN as ORPHANS
from torchwatt.core.trace import ModuleInfo
from torchwatt.disk.path_safety import read_user_path
from torchwatt.kineto.kineto_trace import MODULE, KinetoTrace

MODULE_PREFIX = "nn.Module: "
OWN_PREFIXES = ("torchwatt::", "tw::")
STEP_PREFIX = "ProfilerStep#"
NODE_PREFIX = "autograd::engine::evaluate_function: "
COMPILED = re.compile(r"## Call CompiledFxGraph (\w+) ##")

ORPHAN_SLOT = Slot(ORPHANS, "other")  # launched before the trace began
UNATTRIBUTED_SLOT = Slot(UNATTRIBUTED, "other")
TRANSFER_SLOT = Slot(TRANSFER, "transfer")
COMMUNICATION_SLOT = Slot(COMMUNICATION, "communication")

# torch.optim, torch.utils.data and FSDP name their own ranges. Zeroing gradients is the optimizer's work.
_RESERVED: tuple[tuple[str, Slot], ...] = (
    ("Optimizer.", Slot(OPTIMIZER, "optimizer")),
    ("enumerate(DataLoader)", Slot(DATA, "data")),
    ("FSDP::", COMMUNICATION_SLOT),
    ("FullyShardedDataParallel._", COMMUNICATION_SLOT),
)
# NCCL and RCCL (which kept the name), MSCCL, NVSHMEM; the own all-reduce of vLLM, SGLang and AITER.
_COLLECTIVE = re.compile(
    r"^(?:void )?(?:nccl|rccl|msccl|nvshmem)|ncclDev|ncclKernel"
    r"|cross_device_reduce|allreduce_fusion|all_?reduce_(?:one|two)"
)
_HOST_COPY = re.compile(r"HtoD|DtoH|HostToDevice|DeviceToHost|Host -> Device|Device -> Host")
_NO_SCOPE = ("nccl:", "CUDAGraphNode.", "PyTorch Profiler", "[memory]")
_BACKWARD = re.compile(r"Backward\d*$|^torch::autograd::")
_CALL = re.compile(r"_\d+$")

SIDECAR_FORMAT = "torchwatt-inductor/1"
ANY_GRAPH = "*"
MAX_SIDECAR_BYTES = 1 << 26
_HEAVIEST = 1e100  # weights are counts of nodes; their sum must be finite
Shares = tuple[tuple[Slot, float], ...]  # weights are above 0 and add up to 1


def is_reserved(name: str) -> bool:
    """Return whether torch gives this name to a range, whatever its category."""
    return name.startswith(("Optimizer.", "enumerate(DataLoader)", STEP_PREFIX))


def reserved_slot(name: str) -> Slot | None:
    """Return the slot of an optimizer's, a data loader's or FSDP's range; None for other names."""
    return next((slot for prefix, slot in _RESERVED if name.startswith(prefix)), None)


def is_own(name: str) -> bool:
    """Return whether the name has torchwatt's prefix."""
    return name.startswith(OWN_PREFIXES)


def own_slot(name: str) -> Slot:
    """Return the slot of `torchwatt::<fqn>`, with `::<phase>` if given, else forward."""
    label = name.split("::", 1)[1]
    fqn, _, phase = label.rpartition("::")
    if fqn and phase in get_args(Phase):
        return Slot(fqn, phase)  # type: ignore[arg-type]  # just looked up
    return Slot(label, "forward")


def is_scope(name: str) -> bool:
    """Return whether a user's annotation is worth a row: profiler steps and single collectives are not."""
    return not name.startswith((STEP_PREFIX, *_NO_SCOPE)) and COMPILED.match(name) is None


def scope_name(name: str) -> str:
    """Return an annotation without the decoration that some libraries put around it."""
    return name.strip("# ") or name


def annotation_label(name: str) -> str:
    """Return the name that the user gave an annotation, a stage or a named range."""
    return name.removeprefix(STAGE_PREFIX) if name.startswith(STAGE_PREFIX) else scope_name(name)


def stage_name(name: str, patterns: Sequence[str] = ()) -> str | None:
    """Return the stage that an annotation names, by the patterns or as one of `torchwatt.stage`; None for others.

    Args:
        name: Of the annotation.
        patterns: Names or patterns (`prefill`, `decode_*`) of annotations that are stages of their own name, or
            `NAME=PATTERN`, where NAME is the stage.
    """
    label = annotation_label(name)
    for text in patterns:
        stage, is_renamed, pattern = text.partition("=")
        if label == text or fnmatchcase(label, text):
            return label
        if is_renamed and (label == pattern or fnmatchcase(label, pattern)):
            return stage
    return label if name.startswith(STAGE_PREFIX) else None


def is_collective(name: str) -> bool:
    """Return whether a kernel moves data between devices."""
    return _COLLECTIVE.search(name) is not None


def is_host_copy(name: str) -> bool:
    """Return whether a copy crosses the bus between host and device."""
    return _HOST_COPY.search(name) is not None


def class_name(module: str) -> str:
    """Return the class of a name such as `Conv2d_7`."""
    return _CALL.sub("", module)


def node_name(name: str) -> str:
    """Return the autograd node of an evaluate_function range."""
    return name.removeprefix(NODE_PREFIX)


def is_backward_op(name: str) -> bool:
    """Return whether an operator is an autograd node by its name, which is all that old traces have."""
    return _BACKWARD.search(name) is not None


def module_paths(trace: KinetoTrace) -> dict[int, str]:
    """Return for each name code of a module its path, such as `ResNet_0.Sequential_1.Conv2d_7`.

    A module with several callers keeps the path of its deepest call, the first of equals: a call without its callers
    (the trace began inside, a checkpoint repeats it in backward) has a shorter path.
    """
    ranges = trace.ranges
    calls = np.flatnonzero(ranges.kind == MODULE)
    if not len(calls):
        return {}
    tree = nest_intervals(ranges.thread[calls], ranges.start_ns[calls], ranges.end_ns[calls])
    name, parent = ranges.name[calls], tree.parent
    order = np.lexsort((ranges.start_ns[calls], -depths(parent), name))
    names, deepest = np.unique(name[order], return_index=True)
    caller = {int(n): _caller(int(order[at]), name, parent) for n, at in zip(names, deepest, strict=True)}
    return {code: _path(code, caller, trace.names) for code in caller}


def depths(parent: IntArray) -> IntArray:
    """Return the number of intervals that enclose each."""
    depth = np.zeros(len(parent), dtype=np.int64)
    above = parent.copy()
    while True:
        nested = above != NO_INDEX
        if not nested.any():
            return depth
        depth += nested
        above = np.where(nested, parent[above], NO_INDEX)


def _caller(call: int, name: IntArray, parent: IntArray) -> int:
    """Return the name of the next enclosing call of another module."""
    up = int(parent[call])
    while up != NO_INDEX and name[up] == name[call]:
        up = int(parent[up])
    return int(name[up]) if up != NO_INDEX else NO_INDEX


def _path(code: int, caller: dict[int, int], names: tuple[str, ...]) -> str:
    parts: list[str] = []
    visited: set[int] = set()
    while code != NO_INDEX and code not in visited:  # two modules that call each other would loop forever
        visited.add(code)
        parts.append(names[code].removeprefix(MODULE_PREFIX).replace(".", "_"))
        code = caller[code]
    return ".".join(reversed(parts))


def module_infos(paths: dict[int, str]) -> tuple[ModuleInfo, ...]:
    """Return the modules as listed in reports."""
    return tuple(ModuleInfo(path, class_name(path.rpartition(".")[2])) for path in sorted(paths.values()))


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Shares by compiled graph (the key in `## Call CompiledFxGraph <key> ##`, or "*") and kernel name."""

    graphs: Mapping[str, Mapping[str, Shares]] = field(default_factory=dict)

    def shares(self, graph: str, kernel: str) -> Shares | None:
        """Return the shares of a kernel; it is looked up in its graph, then in "*"; None if unknown."""
        return self.graphs.get(graph, {}).get(kernel) or self.graphs.get(ANY_GRAPH, {}).get(kernel)


class _SidecarFile(msgspec.Struct):
    format: str
    graphs: dict[str, dict[str, list[tuple[str, str, float]]]]


def read_sidecar(path: str | os.PathLike[str]) -> Sidecar:
    """Read a sidecar file.

    Raises:
        TraceError: It cannot be read or is no sidecar.
    """
    try:
        text = read_user_path(Path(path), MAX_SIDECAR_BYTES)
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}") from error
    try:
        file = msgspec.json.decode(text, type=_SidecarFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TraceError(f"{path} is no sidecar of torchwatt.offline.inductor: {error}") from error
    if file.format != SIDECAR_FORMAT:
        raise TraceError(
            f"{path}: format {file.format!r} is not {SIDECAR_FORMAT!r}; record it again with this torchwatt"
        )
    graphs = {key: {k: normalise_shares(rows) for k, rows in kernels.items()} for key, kernels in file.graphs.items()}
    return Sidecar(graphs)


def normalise_shares(rows: list[tuple[str, str, float]]) -> Shares:
    """Return shares whose weights add up to 1, without rows of an unknown phase or an invalid weight."""
    good = [(Slot(fqn, phase), w) for fqn, phase, w in rows if phase in get_args(Phase) and 0 < w < _HEAVIEST]  # type: ignore[arg-type]
    total = sum(w for _, w in good)
    return tuple((slot, w / total) for slot, w in good)
