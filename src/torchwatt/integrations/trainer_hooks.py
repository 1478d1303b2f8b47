"""What a callback of transformers' Trainer cannot know from its arguments: the trainer, and that training failed.

The Trainer gives its callbacks no reference to itself, has no hook for exceptions, and shows what a callback changes
in the logs to those before it never. So the trainer is found where it calls from, and two methods of this one object
are wrapped: `train`, to end the run when an exception passes, and `log`, to put joules into the same rows.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import MutableMapping
from types import FrameType
from typing import Any, Protocol


class Host(Protocol):
    """The callback."""

    def called(self) -> None:
        """`train` begins; it may begin its loop several times, each with a smaller batch."""

    def failed(self, error: BaseException) -> None:
        """Training ends in an exception, which passes through."""

    def add_metrics(self, logs: MutableMapping[str, Any]) -> None:
        """A row is about to be logged."""


def caller(kind: type) -> Any:
    """Return the nearest caller's `self` that is an instance of a class, None if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, kind):
            return owner
        frame = frame.f_back
    return None


def attach(trainer: Any, host: Host) -> bool:
    """Wrap a trainer's `train` and `log`, once a callback; return whether it was new."""
    hosts = getattr(trainer.train, "torchwatt_hosts", ())
    if any(known is host for known in hosts):
        return False
    train, log = trainer.train, trainer.log

    @functools.wraps(train)
    def metered_train(*args: Any, **kwargs: Any) -> Any:
        host.called()
        try:
            return train(*args, **kwargs)
        except BaseException as error:  # also an interrupt; it goes on below
            host.failed(error)
            raise

    @functools.wraps(log)
    def metered_log(logs: MutableMapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        host.add_metrics(logs)
        return log(logs, *args, **kwargs)

    metered_train.torchwatt_hosts = (*hosts, host)  # type: ignore[attr-defined]
    trainer.train, trainer.log = metered_train, metered_log
    return True


def is_training(trainer: Any, thread: int) -> bool:
    """Return whether a thread is inside `trainer.train` now; True where there is no trainer to tell by."""
    if trainer is None:
        return True
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_name == "train" and frame.f_locals.get("self") is trainer:
            return True
        frame = frame.f_back
    return False
