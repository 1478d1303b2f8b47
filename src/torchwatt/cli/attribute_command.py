"""`torchwatt attribute`: attributes a recorded run's joules to layers, from its trace and its power log."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, Literal

from torchwatt.cli.report_commands import ReportOutputs, add_output_options
from torchwatt.core.errors import ConfigError

if TYPE_CHECKING:
    from torchwatt.core.trace import Activity
    from torchwatt.kineto import JoinedTrace

MAX_ROWS = 40
MAX_STAGE_WIDTH = 24


def add_attribute_parser(commands: Any) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser("attribute", help="split the energy of a power log over the layers of a saved trace")
    parser.add_argument(
        "--trace", action="append", required=True, metavar="FILE", help="a trace saved by torch.profiler; one per rank"
    )
    parser.add_argument(
        "--power", metavar="CSV", help="a log of power readings; without it, times are printed instead of joules"
    )
    parser.add_argument(
        "--device", action="append", default=[], metavar="CARD",
        help="the log's cards in the order of the trace's devices, by index, uuid or bus id, like CUDA_VISIBLE_DEVICES",
    )  # fmt: skip
    parser.add_argument(
        "--zone",
        metavar="NAME",
        help="time zone of the log's times if they have none, such as Europe/Paris; default UTC",
    )
    parser.add_argument(
        "--offset", metavar="S", help="seconds to add to the trace's times; `fit` searches for the offset"
    )
    parser.add_argument(
        "--sensor",
        default="auto",
        metavar="FAMILY",
        help="family of the power sensor: a100, h100, ada, volta, ...; default auto",
    )
    parser.add_argument("--idle", metavar="CSV", help="a log of power readings of the idle device")
    parser.add_argument(
        "--capture", action="append", default=[], metavar="FILE", help="a trace in which CUDA graphs were captured"
    )
    parser.add_argument(
        "--sidecar", metavar="FILE", help="the file of fused kernels that torchwatt.offline.inductor wrote"
    )
    parser.add_argument(
        "--stage", action="append", default=[], metavar="NAME",
        help="a record_function range that is a stage: prefill, a pattern (decode_*), or NAME=PATTERN; "
        "those of torchwatt.stage always are",
    )  # fmt: skip
    add_output_options(parser, csv="--out", html=False)
    parser.add_argument("--all", action="store_true", help="print every layer")


def run_attribute(arguments: argparse.Namespace, out: IO[str] | None = None) -> int:
    """Print the report; without a power log, print the time of each layer.

    Raises:
        ConfigError: Trace, power log and options contradict each other.
        TraceError: A trace cannot be read.
        SensorError: The power log cannot be read.
    """
    from torchwatt.core.plain_text import escape_unprintable_lines
    from torchwatt.offline.trace_attribution import RecordedFiles, attribute_files
    from torchwatt.views import to_text

    out = out or sys.stdout
    outputs = ReportOutputs.asked_for(arguments)
    if outputs.csv and not arguments.power:
        raise ConfigError("--out writes joules, which need a power log: give --power CSV as well")
    files = RecordedFiles(
        tuple(arguments.trace),
        arguments.power,
        tuple(arguments.capture),
        arguments.sidecar,
        _parse_offset(arguments.offset),
        arguments.sensor,
        arguments.idle,
        tuple(card.strip() for cards in arguments.device for card in cards.split(",") if card.strip()),
        arguments.zone,
        tuple(arguments.stage),
    )
    result = attribute_files(files)
    if result.report is not None:
        print(to_text(result.report), file=out)
        print(file=out)
    for joined in result.joined:
        for line in _trace_lines(joined, times=result.report is None, everything=arguments.all):
            print(escape_unprintable_lines(line), file=out)
    for event in result.events:
        print(escape_unprintable_lines(f"  {event.severity}: {event.message}"), file=out)
    if result.report is not None:
        for line in outputs.write(result.report):
            print(line, file=out)
    return 0


def _parse_offset(text: str | None) -> float | Literal["fit"] | None:
    if text is None:
        return None
    if text == "fit":
        return "fit"
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"--offset {text}: give seconds, or fit") from error


def _trace_lines(joined: JoinedTrace, *, times: bool, everything: bool) -> Iterator[str]:
    from torchwatt.kineto import OUTCOME_MEANINGS, OUTCOMES

    rank = f", rank {joined.rank}" if joined.rank is not None else ""
    yield f"{joined.source}{rank}: {joined.records} device records, {joined.total_kernel_ns / 1e6:.3f} ms of kernels"
    if times:
        for activity in joined.activities:
            yield from _time_lines(activity, joined.busy_ns[activity.device] / 1e6, everything=everything)
    yield "\nKernel time (a sum of durations, not busy time):"
    for outcome in OUTCOMES:
        if joined.kernel_ns[outcome]:
            yield f"  {outcome:16} {joined.share(outcome):7.2%}  {OUTCOME_MEANINGS[outcome]}"
    yield f"  {joined.named_share:.2%} of it has a module, a reserved row or a named range."
    for note in joined.notes:
        yield f"  {note}"
    if joined.lost:
        yield f"  {joined.lost} kernel launches have no device record in the trace"


def _time_lines(activity: Activity, busy_ms: float, *, everything: bool) -> Iterator[str]:
    from torchwatt.kineto.joined_trace import busy_timetable

    yield f"\n{activity.device} was busy for {busy_ms:.3f} ms; concurrent records share the time equally"
    rows = busy_timetable(activity)
    width = max((len(row.slot.stage) for row in rows), default=0)
    width = min(max(width, len("stage")), MAX_STAGE_WIDTH) + 1 if width else 0  # no column without stages
    yield f"{'layer':60} {'stage' * bool(width):{width}}{'phase':13} {'busy':>13} {'share':>7} {'records':>8}"
    for row in rows if everything else rows[:MAX_ROWS]:
        own_ms = row.busy_s * 1e3
        share = own_ms / busy_ms if busy_ms else 0.0
        stage = f"{row.slot.stage[: max(width - 1, 0)]:{width}}"
        name = _shorten_fqn(row.slot.fqn)
        yield f"{name:60} {stage}{row.slot.phase:13} {own_ms:10.3f} ms {share:7.1%} {row.records:8}"
    if not everything and len(rows) > MAX_ROWS:
        rest_ms = sum(row.busy_s for row in rows[MAX_ROWS:]) * 1e3
        yield f"and {len(rows) - MAX_ROWS} more rows with {rest_ms:.3f} ms; --all shows them"


def _shorten_fqn(fqn: str, width: int = 60) -> str:
    """Shorten a long path from the left, because its end identifies the layer."""
    return fqn if len(fqn) <= width else "…" + fqn[-(width - 1) :]
