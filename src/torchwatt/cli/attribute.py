"""`torchwatt attribute`: the layers of a recorded run, from its trace and its power log."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, Literal

from torchwatt.cli.outputs import Outputs, add_outputs
from torchwatt.core.errors import ConfigError

if TYPE_CHECKING:
    from torchwatt.core.activity import Activity
    from torchwatt.tracing.traces import Joined

TOP = 40


def add_parser(commands: Any) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser("attribute", help="which layers of a saved trace used the joules of a power log")
    parser.add_argument("--trace", action="append", required=True, metavar="FILE", help="torch.profiler's, one a rank")
    parser.add_argument("--power", metavar="CSV", help="power readings; without them there are times and no joules")
    parser.add_argument(
        "--device", action="append", default=[], metavar="CARD",
        help="the log's cards that are the trace's devices, by index, uuid or bus id, as CUDA_VISIBLE_DEVICES was: 3,1",
    )  # fmt: skip
    parser.add_argument("--zone", metavar="NAME", help="of the log's times without one: Europe/Paris; default UTC")
    parser.add_argument("--offset", metavar="S", help="seconds to add to the trace's times; `fit` searches for them")
    parser.add_argument("--sensor", default="auto", metavar="FAMILY", help="a100, h100, ada, volta, ...; default auto")
    parser.add_argument("--idle", metavar="CSV", help="power readings of the device at rest")
    parser.add_argument("--capture", action="append", default=[], metavar="FILE", help="trace of captured graphs")
    parser.add_argument("--sidecar", metavar="FILE", help="what the compiler fused, from torchwatt.tracing.inductor")
    add_outputs(parser, csv="--out", html=False)
    parser.add_argument("--all", action="store_true", help="every layer")


def attribute(asked: argparse.Namespace, out: IO[str] | None = None) -> int:
    """Print the report, or the time table where there is no power log.

    Raises:
        ConfigError: The arguments do not fit each other.
        TraceError: A trace cannot be read.
        SensorError: The power log cannot be read.
    """
    from torchwatt.core.plain_text import printable_lines
    from torchwatt.session.offline import Files, run_offline
    from torchwatt.views import to_text

    out = out or sys.stdout
    outputs = Outputs.asked_for(asked)
    if outputs.csv and not asked.power:
        raise ConfigError("--out writes joules: give --power CSV as well")
    files = Files(
        tuple(asked.trace),
        asked.power,
        tuple(asked.capture),
        asked.sidecar,
        _offset(asked.offset),
        asked.sensor,
        asked.idle,
        tuple(card.strip() for cards in asked.device for card in cards.split(",") if card.strip()),
        asked.zone,
    )
    found = run_offline(files)
    if found.report is not None:
        print(to_text(found.report), file=out)
        print(file=out)
    for joined in found.joined:
        for line in _lines(joined, times=found.report is None, everything=asked.all):
            print(printable_lines(line), file=out)
    for event in found.events:
        print(printable_lines(f"  {event.severity}: {event.message}"), file=out)
    if found.report is not None:
        for line in outputs.write(found.report):
            print(line, file=out)
    return 0


def _offset(text: str | None) -> float | Literal["fit"] | None:
    if text is None:
        return None
    if text == "fit":
        return "fit"
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"--offset {text}: give seconds, or fit") from error


def _lines(joined: Joined, *, times: bool, everything: bool) -> Iterator[str]:
    from torchwatt.tracing.traces import MEANING, OUTCOMES

    rank = f", rank {joined.rank}" if joined.rank is not None else ""
    yield f"{joined.source}{rank}: {joined.records} device records, {joined.total_kernel_ns / 1e6:.3f} ms of kernels"
    if times:
        for activity in joined.activities:
            yield from _times(activity, joined.busy_ns[activity.device] / 1e6, everything=everything)
    yield "\nKernel time (a sum of durations, not busy time):"
    for outcome in OUTCOMES:
        if joined.kernel_ns[outcome]:
            yield f"  {outcome:16} {joined.share(outcome):7.2%}  {MEANING[outcome]}"
    yield f"  {joined.named_share:.2%} of it has a module, a reserved row or a named range."
    for note in joined.notes:
        yield f"  {note}"
    if joined.lost:
        yield f"  {joined.lost} launches have no record in the trace"


def _times(activity: Activity, busy_ms: float, *, everything: bool) -> Iterator[str]:
    from torchwatt.tracing.traces.timetable import timetable

    yield f"\n{activity.device} was busy for {busy_ms:.3f} ms; records that ran together share the time equally"
    yield f"{'layer':60} {'phase':13} {'busy':>13} {'share':>7} {'records':>8}"
    rows = timetable(activity)
    for row in rows if everything else rows[:TOP]:
        own_ms = row.busy_s * 1e3
        share = own_ms / busy_ms if busy_ms else 0.0
        yield f"{_short(row.slot.fqn):60} {row.slot.phase:13} {own_ms:10.3f} ms {share:7.1%} {row.records:8}"
    if not everything and len(rows) > TOP:
        rest_ms = sum(row.busy_s for row in rows[TOP:]) * 1e3
        yield f"and {len(rows) - TOP} more rows with {rest_ms:.3f} ms; --all shows them"


def _short(fqn: str, width: int = 60) -> str:
    """Keep the end of a long path: it is what tells layers apart."""
    return fqn if len(fqn) <= width else "…" + fqn[-(width - 1) :]
