"""Read which modules a compiled kernel stands for, as `torchwatt.tracing.inductor` wrote it at compile time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import msgspec

from torchwatt.core.errors import TraceError
from torchwatt.core.terms import Phase, Slot
from torchwatt.disk.path_safety import read_user_path

FORMAT = "torchwatt-inductor/1"
ANY_GRAPH = "*"
MAX_BYTES = 1 << 26
_HEAVIEST = 1e100  # weights are counts of nodes; their sum must be finite

Shares = tuple[tuple[Slot, float], ...]  # weights are above 0 and add up to 1


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
        text = read_user_path(Path(path), MAX_BYTES)
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}") from error
    try:
        file = msgspec.json.decode(text, type=_SidecarFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TraceError(f"{path} is no sidecar of torchwatt.tracing.inductor: {error}") from error
    if file.format != FORMAT:
        raise TraceError(f"{path}: format {file.format!r} is not {FORMAT!r}; record it again with this torchwatt")
    graphs = {key: {k: normalise_shares(rows) for k, rows in kernels.items()} for key, kernels in file.graphs.items()}
    return Sidecar(graphs)


def normalise_shares(rows: list[tuple[str, str, float]]) -> Shares:
    """Return shares whose weights add up to 1, without rows of an unknown phase or an invalid weight."""
    good = [(Slot(fqn, phase), w) for fqn, phase, w in rows if phase in get_args(Phase) and 0 < w < _HEAVIEST]  # type: ignore[arg-type]
    total = sum(w for _, w in good)
    return tuple((slot, w / total) for slot, w in good)
