"""Record, during torch.compile, which modules each generated kernel stands for.

A custom pass reads the module stack of every node of the graph, which distinguishes the blocks of a loop (source lines
do not). Inductor's own provenance maps nodes to kernels. Neither is available when a compiled graph comes from the
cache, so the result is kept in a file by the graph's key, which the trace has as `## Call CompiledFxGraph <key> ##`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch._inductor import config
from torch._inductor.custom_graph_pass import CustomGraphPass

from torchwatt.core.errors import ConfigError
from torchwatt.core.terms import ROOT, UNATTRIBUTED
from torchwatt.disk.path_safety import read_user_path
from torchwatt.disk.private_files import replace_file
from torchwatt.kineto.trace_labels import MAX_SIDECAR_BYTES, SIDECAR_FORMAT

Owner = tuple[str, str]  # fqn, phase
ShareRows = list[tuple[str, str, float]]


class NodeOwners(CustomGraphPass):
    """Record the owner of each node of a graph before its kernels are made; the graph is unchanged."""

    def __init__(self) -> None:
        self.owners: dict[str, Owner] = {}

    def __call__(self, graph: torch.fx.Graph) -> None:
        """Read one graph; node names are unique within it."""
        self.owners = {node.name: owner for node in graph.nodes if (owner := owner_of(node.meta)) is not None}
        if any(phase == "backward" for _, phase in self.owners.values()):
            # Forward nodes in a backward graph are recomputed there, and count as backward.
            self.owners = {name: (fqn, "backward") for name, (fqn, _) in self.owners.items()}

    def uuid(self) -> Any:
        """Return the pass's id for the cache: it changes no graph, so graphs compiled with it are valid without it."""
        return hashlib.sha256(SIDECAR_FORMAT.encode()).digest()


def owner_of(meta: Mapping[str, Any]) -> Owner | None:
    """Return the innermost module of a node and its phase; None where it has no module stack."""
    for key, phase in (("nn_module_stack", "forward"), ("fwd_nn_module_stack", "backward")):
        stack = meta.get(key)
        if stack:
            path, _ = list(stack.values())[-1]
            return module_name(str(path)), phase
    return None


def module_name(path: str) -> str:
    """Return `blocks.0.fc` for the traced path `L['self']._modules['blocks']._modules['0'].fc`."""
    for opening in ("._modules['", "['"):
        path = path.replace(opening, ".")
    parts = [part for part in path.replace("']", "").replace("[", ".").replace("]", "").split(".") if part]
    while parts and parts[0] in {"L", "G", "self", "fn", "_orig_mod", "module"}:
        parts = parts[1:]
    return ".".join(parts) or ROOT


class ProvenanceRecorder:
    """Kernels and their modules by graph key, of all graphs compiled while it was active."""

    def __init__(self) -> None:
        self.graphs: dict[str, dict[str, ShareRows]] = {}
        self._pass = NodeOwners()
        self._unnamed: list[tuple[Any, dict[str, ShareRows]]] = []  # Inductor assigns a graph's key after compiling it

    def note(self, compiled: Any, kernels: Mapping[str, Sequence[str]]) -> None:
        """Record the modules of one compiled graph's kernels."""
        self.settle()
        if kernel_shares := shares(kernels, self._pass.owners):
            self._unnamed.append((compiled, kernel_shares))

    def settle(self) -> None:
        """Store recorded graphs under their keys, once assigned; traces cannot refer to graphs without a key."""
        for compiled, kernel_shares in self._unnamed:
            if key := getattr(compiled, "_fx_graph_cache_key", None):
                self.graphs[str(key)] = kernel_shares
        self._unnamed.clear()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the sidecar; graphs of an earlier file there are kept, since cached graphs are not compiled again.

        Raises:
            ConfigError: The file exists and is no sidecar.
        """
        self.settle()
        target = Path(path)
        before = _graphs_in(target) if target.exists() else {}
        text = json.dumps({"format": SIDECAR_FORMAT, "graphs": {**before, **self.graphs}}, sort_keys=True)
        replace_file(target, text.encode())
        return target


def _graphs_in(target: Path) -> dict[str, Any]:
    try:
        file = json.loads(read_user_path(target, MAX_SIDECAR_BYTES))
        graphs = file["graphs"] if file["format"] == SIDECAR_FORMAT else None
    except (ValueError, KeyError, TypeError, RecursionError, OSError):
        graphs = None
    if not isinstance(graphs, dict):
        raise ConfigError(f"{target} exists and is no sidecar of torchwatt: name another file")
    return graphs


def shares(kernels: Mapping[str, Sequence[str]], owners: Mapping[str, Owner]) -> dict[str, ShareRows]:
    """Weigh the modules of each kernel by the number of its nodes that belong to them.

    Nodes without a module count as (unattributed), so that other modules do not get their share. Inductor generates one
    kernel for equal layers and calls it for each: `kernel#n` is its n-th call, `kernel` all calls together.
    """
    counts: defaultdict[str, Counter[Owner]] = defaultdict(Counter)
    calls: Counter[str] = Counter()
    for handle, nodes in sorted(kernels.items(), key=lambda item: _number(item[0])):
        phases = Counter(owners[node][1] for node in nodes if node in owners)
        phase = phases.most_common(1)[0][0] if phases else "other"
        name = handle.rpartition(":")[0] or handle
        for key in (name, f"{name}#{calls[name]}"):
            counts[key].update(owners.get(node, (UNATTRIBUTED, phase)) for node in nodes)
        calls[name] += 1
    return {
        kernel: [(fqn, phase, float(n)) for (fqn, phase), n in sorted(owner_counts.items())]
        for kernel, owner_counts in counts.items()
        if any(fqn != UNATTRIBUTED for fqn, _ in owner_counts)
    }


def _number(handle: str) -> int:
    """Return the number of a call, as in `triton_poi_fused_add_0:12`: calls are numbered in execution order."""
    digits = handle.rpartition(":")[2]
    return int(digits) if digits.isdecimal() else 0


@contextlib.contextmanager
def recording() -> Iterator[ProvenanceRecorder]:
    """Record every graph that is compiled inside the block.

    Graphs from a cache are not compiled and not recorded: keep the file of the run that compiled them. The pass is part
    of a graph's key, so the traced run must record as well, into the same file.

    Raises:
        ConfigError: This torch has no provenance, or another post-grad pass is in use.
    """
    from torch._inductor import compile_fx, debug

    if not hasattr(config.trace, "provenance_tracking_level"):
        raise ConfigError(f"torch {torch.__version__} keeps no provenance of compiled kernels: 2.9 or later does")
    if config.post_grad_custom_post_pass is not None:
        raise ConfigError("another custom pass is set in torch._inductor.config.post_grad_custom_post_pass: unset it")
    recorder = ProvenanceRecorder()
    module: Any = compile_fx  # its functions are looked up by name at each call
    original = module.fx_codegen_and_compile

    def compile_and_note(*args: Any, **kwargs: Any) -> Any:
        recorder._pass.owners = {}
        compiled = original(*args, **kwargs)
        # The compiled graph has the same as text, but empty for backward graphs (torch 2.13).
        recorder.note(compiled, dict(debug._inductor_triton_kernel_to_post_grad_node_info))
        return compiled

    module.fx_codegen_and_compile = compile_and_note
    try:
        with config.patch({"trace.provenance_tracking_level": 1, "post_grad_custom_post_pass": recorder._pass}):
            yield recorder
    finally:
        module.fx_codegen_and_compile = original
        recorder.settle()
