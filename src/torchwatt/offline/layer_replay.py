"""Run layers alone in a loop, with the inputs that a model gave them, and matrix products: a ground truth."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from torchwatt.core.errors import ConfigError
from torchwatt.core.terms import ROOT, Phase, Slot
from torchwatt.core.trace import FlopCeiling
from torchwatt.tracing.module_registry import walk_modules

Precision = tuple[tuple[str, torch.dtype], ...]  # (kind of device, dtype it computes in)

_KINDS = ("cuda", "cpu")
_PLAIN_TYPES = (bool, int, float, str, tuple)


@dataclass(slots=True, eq=False)
class LayerWorkload:
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


def capture_workloads(model: nn.Module, call: Callable[[], Any]) -> tuple[LayerWorkload, ...]:
    """Run `call` once and return the work of the model's leaf modules, equal layers grouped.

    Args:
        model: Its leaf modules (those without children) are captured at their first call with each kind of input.
        call: Runs the model once, such as `lambda: model(batch)`.

    Raises:
        ConfigError: No leaf module of the model was called.
    """
    workloads: dict[tuple[Any, ...], LayerWorkload] = {}
    names: dict[nn.Module, str] = {}
    for _, plain, module in walk_modules(model):
        if not module._modules:
            names.setdefault(module, plain or ROOT)

    def caught(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        precision = _precision()
        kind = (type(module), _settings(module), _shapes(module.state_dict()), _shapes((args, kwargs)), precision)
        work = workloads.get(kind)
        if work is None:
            work = workloads[kind] = LayerWorkload(module, _copy(args), _copy(kwargs), module.training, precision)
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
def _autocast(precision: Precision) -> Iterator[None]:
    """Compute in the layer's precision; each call casts its weights once, as a step does."""
    with ExitStack() as stack:
        for kind, dtype in precision:
            stack.enter_context(torch.autocast(kind, dtype=dtype))
        yield


def _forward(module: nn.Module, work: LayerWorkload) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad(), _autocast(work.precision):
            module(*work.args, **work.kwargs)

    return run


def _backward(module: nn.Module, work: LayerWorkload) -> Callable[[], None] | None:
    """Return a function that runs one backward pass of the layer alone; its graph is built once and kept."""
    leaves: list[torch.Tensor] = []

    def fresh(value: torch.Tensor) -> torch.Tensor:
        if not value.is_floating_point():
            return value
        leaf = value.detach().requires_grad_()
        leaves.append(leaf)
        return leaf.clone()  # an in-place layer may write to the copy, not to a leaf

    with torch.enable_grad(), _autocast(work.precision):
        out = module(*_map_tensors(work.args, fresh), **_map_tensors(work.kwargs, fresh))
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


def _copy(value: Any) -> Any:
    return _map_tensors(value, lambda t: t.detach().clone())


def _map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Apply a function to every tensor of nested tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map_tensors(v, change) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(_map_tensors(v, change) for v in value)
    if isinstance(value, dict):
        return {k: _map_tensors(v, change) for k, v in value.items()}
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
    plain = {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN_TYPES)}
    return (module.extra_repr(), *(f"{name}={value!r}" for name, value in sorted(plain.items())))


def _shapes(value: Any) -> tuple[Any, ...]:
    return tuple((tuple(t.shape), str(t.dtype), str(t.device)) for t in _tensors(value))


# Large enough to fill any GPU, small enough to stop within a millisecond.
MATRIX_SIDE = 2048


def cuda_burner(index: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> Callable[[int], tuple[int, int]]:
    """Return a function that keeps one CUDA device busy for a time in ns and returns the load's (start_ns, end_ns).

    Raises:
        ConfigError: This torch sees no such device.
    """
    import torch

    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise ConfigError(f"calibrate: this torch sees no CUDA device {index}; install a CUDA build, see torch.org")
    device = torch.device("cuda", index)
    a = torch.randn(MATRIX_SIDE, MATRIX_SIDE, device=device, dtype=torch.float16)
    out = torch.empty_like(a)

    def burn(duration_ns: int) -> tuple[int, int]:
        torch.cuda.synchronize(device)
        start_ns = clock_ns()
        while clock_ns() - start_ns < duration_ns:
            torch.mm(a, a, out=out)
            torch.cuda.synchronize(device)  # after each product: the measured end is at most one product late
        return start_ns, clock_ns()

    burn(200_000_000)  # clocks up, libraries loaded
    return burn


PHASES: tuple[Phase, Phase] = ("forward", "backward")


def work_of(model: nn.Module, call: Callable[[], Any]) -> Mapping[Slot, tuple[float, float]]:
    """Return operations and bytes of one call of each leaf layer, forward and backward.

    Operations are counted by `torch.utils.flop_counter` (matrix products and convolutions; other operations count as
    zero). Bytes are those of all tensors that the layer's operators read and write, as if none were cached: the bytes
    of the roofline model (Williams, Waterman, Patterson, CACM 52(4), 2009).

    Args:
        model: Its leaf modules are counted.
        call: Runs the model once, such as `lambda: model(batch)`.

    Raises:
        ConfigError: The call ran no layer of the model.
    """
    work_by_slot: dict[Slot, tuple[float, float]] = {}
    for work in capture_workloads(model, call):
        for phase in PHASES:
            counted = _count(work, phase)
            if counted is not None:
                work_by_slot |= dict.fromkeys(work.slots(phase), counted)
    return work_by_slot


def _count(work: LayerWorkload, phase: Phase) -> tuple[float, float] | None:
    once = work.loop(phase)
    if once is None:
        return None
    moved = _ByteCounter()
    with FlopCounterMode(display=False) as operations, moved:
        once()
    return float(operations.get_total_flops()), float(moved.total)


class _ByteCounter(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Sum the bytes of the tensors that every operator reads and writes; views move none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            leaves = torch.utils._pytree.tree_leaves((args, kwargs, out))
            self.total += sum(t.numel() * t.element_size() for t in leaves if isinstance(t, torch.Tensor))
        return out


CEILING_WIDTHS = (512, 1024, 2048, 4096, 8192)
_CEILING_REPEATS = 3


def measure_flop_ceiling(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, *, seconds: float = 2.0
) -> FlopCeiling:
    """Measure the operations per second of a device in matrix products, for `run.flop_utilisation`.

    Square products of growing width are repeated, with as many threads as torch has, and the fastest counts. The
    numbers are random, from a generator of its own: a GPU draws less and clocks higher for zeros.

    Args:
        device: As in torch.
        dtype: Type of the matrices, such as `torch.bfloat16` for a run under autocast in it.
        seconds: Wider products are left out once this time is over.

    Raises:
        ConfigError: `seconds` is no positive number, or the device has no products of this type.
    """
    if not isfinite(seconds) or seconds <= 0:
        raise ConfigError(f"seconds={seconds!r}: must be positive, such as 2.0")
    end_s, best = time.perf_counter() + seconds, (0.0, 0)
    try:
        where = torch.device(device)
        for width in CEILING_WIDTHS:
            generator = torch.Generator(where).manual_seed(width)
            matrix = torch.rand((width, width), generator=generator, device=where).to(dtype)
            took_s = min(_product_s(matrix) for _ in range(1 + _CEILING_REPEATS))
            best = max(best, (2.0 * width**3 / took_s, width))
            # The next product takes eight times as long.
            if time.perf_counter() + 8 * (1 + _CEILING_REPEATS) * took_s > end_s:
                break
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"no matrix product of {dtype} could be measured on {device}: {reason}") from error
    threads = torch.get_num_threads() if where.type == "cpu" else 0
    if where.type != "cpu" and where.index is None:
        where = matrix.device
    return FlopCeiling(str(where), str(dtype).removeprefix("torch."), *best, threads)


def _product_s(matrix: Tensor) -> float:
    """Return the seconds of one product."""
    on_accelerator = matrix.device.type != "cpu"  # of any maker: `user_process.synchronize` waits for CUDA alone
    if on_accelerator:
        torch.accelerator.synchronize(matrix.device)
    began = time.perf_counter()
    torch.mm(matrix, matrix)
    if on_accelerator:
        torch.accelerator.synchronize(matrix.device)
    return time.perf_counter() - began
