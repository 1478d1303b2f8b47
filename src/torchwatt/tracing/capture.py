"""Capture the inputs of a model's layers and run each layer alone, in a loop: a ground truth."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from torchwatt.core.errors import ConfigError
from torchwatt.core.terms import ROOT, Phase, Slot
from torchwatt.tracing.registry import walk

Precision = tuple[tuple[str, torch.dtype], ...]  # (kind of device, dtype it computes in)

_KINDS = ("cuda", "cpu")
_PLAIN = (bool, int, float, str, tuple)


@dataclass(slots=True, eq=False)
class Work:
    """A group of layers that do the same work: one of them, its input, and the names of all."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    training: bool
    precision: Precision
    fqns: list[str] = field(default_factory=list)

    def slots(self, phase: Phase) -> tuple[Slot, ...]:
        """Return the ledger rows that this work stands for."""
        return tuple(Slot(fqn, phase) for fqn in self.fqns)

    def loop(self, phase: Phase) -> Callable[[], None] | None:
        """Return a function that does the work once; None without backward work.

        It uses a copy of the layer, so that running means, the copy's random numbers and gradients leave the user's
        model unchanged.
        """
        module = copy.deepcopy(self.module).train(self.training)
        return _forward(module, self) if phase == "forward" else _backward(module, self)


def capture(model: nn.Module, call: Callable[[], Any]) -> tuple[Work, ...]:
    """Run `call` once and return the work of the model's leaf modules, equal layers grouped.

    Args:
        model: Its leaf modules (those without children) are captured at their first call with each kind of input.
        call: Runs the model once, such as `lambda: model(batch)`.

    Raises:
        ConfigError: No leaf module of the model was called.
    """
    workloads: dict[tuple[Any, ...], Work] = {}
    names: dict[nn.Module, str] = {}
    for _, plain, module in walk(model):
        if not module._modules:
            names.setdefault(module, plain or ROOT)

    def caught(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        precision = _precision()
        kind = (type(module), _settings(module), _shapes(module.state_dict()), _shapes((args, kwargs)), precision)
        work = workloads.get(kind)
        if work is None:
            work = workloads[kind] = Work(module, _copied(args), _copied(kwargs), module.training, precision)
        if names[module] not in work.fqns:
            work.fqns.append(names[module])

    handles = [m.register_forward_pre_hook(caught, with_kwargs=True) for m in names]
    try:
        with _same_random_numbers():
            call()
    finally:
        for handle in handles:
            handle.remove()
    if not workloads:
        raise ConfigError("replay: the call ran no layer of this model; give a function that calls it once")
    return tuple(workloads.values())


def _precision() -> Precision:
    """Return the kinds of devices in mixed precision, each with its dtype."""
    return tuple((kind, torch.get_autocast_dtype(kind)) for kind in _KINDS if torch.is_autocast_enabled(kind))


@contextmanager
def _in(precision: Precision) -> Iterator[None]:
    """Compute in the layer's precision; each call casts its weights once, as a step does."""
    with ExitStack() as stack:
        for kind, dtype in precision:
            stack.enter_context(torch.autocast(kind, dtype=dtype))
        yield


def _forward(module: nn.Module, work: Work) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad(), _in(work.precision):
            module(*work.args, **work.kwargs)

    return run


def _backward(module: nn.Module, work: Work) -> Callable[[], None] | None:
    """Return a function that runs one backward pass of the layer alone; its graph is built once and kept."""
    leaves: list[torch.Tensor] = []

    def fresh(value: torch.Tensor) -> torch.Tensor:
        if not value.is_floating_point():
            return value
        leaf = value.detach().requires_grad_()
        leaves.append(leaf)
        return leaf.clone()  # an in-place layer may write to the copy, not to a leaf

    with torch.enable_grad(), _in(work.precision):
        out = module(*_mapped(work.args, fresh), **_mapped(work.kwargs, fresh))
    outputs = [t for t in _tensors(out) if t.requires_grad]
    inputs = [t for t in (*leaves, *module.parameters()) if t.requires_grad]
    if not outputs or not inputs:
        return None
    seeds = [torch.ones_like(t) for t in outputs]

    def run() -> None:
        torch.autograd.grad(outputs, inputs, seeds, retain_graph=True, allow_unused=True)

    return run


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    # Without a list of devices torch counts GPUs by their driver, and fails where it cannot use them.
    with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_available() else ()):
        yield


def _copied(value: Any) -> Any:
    return _mapped(value, lambda t: t.detach().clone())


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Apply a function to every tensor of nested tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(v, change) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(_mapped(v, change) for v in value)
    if isinstance(value, dict):
        return {k: _mapped(v, change) for k, v in value.items()}
    return value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _settings(module: nn.Module) -> tuple[str, ...]:
    """Return further settings that determine a layer's work: stride, padding, dropout, training, ..."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN)}
    return (module.extra_repr(), *(f"{name}={value!r}" for name, value in sorted(plain.items())))


def _shapes(value: Any) -> tuple[Any, ...]:
    return tuple((tuple(t.shape), str(t.dtype), str(t.device)) for t in _tensors(value))
