"""Hooks around every optimizer step, which mark the end of a step of the user's loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from torchwatt.tracing.devices.watch import Watch
from torchwatt.tracing.dynamo import is_dynamo_compiling
from torchwatt.tracing.log import Log
from torchwatt.tracing.quiet import Quiet
from torchwatt.tracing.registry import Registry
from torchwatt.tracing.rows import ASLEEP, FORWARD_TASK, FULL, LIGHT_TASK, OFF, OPTIMIZER_KEY
from torchwatt.tracing.signatures import Signatures
from torchwatt.tracing.wrappers import graph_task_id, sequence_nr

Hook = Callable[[Any, Any, Any], None]


class Host(Protocol):
    """The attributes of the hub that the hooks use."""

    local: threading.local
    quiet: Quiet
    registry: Registry
    signatures: Signatures
    clock_ns: Callable[[], int]
    manual_steps: bool
    devices: Watch | None

    def log(self) -> Log:
        """Return this thread's log."""

    def look_closer(self) -> None:
        """Request a full trace: new work begins."""

    def step_ended(self, log: Log, end_ns: int) -> None:
        """Handle the end of a step of this thread."""


def optimizer_hooks(host: Host) -> tuple[Hook, Hook]:  # noqa: C901 - two hooks that share their lookups
    """Return the hooks to run before and after each step of any optimizer.

    Each line counts: after a step's matrix products the caches are cold, and Python runs ten times slower.
    """
    compiling, clock, seq = is_dynamo_compiling, host.clock_ns, sequence_nr
    key_of, local, log_of = host.registry.by_id.get, host.local, host.log
    quiet, ident = host.quiet, threading.get_ident
    signatures = host.signatures

    def newcomer(optimizer: Any) -> int:
        host.look_closer()
        return host.registry.optimizer_key(optimizer)

    def begins(optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if compiling() or quiet.asleep == ident():
            return
        began = clock()
        log = log_of()
        if log.mode >= ASLEEP:
            return
        key = key_of(id(optimizer)) or newcomer(optimizer)
        if log.lead_optimizer is None or log.lead_optimizer < 0:  # negative: a compiled function
            log.lead_optimizer, log.stepless = key, False
        if log.mode == FULL:
            log.in_place.optimizer_begins()
        log.read_cpu(clock())
        log.opened[key] = start = clock()
        _log_own(log, began, start, log.mode)

    def ended(optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if compiling():
            return
        if quiet.steps < quiet.most and quiet.asleep == ident() and quiet.optimizer == id(optimizer):
            end = clock()
            quiet.called.append(id(optimizer))
            quiet.end_step(end, signatures, seq())
            return
        try:
            log = local.log
        except AttributeError:
            log = log_of()
        mode = log.mode
        if mode == OFF:
            return
        end = clock()
        log.settle()
        key = key_of(id(optimizer))
        if new := key is None:
            key = newcomer(optimizer)
        if mode != ASLEEP:
            _log_step(log, key, end, mode)
        quiet.note(optimizer, asleep=mode == ASLEEP)
        log.settle()
        log.ends.append((key, end))
        _take_lead(host, log, key, end, new=new)
        if key == log.lead_optimizer and not host.manual_steps:
            host.step_ended(log, end)
            if quiet.asleep == log.ident and host.devices is None:
                quiet.rest(id(optimizer), log.stride)
        elif mode != ASLEEP:
            _log_own(log, end, clock(), mode)

    return begins, ended


def _log_step(log: Log, key: int, end: int, mode: int) -> None:
    """Log an optimizer step; in some traced steps, measure torch's work after it."""
    start, number = log.opened.pop(key, None), sequence_nr()
    if start is not None and (mode == FULL or not log.inside):
        log.rows.append((OPTIMIZER_KEY, start, end, number, number, graph_task_id()))
    if mode == FULL:
        log.in_place.optimizer_ended()


def _log_own(log: Log, began: int, end: int, mode: int) -> None:
    """Log profiler work beside an optimizer step; inside an outermost call of an untraced step it is part of that."""
    if mode == FULL or not log.inside:
        log.add_own(began, end, sequence_nr(), FORWARD_TASK if mode == FULL else LIGHT_TASK)


def _take_lead(host: Host, log: Log, key: int, end: int, *, new: bool) -> None:
    """Make an optimizer the lead, whose steps end the loop's steps, if it stepped twice and the former lead did not.

    An optimizer without a key (its first step while only ends of steps are recorded) leads at once.
    """
    if key == log.lead_optimizer:
        return
    earlier, log.others[key] = log.others.get(key, 0), end
    if earlier > log.step_end or new:
        log.lead_optimizer = key
        if earlier > log.step_end and log.mode == ASLEEP and not host.manual_steps:
            host.step_ended(log, earlier)
