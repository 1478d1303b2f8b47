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
from torchwatt.core.job import ClockOffset, HostShare, RankFacts, RankPlace
from torchwatt.core.terms import PHASES
from torchwatt.disk.path_safety import read_untrusted
from torchwatt.disk.private_files import create_file

FACTS_VERSION = 1
MAX_FACTS_BYTES = 16 << 20
_LAUNCHERS = ("torchrun", "slurm", "environment", "torch.distributed")
_MAX_INTEGER = 1 << 62


def encode_facts(facts: RankFacts) -> bytes:
    """Return the file's content."""
    return (json.dumps({"torchwatt_rank": FACTS_VERSION, **asdict(facts)}, allow_nan=False) + "\n").encode()


def write_facts(path: Path, facts: RankFacts) -> None:
    """Write the file atomically.

    Raises:
        OSError: It cannot be written.
    """
    hidden = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        with create_file(hidden) as file:
            file.write(encode_facts(facts))
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)


def read_facts(path: Path, root: Path | None = None) -> RankFacts:
    """Read a file; `root` is the folder that the user named, see `path_safety`.

    Raises:
        BundleError: It cannot be read or is not a facts file; the message names it.
    """
    try:
        return decode_facts(read_untrusted(path, MAX_FACTS_BYTES, root), str(path))
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error


def decode_facts(content: bytes, where: str) -> RankFacts:
    """Parse the content of a file.

    Raises:
        BundleError: It is not valid; the message contains `where`.
    """
    try:
        values = json.loads(content)
        if not isinstance(values, dict) or values.get("torchwatt_rank") != FACTS_VERSION:
            raise BundleError(f"{where}: not written by this version of torchwatt")
        return _parse_facts(values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise BundleError(f"{where}: not a rank's facts: {error!r}") from error


def _parse_facts(values: dict[str, Any]) -> RankFacts:
    return RankFacts(
        place=_parse_place(values["place"]),
        host=_check_text(values["host"]),
        run_id=_check_text(values["run_id"]),
        start_ns=_check_integer(values["start_ns"]),
        start_unix_ns=_check_integer(values["start_unix_ns"]),
        devices={_check_text(name): _check_text(value) for name, value in values["devices"].items()},
        numbers={_check_text(name): _check_integer(value) for name, value in values["numbers"].items()},
        own=tuple(_check_text(name) for name in values["own"]),
        shared=tuple(_check_text(name) for name in values["shared"]),
        cpu=_parse_cpu_points(values["cpu"]),
        host_busy_s=None if values["host_busy_s"] is None else _check_amount(values["host_busy_s"]),
        host_shares=tuple(_parse_share(share) for share in values["host_shares"]),
        clock=tuple(
            ClockOffset(
                _check_integer(offset["t_ns"]),
                _check_integer(offset["offset_ns"]),
                abs(_check_integer(offset["bound_ns"])),
            )
            for offset in values["clock"]
        ),
        ended=values["ended"] is True,
    )


def _parse_place(values: dict[str, Any]) -> RankPlace:
    place = RankPlace(
        rank=_check_integer(values["rank"]),
        world_size=_check_integer(values["world_size"]),
        local_rank=_check_integer(values["local_rank"]),
        local_world_size=_check_integer(values["local_world_size"]),
        node_rank=_check_integer(values["node_rank"]),
        job=_check_text(values["job"]),
        launcher=_check_word(values["launcher"], _LAUNCHERS),
    )
    if not 0 <= place.rank < place.world_size <= 1_000_000:
        raise ValueError(f"rank {place.rank} of {place.world_size}")
    return place


def _parse_share(values: dict[str, Any]) -> HostShare:
    return HostShare(
        _check_text(values["fqn"]), _check_word(values["phase"], PHASES), _check_amount(values["cpu_s"]),
        _check_amount(values["time_s"]), None if values["calls"] is None else _check_integer(values["calls"]),
        min(_check_amount(values["carried_share"]), 1.0), _check_text(values.get("stage", "")),
    )  # fmt: skip


def _parse_cpu_points(pairs: list[Any]) -> tuple[tuple[int, float], ...]:
    points = tuple((_check_integer(t_ns), _check_amount(cpu_s)) for t_ns, cpu_s in pairs)
    if any(b[0] <= a[0] or b[1] < a[1] for a, b in pairwise(points)):
        raise ValueError("CPU time goes forward")
    return points


def _check_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _check_word(value: Any, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"{value!r} is none of {', '.join(allowed)}")
    return cast("Any", value)


def _check_integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _MAX_INTEGER:
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _check_amount(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value < 0:
        raise TypeError(f"{value!r} is not an amount")
    return float(value)
