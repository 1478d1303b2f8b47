"""JSON file with a rank's facts beside its bundle, written at the start and again at the end."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from math import isfinite
from pathlib import Path
from secrets import token_hex
from typing import Any, cast

from torchwatt.core.errors import BundleError
from torchwatt.core.job import HostShare, Look, Place, RankFacts
from torchwatt.core.terms import PHASES
from torchwatt.disk.path_safety import read_own
from torchwatt.disk.private import new_file

VERSION = 1
MOST_BYTES = 16 << 20
_LAUNCHERS = ("torchrun", "slurm", "environment", "torch.distributed")
_MOST = 1 << 62


def facts_bytes(facts: RankFacts) -> bytes:
    """Return the file's content."""
    return (json.dumps({"torchwatt_rank": VERSION, **asdict(facts)}, allow_nan=False) + "\n").encode()


def write_facts(path: Path, facts: RankFacts) -> None:
    """Write the file atomically.

    Raises:
        OSError: It cannot be written.
    """
    hidden = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        with new_file(hidden) as file:
            file.write(facts_bytes(facts))
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)


def read_facts(path: Path, root: Path | None = None) -> RankFacts:
    """Read a file; `root` is the folder that the user named, see `path_safety`.

    Raises:
        BundleError: It cannot be read or is not a facts file; the message names it.
    """
    try:
        return facts_of(read_own(path, MOST_BYTES, root), str(path))
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error


def facts_of(content: bytes, where: str) -> RankFacts:
    """Parse the content of a file.

    Raises:
        BundleError: It is not valid; the message contains `where`.
    """
    try:
        values = json.loads(content)
        if not isinstance(values, dict) or values.get("torchwatt_rank") != VERSION:
            raise BundleError(f"{where}: not written by this version of torchwatt")
        return _facts(values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise BundleError(f"{where}: not a rank's facts: {error!r}") from error


def _facts(values: dict[str, Any]) -> RankFacts:
    return RankFacts(
        place=_place(values["place"]),
        host=_text(values["host"]),
        run_id=_text(values["run_id"]),
        start_ns=_whole(values["start_ns"]),
        start_unix_ns=_whole(values["start_unix_ns"]),
        devices={_text(name): _text(value) for name, value in values["devices"].items()},
        numbers={_text(name): _whole(value) for name, value in values["numbers"].items()},
        own=tuple(_text(name) for name in values["own"]),
        shared=tuple(_text(name) for name in values["shared"]),
        cpu=_cpu(values["cpu"]),
        host_busy_s=None if values["host_busy_s"] is None else _amount(values["host_busy_s"]),
        host_shares=tuple(_share(share) for share in values["host_shares"]),
        clock=tuple(
            Look(_whole(offset["t_ns"]), _whole(offset["offset_ns"]), abs(_whole(offset["bound_ns"])))
            for offset in values["clock"]
        ),
        ended=values["ended"] is True,
    )


def _place(values: dict[str, Any]) -> Place:
    place = Place(
        rank=_whole(values["rank"]),
        world_size=_whole(values["world_size"]),
        local_rank=_whole(values["local_rank"]),
        local_world_size=_whole(values["local_world_size"]),
        node_rank=_whole(values["node_rank"]),
        job=_text(values["job"]),
        launcher=_word(values["launcher"], _LAUNCHERS),
    )
    if not 0 <= place.rank < place.world_size <= 1_000_000:
        raise ValueError(f"rank {place.rank} of {place.world_size}")
    return place


def _share(values: dict[str, Any]) -> HostShare:
    return HostShare(
        _text(values["fqn"]), _word(values["phase"], PHASES), _amount(values["cpu_s"]), _amount(values["time_s"]),
        None if values["calls"] is None else _whole(values["calls"]), min(_amount(values["carried_share"]), 1.0),
    )  # fmt: skip


def _cpu(pairs: list[Any]) -> tuple[tuple[int, float], ...]:
    points = tuple((_whole(t_ns), _amount(cpu_s)) for t_ns, cpu_s in pairs)
    if any(b[0] <= a[0] or b[1] < a[1] for a, b in pairwise(points)):
        raise ValueError("CPU time goes forward")
    return points


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _word(value: Any, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"{value!r} is none of {', '.join(allowed)}")
    return cast("Any", value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _MOST:
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _amount(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value < 0:
        raise TypeError(f"{value!r} is not an amount")
    return float(value)
