"""A callback for transformers' `Trainer`: energy per step, epoch and layer, and an end by budget.

The Trainer passes callbacks no reference to itself, has no hook for exceptions, and does not show changes that a
callback makes to the logs to callbacks before it. So the trainer is taken from the call stack, and two methods of that
instance are wrapped: `train`, to end the run on an exception, and `log`, to add joules to the same rows.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterable, MutableMapping
from types import FrameType
from typing import Any, Protocol

from torchwatt.core.errors import import_optional
from torchwatt.integrations.metering_callback import MeteringCallback, guard_hook
from torchwatt.integrations.training_budget import CheckpointTotals, parse_totals
from torchwatt.session.profile import outcome_of
from torchwatt.session.run import Run


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


_callbacks: Any = import_optional("transformers.trainer_callback", __name__)
CHECKPOINT_KEY = "torchwatt"  # key of the joules in a checkpoint's trainer_state.json


class EnergyCallback(MeteringCallback, _callbacks.TrainerCallback):  # type: ignore[misc]
    """Meters `Trainer.train()`; pass it in `callbacks=`, so that it can also detect exceptions in training.

    `energy = EnergyCallback(region="FRA", energy_budget_j=500_000)`, then `Trainer(..., callbacks=[energy]).train()`,
    and `energy.run` is the run, as `with torchwatt.profile(model) as run` makes it.

    It logs, in the Trainer's own rows: `energy/step_j` (mean of the steps since the last row), `energy/epoch_j` (the
    steps of an epoch), `energy/evaluation_j` and `energy/checkpoint_j` (since the last row), `energy/total_j`, and
    `carbon/total_g` if a grid is given. Unknown values are not logged. A step is an optimizer step.
    """

    _trainer: Any = None
    _thread = 0
    _guarded = True  # exceptions in training are detected
    _carried: CheckpointTotals | None = None  # totals in the trainer's state
    _calls = 0  # calls of `train`
    _begun_in = 0  # the call in which the training began

    @property
    def run(self) -> Run | None:
        """The run of the current training, or of the last one; None before the first."""
        training = self._training
        if training is not None and not self._guarded and not is_training(self._trainer, self._thread):
            training.note("LEFT_OPEN", "training ended without `on_train_end`: this run includes the joules until now")
            self._end("aborted", "training ended without `on_train_end`")
        return self._run

    def on_call(self) -> None:
        """Count a call of `train`."""
        self._calls += 1

    def on_failure(self, error: BaseException) -> None:
        """End the run when an exception passes through `train`."""
        self._end(*outcome_of(error))

    @guard_hook
    def add_metrics(self, logs: MutableMapping[str, Any]) -> None:
        """Add the known metrics to a row of the Trainer's log."""
        training, state = self._training, None if self._trainer is None else self._trainer.state
        if training is None or state is None:
            return
        if training.pausing == "evaluation":
            training.end_pause()
        elif "train_runtime" in logs:
            training.last_look()
        metrics = training.metrics()
        if state.is_world_process_zero:
            logs.update(metrics)

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach to the calling trainer."""
        self._attach()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Start metering; continue if `auto_find_batch_size` restarts the loop within the same `train` call."""
        attached = self._attach()
        self._carried = None
        if self._training is not None and self._begun_in == self._calls and not attached:
            self._go_on()
            return
        self._guarded, self._begun_in = not attached, self._calls
        self._thread = threading.get_ident()
        earlier = parse_totals(_checkpoint_totals(state))
        training = self._begin(model, processes=args.world_size, earlier=earlier, resumed=state.global_step > 0)
        if self._trainer is not None and has_codecarbon(self._trainer.callback_handler.callbacks):
            training.note("CODECARBON_BESIDE", CODECARBON_NOTE)

    @guard_hook
    def _go_on(self) -> None:
        if self._training is not None:
            self._training.began_again()

    @guard_hook
    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the start of an epoch."""
        if self._training is not None:
            self._log_epoch(control)
            self._training.epoch_began(int(state.epoch or 0))

    @guard_hook
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Record an optimizer step; stop training once the budget is used up."""
        training = self._training
        if training is None:
            return None
        training.end_step(pause_follows=control.should_log or control.should_evaluate or control.should_save)
        return self._store_totals(state, control)

    @guard_hook
    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record that an evaluation is running; its start is the end of the previous part."""
        if self._training is not None:
            self._training.begin_pause("evaluation")

    @guard_hook
    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Record the end of an evaluation, unless `add_metrics` already did."""
        if self._training is None:
            return None
        self._training.end_pause()
        return self._store_totals(state, control)

    @guard_hook
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Record the end of a checkpoint."""
        if self._training is None:
            return None
        self._training.record_pause("checkpoint")
        return self._store_totals(state, control)

    @guard_hook
    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Record the end of an epoch; the energy of its steps is logged in the next row."""
        if self._training is None:
            return None
        self._training.end_epoch()
        return self._store_totals(state, control)

    @guard_hook
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the run."""
        self._end()

    def _attach(self) -> bool:
        trainer_class = import_optional("transformers.trainer", __name__).Trainer
        self._trainer = calling_instance(trainer_class) or self._trainer
        return self._trainer is not None and attach_callback(self._trainer, self)

    def _log_epoch(self, control: Any) -> None:
        """Log an epoch's joules in a separate row if no row followed the epoch."""
        if self._training is not None and self._training.has_epoch and self._trainer is not None:
            should_log = control.should_log  # which logging resets
            self._trainer.log({})
            control.should_log = should_log

    def _store_totals(self, state: Any, control: Any) -> Any:
        """Store the totals in the trainer's state for checkpoints; return `control`, set to stop if over budget."""
        training = self._training
        if training is None:
            return None
        if training.used is not self._carried:
            self._carried = training.used
            state.stateful_callbacks[CHECKPOINT_KEY] = {"args": {}, "attributes": training.used.to_json()}
        if training.over:
            control.should_training_stop = True
        return control


def _checkpoint_totals(state: Any) -> dict[str, Any] | None:
    stored = (getattr(state, "stateful_callbacks", None) or {}).get(CHECKPOINT_KEY)
    attributes = stored.get("attributes") if isinstance(stored, dict) else None
    return attributes if isinstance(attributes, dict) else None
