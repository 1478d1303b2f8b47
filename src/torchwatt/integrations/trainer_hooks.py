"""Finds a callback's transformers Trainer and wraps its `train` and `log`.

The Trainer passes callbacks no reference to itself, has no hook for exceptions, and does not show changes that a
callback makes to the logs to callbacks before it. So the trainer is taken from the call stack, and two methods of that
instance are wrapped: `train`, to end the run on an exception, and `log`, to add joules to the same rows.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, MutableMapping
from types import FrameType
from typing import Any, Protocol


class HookedCallback(Protocol):
    """The callback that a trainer's wrapped methods notify."""

    def on_call(self) -> None:
        """Handle a call of `train`, which may restart its loop with smaller batches."""

    def on_failure(self, error: BaseException) -> None:
        """Handle an exception that leaves `train`; the caller re-raises it."""

    def add_metrics(self, logs: MutableMapping[str, Any]) -> None:
        """Add metrics to a row before it is logged."""


def calling_instance(kind: type) -> Any:
    """Return the `self` of the nearest calling frame that is an instance of `kind`, else None."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, kind):
            return owner
        frame = frame.f_back
    return None


def attach_callback(trainer: Any, host: HookedCallback) -> bool:
    """Wrap a trainer's `train` and `log`, once per callback; return whether they were wrapped now."""
    hosts = getattr(trainer.train, "torchwatt_hosts", ())
    if any(attached is host for attached in hosts):
        return False
    train, log = trainer.train, trainer.log

    @functools.wraps(train)
    def metered_train(*args: Any, **kwargs: Any) -> Any:
        host.on_call()
        try:
            return train(*args, **kwargs)
        except BaseException as error:  # also KeyboardInterrupt; re-raised below
            host.on_failure(error)
            raise

    @functools.wraps(log)
    def metered_log(logs: MutableMapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        host.add_metrics(logs)
        return log(logs, *args, **kwargs)

    metered_train.torchwatt_hosts = (*hosts, host)  # type: ignore[attr-defined]
    trainer.train, trainer.log = metered_train, metered_log
    return True


def is_training(trainer: Any, thread: int) -> bool:
    """Return whether a thread is inside `trainer.train`; True if `trainer` is None."""
    if trainer is None:
        return True
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_name == "train" and frame.f_locals.get("self") is trainer:
            return True
        frame = frame.f_back
    return False


# transformers adds it if codecarbon is installed and `report_to` is "all", the default before version 5. Matched by
# class name, subclasses included, because importing `transformers.integrations` takes seconds.
CODECARBON_CALLBACK = "CodeCarbonCallback"

CODECARBON_NOTE = (
    'transformers runs its CodeCarbonCallback as well (report_to="all" adds it because codecarbon is installed): it '
    'meters the same devices, so do not add its figures to these; report_to="none" or '
    "trainer.remove_callback(CodeCarbonCallback) turns it off"
)


def has_codecarbon(callbacks: Iterable[Any]) -> bool:
    """Return whether a trainer's callbacks include codecarbon's."""
    return any(kind.__name__ == CODECARBON_CALLBACK for callback in callbacks for kind in type(callback).__mro__)
