"""Requests of a language model: tokens, the stages of each request with their joules, and figures per token. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import fsum, isnan, nan

import numpy as np

from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.intervals import busy_ns
from torchwatt.core.ledger import sum_if_known
from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.core.terms import DECODE, PREFILL, REQUEST_STAGES
from torchwatt.core.units import NS_PER_S


@dataclass(frozen=True, slots=True)
class RequestBatch:
    """Requests that were processed together; a request is one sequence.

    Token counts have one entry per request, None where the count is unknown. `stretches` are intervals (stage,
    start_ns, end_ns), disjoint and in time order. `token_ns` are the times of every `token_stride`-th output token.
    """

    input_tokens: tuple[int | None, ...]
    output_tokens: tuple[int | None, ...]
    start_ns: int
    end_ns: int
    stretches: tuple[tuple[str, int, int], ...] = ()
    cached_tokens: int = 0  # of each request: prompt tokens that a cache of an earlier call contained
    drafted_tokens: int | None = None  # proposed by an assistant; None: no assistant
    accepted_tokens: int | None = None  # of these, those that the model accepted
    token_ns: tuple[int, ...] = ()
    token_stride: int = 1
    cache_bytes: int | None = None  # keys and values at the end of the call


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One stage of one request.

    Token counts are the whole request's. `time_s` is wall time, `energy_j` the request's part of the joules of this
    stage: those of a moment are divided equally among the batches that ran, and those of a batch among its requests.
    """

    request: int
    batch: int
    stage: str
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int
    drafted_tokens: int | None
    accepted_tokens: int | None
    start_ns: int | None  # of the first stretch of the stage; None: the request had none
    end_ns: int | None  # of the last one
    time_s: float | None
    energy_j: float | None
    cache_bytes: int | None = None  # the request's part


@dataclass(frozen=True, slots=True)
class TokenPosition:
    """Output tokens at positions `first` to `last` of their requests (0 is the first one, made by prefill)."""

    first: int
    last: int
    tokens: int
    time_s: float
    energy_j: float | None

    @property
    def each_s(self) -> float:
        """Return the mean time of one token in seconds; requests that are processed together share it."""
        return self.time_s / self.tokens

    @property
    def each_j(self) -> float | None:
        """Return the mean joules of one token; None if they are unknown."""
        return None if self.energy_j is None else self.energy_j / self.tokens

    @property
    def label(self) -> str:
        """Return the positions as text: `0 (prefill)`, `16 to 31`."""
        if self.last == 0:
            return f"0 ({PREFILL})"
        return f"{self.first} to {self.last}" if self.last > self.first else str(self.first)


@dataclass(frozen=True, slots=True, eq=False)
class _SharedEnergy:
    """Cumulative joules of the counted domains, divided among the batches that ran at each moment."""

    edges_ns: IntArray
    shared_j: FloatArray
    curves: tuple[EnergyCurve, ...]

    def between(self, start_ns: IntArray, end_ns: IntArray) -> FloatArray:
        """Return the joules of intervals that begin and end at edges; NaN where a meter did not cover one."""
        at = np.searchsorted(self.edges_ns, np.stack((start_ns, end_ns)))
        parts_j = self.shared_j[at[1]] - self.shared_j[at[0]]
        for curve in self.curves:
            parts_j = np.where(np.isnan(curve.parts_j(start_ns, end_ns)) & (end_ns > start_ns), np.nan, parts_j)
        return parts_j if self.curves else np.full(len(start_ns), np.nan)


def _share_energy(batches: Sequence[RequestBatch], curves: Sequence[EnergyCurve]) -> _SharedEnergy:
    bounds = np.array(
        [(start, end) for batch in batches for _, start, end in batch.stretches], dtype=np.int64
    ).reshape(-1, 2)  # fmt: skip
    inner = [np.array(batch.token_ns, dtype=np.int64) for batch in batches]
    edges_ns = np.unique(np.concatenate((bounds.ravel(), *inner)))
    running = np.zeros(len(edges_ns), dtype=np.int64)
    np.add.at(running, np.searchsorted(edges_ns, bounds[:, 0]), 1)
    np.subtract.at(running, np.searchsorted(edges_ns, bounds[:, 1]), 1)
    running = np.cumsum(running)
    total_j = np.sum([curve.at(edges_ns) for curve in curves], axis=0) if curves else np.zeros(len(edges_ns))
    steps_j = np.diff(total_j) / np.maximum(running[:-1], 1)
    return _SharedEnergy(edges_ns, np.concatenate(([0.0], np.cumsum(steps_j)))[: len(edges_ns)], tuple(curves))


def token_rows(batches: Sequence[RequestBatch], curves: Sequence[EnergyCurve]) -> tuple[TokenRow, ...]:
    """Return the rows of all requests, numbered in the order of their batches.

    Args:
        batches: In the order in which they ended.
        curves: Of the domains that the run's total includes.
    """
    stretches = [(stage, start, end, i) for i, batch in enumerate(batches) for stage, start, end in batch.stretches]
    stretch_j: list[float] = []
    if stretches:
        bounds = np.array([(start, end) for _, start, end, _ in stretches], dtype=np.int64)
        stretch_j = _share_energy(batches, curves).between(bounds[:, 0], bounds[:, 1]).tolist()
    stages: list[dict[str, _StageSum]] = [{} for _ in batches]
    no_time = _StageSum() if curves else _StageSum(nan)
    for (stage, start_ns, end_ns, i), energy_j in zip(stretches, stretch_j, strict=True):
        stages[i].setdefault(stage, _StageSum()).add(start_ns, end_ns, energy_j)
    rows: list[TokenRow] = []
    request = 0
    for number, (batch, of_stage) in enumerate(zip(batches, stages, strict=True)):
        names = (*REQUEST_STAGES, *(name for name in of_stage if name not in REQUEST_STAGES))
        # A batch with stages spent no time in those that it did not enter; without any, nothing is known of them.
        absent = no_time if of_stage else None
        for input_tokens, output_tokens in zip(batch.input_tokens, batch.output_tokens, strict=True):
            rows += (
                _token_row(batch, number, request, name, of_stage.get(name, absent), input_tokens, output_tokens)
                for name in names
            )
            request += 1
    return tuple(rows)


class _StageSum:
    """Time and joules of one stage of a batch."""

    def __init__(self, *parts_j: float) -> None:
        self.bounds: list[tuple[int, int]] = []
        self.parts_j = list(parts_j)

    def add(self, start_ns: int, end_ns: int, energy_j: float) -> None:
        self.bounds.append((start_ns, end_ns))
        self.parts_j.append(energy_j)


def _token_row(  # noqa: PLR0917  the parts of a row
    batch: RequestBatch,
    number: int,
    request: int,
    stage: str,
    of_stage: _StageSum | None,
    input_tokens: int | None,
    output_tokens: int | None,
) -> TokenRow:
    n = len(batch.input_tokens)
    energy_j = None if of_stage is None else fsum(of_stage.parts_j) / n
    return TokenRow(
        request=request,
        batch=number,
        stage=stage,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_tokens=batch.cached_tokens,
        drafted_tokens=batch.drafted_tokens,
        accepted_tokens=batch.accepted_tokens,
        start_ns=of_stage.bounds[0][0] if of_stage is not None and of_stage.bounds else None,
        end_ns=of_stage.bounds[-1][1] if of_stage is not None and of_stage.bounds else None,
        time_s=None if of_stage is None else sum(end - start for start, end in of_stage.bounds) / NS_PER_S,
        energy_j=None if energy_j is None or isnan(energy_j) else energy_j,
        cache_bytes=None if batch.cache_bytes is None else batch.cache_bytes // n,
    )


def token_positions(batches: Sequence[RequestBatch], curves: Sequence[EnergyCurve]) -> tuple[TokenPosition, ...]:
    """Return time and joules of output tokens by their position: 0, 1 to 15, 16 to 31, 32 to 63, and so on.

    Time and joules are those from the token before to this one, or, for the first token, of everything before it.
    """
    timed = [batch for batch in batches if batch.token_ns and all(n is not None for n in batch.output_tokens)]
    if not timed:
        return ()
    shared = _share_energy(batches, curves)
    sums: dict[int, tuple[list[float], list[float], list[int]]] = {}
    for batch in timed:
        marks = np.array(batch.token_ns, dtype=np.int64)
        starts = np.concatenate(([batch.stretches[0][1] if batch.stretches else batch.start_ns], marks[:-1]))
        has_edges = np.isin(starts, shared.edges_ns) & np.isin(marks, shared.edges_ns)
        energy_j = np.where(has_edges, shared.between(starts, marks), np.nan)
        for k, (long_ns, part_j) in enumerate(zip((marks - starts).tolist(), energy_j.tolist(), strict=True)):
            first, last = (k - 1) * batch.token_stride + 1 if k else 0, k * batch.token_stride
            token_count = sum(_tokens_between(n or 0, first, last) for n in batch.output_tokens)
            times, parts, counts = sums.setdefault(_position_group(first), ([], [], []))
            times.append(long_ns / NS_PER_S)
            parts.append(part_j)
            counts.append(token_count)
    return tuple(
        TokenPosition(
            *_group_bounds(group), sum(counts), fsum(times), None if any(map(isnan, parts)) else fsum(parts)
        )
        for group, (times, parts, counts) in sorted(sums.items())
        if sum(counts)
    )  # fmt: skip


FIRST_GROUP = 16  # positions before which there are two groups: 0, and the others; later groups double


def _position_group(position: int) -> int:
    return (position // FIRST_GROUP).bit_length() + 1 if position else 0


def _group_bounds(group: int) -> tuple[int, int]:
    if group < 2:
        return group, group * (FIRST_GROUP - 1)
    return FIRST_GROUP << (group - 2), (FIRST_GROUP << (group - 1)) - 1


def _tokens_between(count: int, first: int, last: int) -> int:
    """Return how many of a request's tokens, numbered from 0, lie from `first` to `last`."""
    return max(min(count, last + 1) - first, 0)


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of generation by the names and formulas of NVIDIA AIPerf 0.13; None where it is unknown."""

    name: str
    unit: str
    value: float | None


def select_rows(rows: Iterable[TokenRow], batches: range) -> tuple[TokenRow, ...]:
    """Return the rows of some batches."""
    return tuple(row for row in rows if row.batch in batches)


def generation_figures(rows: Sequence[TokenRow]) -> tuple[Figure, ...]:
    """Return the figures of requests; a figure is None where one of its inputs is unknown or its divisor is 0."""
    requests = list(_requests(rows))
    inputs = _total(request.input_tokens for request in requests)
    outputs = _total(request.output_tokens for request in requests)
    later = None if outputs is None else sum(max((request.output_tokens or 0) - 1, 0) for request in requests)
    total_j = _total_j(rows)
    by_stage = {stage: _total_j([row for row in rows if row.stage == stage]) for stage in REQUEST_STAGES}
    prefill_j, decode_j = by_stage[PREFILL], by_stage[DECODE]
    latency_s = _mean(request.latency_s for request in requests)
    busy_s = _busy_s(rows)
    all_tokens = None if inputs is None or outputs is None else inputs + outputs
    per_request_j = _ratio(total_j, len(requests))
    return (
        Figure("requests", "1", len(requests)),
        Figure("input_tokens", "1", inputs),
        Figure("output_tokens", "1", outputs),
        Figure("energy", "J", total_j),
        Figure("prefill_energy", "J", prefill_j),
        Figure("decode_energy", "J", decode_j),
        Figure("energy_per_output_token", "mJ", _ratio(total_j, outputs, 1e3)),
        Figure("energy_per_total_token", "mJ", _ratio(total_j, all_tokens, 1e3)),
        Figure("energy_per_request", "J", per_request_j),
        Figure("prefill_energy_per_input_token", "mJ", _ratio(prefill_j, inputs, 1e3)),
        Figure("decode_energy_per_output_token", "mJ", _ratio(decode_j, later, 1e3)),
        Figure("output_tokens_per_joule", "1/J", _ratio(outputs, total_j)),
        Figure("output_tps_per_watt", "1/J", _ratio(outputs, total_j)),
        Figure(
            "energy_delay_product", "J s",
            None if per_request_j is None or latency_s is None else per_request_j * latency_s,
        ),
        Figure("time_to_first_token", "ms", _scaled(_mean(request.first_token_s for request in requests), 1e3)),
        Figure("inter_token_latency", "ms", _scaled(_mean_of_known(r.inter_token_s for r in requests), 1e3)),
        Figure("output_token_throughput", "1/s", _ratio(outputs, busy_s)),
        Figure("cache_bytes", "By", _most(row.cache_bytes for row in rows)),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Request:
    """One request, from its rows."""

    input_tokens: int | None
    output_tokens: int | None
    first_token_s: float | None  # from its start to the end of its prefill
    bounds_ns: tuple[int, int] | None

    @property
    def latency_s(self) -> float | None:
        return None if self.bounds_ns is None else (self.bounds_ns[1] - self.bounds_ns[0]) / NS_PER_S

    @property
    def inter_token_s(self) -> float | None:
        """Return the mean time from a token to the next."""
        if self.first_token_s is None or self.latency_s is None or (self.output_tokens or 0) < 2:
            return None
        return (self.latency_s - self.first_token_s) / ((self.output_tokens or 0) - 1)


def _requests(rows: Sequence[TokenRow]) -> Iterator[_Request]:
    grouped: dict[int, list[TokenRow]] = {}
    for row in rows:
        grouped.setdefault(row.request, []).append(row)
    for parts in grouped.values():
        starts = [row.start_ns for row in parts if row.start_ns is not None]
        ends = [row.end_ns for row in parts if row.end_ns is not None]
        prefill_end = next((row.end_ns for row in parts if row.stage == PREFILL), None)
        start = min(starts, default=None)
        yield _Request(
            parts[0].input_tokens,
            parts[0].output_tokens,
            None if prefill_end is None or start is None else (prefill_end - start) / NS_PER_S,
            None if start is None else (start, max(ends)),
        )


def _busy_s(rows: Sequence[TokenRow]) -> float | None:
    """Return the time in which at least one request ran."""
    bounds = {(row.start_ns, row.end_ns) for row in rows if row.start_ns is not None and row.end_ns is not None}
    if not bounds:
        return None
    start_ns, end_ns = np.array(list(bounds), dtype=np.int64).T
    return busy_ns(start_ns, end_ns) / NS_PER_S


def _total(counts: Iterable[int | None]) -> int | None:
    values = list(counts)
    return None if None in values else sum(value for value in values if value is not None)


def _total_j(rows: Sequence[TokenRow]) -> float | None:
    return sum_if_known(row.energy_j for row in rows) if rows else None


def _ratio(over: float | None, under: float | None, scale: float = 1.0) -> float | None:
    return None if over is None or not under else over / under * scale


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def _mean(values: Iterable[float | None]) -> float | None:
    items = list(values)
    total = sum_if_known(items)
    return None if total is None or not items else total / len(items)


def _mean_of_known(values: Iterable[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return fsum(numbers) / len(numbers) if numbers else None


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def request_times_s(rows: Sequence[TokenRow]) -> tuple[float, float] | None:
    """Return the sum of the requests' latencies, and the time in which at least one ran; None if one is unknown."""
    bounds = [request.bounds_ns or (0, 0) for request in _requests(rows)]
    if not all(end for _, end in bounds):
        return None
    start_ns, end_ns = np.array(bounds, dtype=np.int64).T
    return int((end_ns - start_ns).sum()) / NS_PER_S, busy_ns(start_ns, end_ns) / NS_PER_S


def rows_by_part(rows: Sequence[TokenRow]) -> Mapping[str, tuple[TokenRow, ...]]:
    """Return the rows of all requests, of the first batch (the warm-up), and of the later ones (the steady state).

    The first call of a program allocates, tunes and compiles. With one batch there is no steady state.
    """
    last_batch = max((row.batch for row in rows), default=-1)
    parts = {"all": tuple(rows)}
    if last_batch > 0:
        parts |= {"warm_up": select_rows(rows, range(1)), "steady": select_rows(rows, range(1, last_batch + 1))}
    return parts


def figures_by_part(rows: Sequence[TokenRow]) -> Mapping[str, tuple[Figure, ...]]:
    """Return the figures of each part of the requests (`rows_by_part`)."""
    return {name: generation_figures(part) for name, part in rows_by_part(rows).items()}
