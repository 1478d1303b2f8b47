"""Record the bounds of outermost calls without gradients (inference) at low cost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch

from torchwatt.tracing.log import Log
from torchwatt.tracing.quiet import Quiet
from torchwatt.tracing.registry import Registry
from torchwatt.tracing.rows import FAILED_SIZE, LIGHT_TASK, OFF
from torchwatt.tracing.signatures import NOTHING_COUNTED, UNKNOWN, Signatures

Wrapped = Callable[..., Any]


class Host(Protocol):
    """The attributes of the hub that are used here."""

    quiet: Quiet
    registry: Registry
    signatures: Signatures
    clock_ns: Callable[[], int]


def answering(
    host: Host, newcomer: Callable[[Any], int], sequence_nr: Callable[[], int], graph_task_id: Callable[[], int]
) -> tuple[Callable[[Log], bool], Callable[..., Any]]:
    """Return a function that decides whether an outermost call is recorded here, and one that records it.

    Such a call computes no gradients, or its thread never computed any. It counts as a step.

    Args:
        host: The session's hub.
        newcomer: Registers a module and returns its key.
        sequence_nr: Returns autograd's number of the next node.
        graph_task_id: Returns the id of the running backward call; below zero outside backward calls.
    """
    quiet, clock, signatures, called = host.quiet, host.clock_ns, host.signatures, host.quiet.called
    counted, key_of = signatures.counted, host.registry.by_id.get
    grad_enabled, ident = torch.is_grad_enabled, threading.get_ident

    def may(log: Log) -> bool:
        is_outside = log.mode < OFF and not (log.inside or log.calls_asleep)
        return is_outside and (log.stepless or not grad_enabled()) and graph_task_id() < 0

    def answer(call: Wrapped, log: Log, start_ns: int, module: Any, args: Any, kwargs: Any) -> Any:
        key = key_of(id(module)) or newcomer(module)
        before, number, alone, failed = len(called), sequence_nr(), quiet.alone, True
        log.answers -= 1
        log.answered += 1
        try:
            log.inside = True
            if alone:
                quiet.inside = ident()
            y = call(module, *args, **kwargs)
            failed = False
            return y
        finally:
            log.inside = False
            if alone:
                quiet.inside = 0
            ran = signature_of(before) if counted else NOTHING_COUNTED
            next_number = number + FAILED_SIZE if failed else sequence_nr()
            log.noted.append((key, start_ns, clock(), number, next_number, LIGHT_TASK - (UNKNOWN if failed else ran)))

    def signature_of(before: int) -> int:
        number = signatures.number(called[before:]) if quiet.alone else UNKNOWN
        del called[before:]
        return number

    return may, answer
