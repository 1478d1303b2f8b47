"""Record the own time of `torch.func`: forward in a functional call, backward after the gradients are computed.

`functional_call` swaps parameters around a module's call, and `grad` unwraps the results of the backward call: an
eighth of a step of 4 ms. Compiled code inlines these functions and guards them: they are wrapped only until something
is compiled. Functions with rules in Dynamo, such as `_autograd_grad`, are not wrapped: Dynamo caches them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

from torchwatt.tracing.dynamo import is_dynamo_compiling
from torchwatt.tracing.log import Log
from torchwatt.tracing.patches import Patches
from torchwatt.tracing.quiet import Quiet
from torchwatt.tracing.rows import AROUND_KEY, ASLEEP, BACKWARD_TASK, END, FORWARD_TASK
from torchwatt.tracing.wrappers import Wrapped, graph_task_id, sequence_nr


class Host(Protocol):
    """The attributes of the hub that the wrappers use."""

    quiet: Quiet
    clock_ns: Callable[[], int]

    def log(self) -> Log:
        """Return this thread's log."""


def wrap_functional(host: Host, patches: Patches) -> None:
    """Wrap the two functions, unless something was compiled before."""
    utils = sys.modules.get("torch._dynamo.utils")
    if utils is not None and any(utils.counters.values()):
        return
    patches.add_until_compiled("torch.nn.utils.stateless", "_functional_call", _forward(host))
    patches.add_until_compiled("torch._functorch.eager_transforms", "grad_and_value_impl", _backward(host))


def _seen_log(host: Host) -> Log | None:
    """Return the thread's log if it records outermost calls now, else None."""
    if is_dynamo_compiling() or host.quiet.asleep == threading.get_ident():
        return None
    log = host.log()
    return None if log.mode >= ASLEEP or log.inside or graph_task_id() >= 0 else log


def _forward(host: Host) -> Callable[[Wrapped], Wrapped]:
    def wrap(original: Wrapped) -> Wrapped:
        def _functional_call(*args: Any, **kwargs: Any) -> Any:
            log = _seen_log(host)
            if log is None:
                return original(*args, **kwargs)
            number, began = sequence_nr(), host.clock_ns()
            try:
                return original(*args, **kwargs)
            finally:
                log.rows.append((AROUND_KEY, began, host.clock_ns(), number, sequence_nr(), FORWARD_TASK))

        return _functional_call

    return wrap


def _backward(host: Host) -> Callable[[Wrapped], Wrapped]:
    def wrap(original: Wrapped) -> Wrapped:
        def grad_and_value_impl(*args: Any, **kwargs: Any) -> Any:
            log = _seen_log(host)
            if log is None:
                return original(*args, **kwargs)
            began = host.clock_ns()
            try:
                return original(*args, **kwargs)
            finally:
                backward_end_ns = log.backwards[-1].end_ns if log.backwards else 0
                if backward_end_ns > began:
                    number = sequence_nr()
                    since = max(backward_end_ns, log.rows[-1][END] if log.rows else 0)
                    log.rows.append((AROUND_KEY, since, host.clock_ns(), number, number, BACKWARD_TASK))

        return grad_and_value_impl

    return wrap
