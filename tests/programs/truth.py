"""The clock and the counters that programs read themselves: what is true of a run, without a line of torchwatt's."""

from __future__ import annotations

import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from statistics import median
from time import thread_time
from typing import Any

import torch
from torch import Tensor, nn

EMPTY_PARTS = 201  # whose length is measured, about 1 ms
PHASES = ("forward", "backward", "optimizer", "data", "communication", "compile", "other")


class Parts:
    """Seconds of each phase, calls of each module and steps of each stage, as the program itself counts them.

    `start(phase)` ends the part before. The program is in `other` until it starts a part: making models and batches,
    losses outside modules, `zero_grad`, hand-written updates; what `start` and the clock take is `other` as well.
    `length` is how much longer than usual the program runs.

    The clock is that of the thread's CPU time, which the joules of a CPU follow: where other programs or threads take
    the core away, nothing is used. A program that waits for others of its own needs a clock that goes on meanwhile.
    """

    def __init__(self, length: float = 1.0, clock: Callable[[], float] = thread_time) -> None:
        self.length = length
        self.clock = clock
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.group_seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))  # group, phase
        self.groups: dict[str, tuple[str, ...]] = {}
        self.calls: Counter[str] = Counter()
        self.graded_calls: Counter[str] = Counter()  # those that a backward pass follows
        self.steps: Counter[str] = Counter()
        self.functions: set[str] = set()  # compiled as a whole: each is one row by its name
        self._phase = "other"
        self._since = self._called = self.clock()  # `_called`: where the latest `start` was called
        self._open: tuple[str, float] | None = None  # a group whose backward has begun
        self._ends_by_itself = False  # the open group ends at the last gradient of its weights
        self._empty_s = 0.0  # what the clock shows of a part in which nothing runs
        self._empty_s = self._measure_empty()

    def _measure_empty(self) -> float:
        lengths = []
        for _ in range(EMPTY_PARTS):
            before_s = self.seconds["forward"]
            self.start("forward")
            self.start("other")
            lengths.append(self.seconds["forward"] - before_s)
        self.seconds = dict.fromkeys(PHASES, 0.0)
        return median(lengths)

    def start(self, phase: str) -> None:
        """End the part before and start this one."""
        now = self.clock()
        self.seconds[self._phase] += now - self._since - self._empty_s
        self.seconds["other"] += self._empty_s
        self._end_backward(now)
        self.seconds["other"] += self._since - self._called
        self._phase, self._called = phase, now
        self._since = self.clock()

    def restart(self) -> None:
        """Leave out the seconds since the last `start`: before the run, and where a thread waits for others."""
        self._phase, self._since = "other", self.clock()
        self._called = self._since

    def fetched(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield batches, with the time that each took to come as `data`."""
        self.start("data")
        iterator = iter(batches)
        while True:
            self.start("data")
            batch = next(iterator, None)
            self.start("other")
            if batch is None:
                return
            yield batch

    def rounds(self, n: int) -> range:
        """Return the rounds of a loop that has `n` of them at the usual length."""
        return range(max(4, round(n * self.length)))

    def count(self, model: nn.Module, prefix: str = "") -> nn.Module:
        """Count the calls of a model and of all modules in it, in their own `forward`; return the model."""
        for name, module in model.named_modules():
            full = ".".join(part for part in (prefix, name) if part) or "(root)"
            self.calls[full] += 0
            module.forward = self._counting(full, forward_of(module))
        return model

    def count_both_ways(self, model: nn.Module, prefix: str = "") -> nn.Module:
        """Count as `count` does, and backward calls where a gradient comes to what a module returned: a tensor."""
        self.count(model, prefix)
        for name, module in model.named_modules():
            full = ".".join(part for part in (prefix, name) if part) or "(root)"
            module.forward = self._counting_gradients(full, forward_of(module))
        return model

    def _counting_gradients(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        graded = self.graded_calls

        @wraps(forward)
        def counted(*args: Any, **kwargs: Any) -> Any:
            y = forward(*args, **kwargs)
            graded[name] -= torch.is_grad_enabled()  # as `count` has it
            if y.requires_grad:
                y.register_hook(lambda _: graded.update([name]))
            return y

        return counted

    def time_calls(self, model: nn.Module, stage: Callable[..., str]) -> None:
        """Time each call of a model as forward, and count it as a step: for loops that a library writes.

        `stage` tells the stage of a call from its arguments, before it is made.
        """
        forward = forward_of(model)

        @wraps(forward)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.steps[stage(*args, **kwargs)] += 1
            self.start("forward")
            y = forward(*args, **kwargs)
            self.start("other")
            return y

        model.forward = timed

    def _counting(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        calls, graded, is_grad_enabled = self.calls, self.graded_calls, torch.is_grad_enabled

        @wraps(forward)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._phase != "backward":  # else it is computed again there
                calls[name] += 1
                graded[name] += is_grad_enabled()
            return forward(*args, **kwargs)

        return counted

    def time(self, group: str, modules: Mapping[str, nn.Module]) -> None:
        """Time modules that run one after the other: forward by the clock, backward between hooks on their tensors.

        The first argument and the result are tensors. Where the input needs no gradient, backward ends at the last
        gradient of the module's weights.
        """
        for module in modules.values():
            weights = tuple(each for each in module.parameters() if each.requires_grad)
            module.forward = self.timed(group, tuple(modules), forward_of(module), weights)

    def timed(
        self, group: str, names: tuple[str, ...], call: Callable[..., Any], weights: tuple[nn.Parameter, ...] = ()
    ) -> Callable[..., Any]:
        """Return a call, of a module or of its `forward`, that is timed as one of a group of modules."""
        self.groups[group] = names
        seconds, unhooked = self.group_seconds[group], list(weights)

        def timed(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._phase == "compile":
                return call(x, *args, **kwargs)
            if x.requires_grad:
                x = x.view_as(x)  # so that the hook is on this use of the tensor alone
                x.register_hook(lambda _: self._end_backward(self.clock()))
            elif torch.is_grad_enabled():
                while unhooked:
                    unhooked.pop().register_post_accumulate_grad_hook(lambda _: self._extend_backward())
            began = self.clock()
            y = call(x, *args, **kwargs)
            seconds["forward"] += self.clock() - began
            first = y[0] if isinstance(y, tuple) else y
            if first.requires_grad:
                first.register_hook(lambda _: self._begin_backward(group))
            return y

        return timed

    def _begin_backward(self, group: str) -> None:
        now = self.clock()
        self._end_backward(now)
        self._open, self._ends_by_itself = (group, now), False

    def _extend_backward(self) -> None:
        if self._open is not None:
            now = self.clock()
            group, since = self._open
            self.group_seconds[group]["backward"] += now - since
            self._open, self._ends_by_itself = (group, now), True

    def _end_backward(self, now: float) -> None:
        if self._open is not None and not self._ends_by_itself:
            group, since = self._open
            self.group_seconds[group]["backward"] += now - since
        self._open = None

    def add(self, other: Parts) -> None:
        """Add what another thread's parts counted."""
        for phase, seconds in other.seconds.items():
            self.seconds[phase] += seconds
        self.calls.update(other.calls)
        self.graded_calls.update(other.graded_calls)
        self.steps.update(other.steps)

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())


def forward_of(module: nn.Module) -> Callable[..., Any]:
    """Return the `forward` of a module without keeping it alive: it shall be gone when the program drops it."""
    if "forward" in vars(module):
        return vars(module)["forward"]
    forward, reference = type(module).forward, weakref.ref(module)
    return wraps(forward)(lambda *args, **kwargs: forward(reference(), *args, **kwargs))


@dataclass(frozen=True)
class Program:
    """A program: `make(parts)` returns its model or its models by name, and the function that runs it.

    A single model is handed to torchwatt; models by name are found by their variables, one named "" as the only one.
    """

    name: str
    make: Callable[[Parts], tuple[nn.Module | dict[str, nn.Module], Callable[[], None]]]
    heavy: bool = False  # only in `make test-all`
    counts: tuple[str, ...] = ("forward", "backward")  # the phases whose calls the program counts
    shares: tuple[str, ...] = PHASES  # the phases that the program can tell apart
    waits: bool = False  # for processes of its own, or asleep
    needs: str = ""  # a package of requirements-all.txt


PROGRAMS: dict[str, Program] = {}


def program(**options: Any) -> Callable[..., Any]:
    """Register a function as the program of its name; the options are the other fields of `Program`."""

    def register(make: Callable[..., Any]) -> Callable[..., Any]:
        PROGRAMS[make.__name__] = Program(make.__name__, make, **options)
        return make

    return register
