"""The requests of one session, and the stages of each thread that are not part of a request yet."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torchwatt.core.requests import RequestBatch
from torchwatt.core.trace import ModelSize

MAX_STRETCHES = 20_000  # of a thread that are in no request; then neighbours of one stage are merged, and the oldest go
Stretch = tuple[str, int, int]


class _ThreadStages:
    """The open stages of one thread, and the stretches of time of the innermost one."""

    __slots__ = ("_since_ns", "open", "stretches")

    def __init__(self) -> None:
        self.open: list[str] = []
        self.stretches: list[Stretch] = []
        self._since_ns = 0

    def began(self, name: str, t_ns: int) -> None:
        self._close_stretch(t_ns)
        self.open.append(name)

    def ended(self, name: str, t_ns: int) -> None:
        if name not in self.open:
            return  # it began before the session
        self._close_stretch(t_ns)
        while self.open.pop() != name:
            pass

    def _close_stretch(self, t_ns: int) -> None:
        if self.open and t_ns > self._since_ns:
            name, since_ns = self.open[-1], self._since_ns
            if self.stretches and self.stretches[-1][0] == name and self.stretches[-1][2] == since_ns:
                since_ns = self.stretches.pop()[1]
            self.stretches.append((name, since_ns, t_ns))
            if len(self.stretches) > MAX_STRETCHES:
                self.stretches = merge_neighbours(self.stretches)[-MAX_STRETCHES // 2 :]
        self._since_ns = t_ns

    def take(self, start_ns: int, end_ns: int) -> tuple[Stretch, ...]:
        """Remove and return the stretches from `start_ns` on, and the part of an open stage up to `end_ns`."""
        self._close_stretch(end_ns)
        taken = [
            (name, max(begin, start_ns), end) for name, begin, end in self.stretches if end > start_ns
        ]  # fmt: skip
        self.stretches = [
            (name, begin, min(end, start_ns)) for name, begin, end in self.stretches if begin < start_ns
        ]  # fmt: skip
        return tuple(taken)


def merge_neighbours(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Merge stretches of one stage that follow each other, with the time between them."""
    merged: list[Stretch] = []
    for name, start_ns, end_ns in stretches:
        if merged and merged[-1][0] == name:
            start_ns = merged.pop()[1]  # noqa: PLW2901
        merged.append((name, start_ns, end_ns))
    return merged


@dataclass(frozen=True, slots=True)
class _PackedBatch:
    """A batch whose times are in arrays: 24 bytes a stretch and 8 a token, where tuples take 170."""

    batch: RequestBatch  # without stretches and times of tokens
    stages: tuple[str, ...]
    stretches: array[int]  # index of the stage, start and end of each
    token_ns: array[int]

    @classmethod
    def pack(cls, batch: RequestBatch) -> _PackedBatch:
        stages = tuple(dict.fromkeys(stage for stage, _, _ in batch.stretches))
        index = {stage: i for i, stage in enumerate(stages)}
        flat = [value for stage, start, end in batch.stretches for value in (index[stage], start, end)]
        return cls(replace(batch, stretches=(), token_ns=()), stages, array("q", flat), array("q", batch.token_ns))

    def unpack(self) -> RequestBatch:
        names = (self.stages[i] for i in self.stretches[::3])
        stretches = tuple(zip(names, self.stretches[1::3], self.stretches[2::3], strict=True))
        return replace(self.batch, stretches=stretches, token_ns=tuple(self.token_ns))


class RequestLog:
    """Collects the requests of one session; all methods are thread-safe.

    Args:
        clock_ns: The session's clock.
    """

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._threads: dict[int, _ThreadStages] = {}
        self._batches: list[_PackedBatch] = []
        self._ended_tokens = self._summed = 0  # of the first batches
        self._open_tokens: dict[int, int] = {}  # output tokens so far of each call in progress
        self._models: dict[ModelSize, None] = {}
        self._start_ns = 0

    def begin(self, start_ns: int) -> None:
        """Record the start of the session: earlier stretches are not part of it."""
        self._start_ns = start_ns

    def _of_thread(self) -> _ThreadStages:
        return self._threads.setdefault(threading.get_ident(), _ThreadStages())

    def stage_began(self, name: str, t_ns: int) -> None:
        """Record that this thread entered a stage."""
        with self._lock:
            self._of_thread().began(name, t_ns)

    def stage_ended(self, name: str, t_ns: int) -> None:
        """Record that this thread left a stage."""
        with self._lock:
            self._of_thread().ended(name, t_ns)

    def take_stretches(self, start_ns: int, end_ns: int, threads: Sequence[int] = ()) -> tuple[Stretch, ...]:
        """Remove and return the stretches of an interval, in time order.

        Args:
            start_ns: Start of the interval.
            end_ns: Its end.
            threads: Identifiers of the threads; without, the calling one.
        """
        with self._lock:
            stages = [self._threads[ident] for ident in threads if ident in self._threads]
            taken = [each.take(max(start_ns, self._start_ns), end_ns) for each in stages or [self._of_thread()]]
            return tuple(sorted((stretch for part in taken for stretch in part), key=lambda stretch: stretch[1:]))

    def count_live(self, call: int, output_tokens: int) -> None:
        """Record how many output tokens a call in progress has made, as far as known without reading tensors."""
        self._open_tokens[call] = output_tokens

    @property
    def live_output_tokens(self) -> int:
        """Output tokens so far, for live views; a call in progress counts its finished sequences with the others."""
        with self._lock:
            added = self._batches[self._summed :]
            ended = sum(n for packed in added for n in packed.batch.output_tokens if n is not None)
            self._ended_tokens, self._summed = self._ended_tokens + ended, len(self._batches)
            return self._ended_tokens + sum(self._open_tokens.values())

    def add(self, batch: RequestBatch, call: int = 0) -> None:
        """Record requests that ended, of a call if one is named; those from before the session are not part of it."""
        with self._lock:
            self._open_tokens.pop(call, None)
            if batch.start_ns >= self._start_ns:
                self._batches.append(_PackedBatch.pack(batch))

    def add_model(self, model: ModelSize) -> None:
        """Record the size of a model that generated tokens; models of one size count once."""
        self._models[model] = None

    @property
    def models(self) -> tuple[ModelSize, ...]:
        """Sizes of the models that generated tokens."""
        return tuple(self._models)

    def add_tokens(self, input_tokens: int, output_tokens: int, cached_tokens: int) -> None:
        """Record a request of the user's own loop, with the stages of this thread since its last request."""
        end_ns = self._clock_ns()
        stretches = self.take_stretches(self._start_ns, end_ns)
        start_ns = stretches[0][1] if stretches else end_ns
        self.add(RequestBatch((input_tokens,), (output_tokens,), start_ns, end_ns, stretches, cached_tokens))

    def batches(self, first: int = 0) -> tuple[RequestBatch, ...]:
        """Return the batches of requests that ended so far, from the `first` one on."""
        with self._lock:
            packed = self._batches[first:]
        return tuple(each.unpack() for each in packed)
