"""A callback for transformers' `Trainer`: energy per step, epoch and layer, and an end by budget."""

from __future__ import annotations

import threading
from collections.abc import MutableMapping
from typing import Any

from torchwatt.core.extras import import_optional
from torchwatt.integrations.metering_callback import MeteringCallback, guard_hook
from torchwatt.integrations.trainer_hooks import (
    CODECARBON_NOTE,
    attach_callback,
    calling_instance,
    has_codecarbon,
    is_training,
)
from torchwatt.integrations.training_budget import CheckpointTotals, parse_totals
from torchwatt.session.profile import outcome_of
from torchwatt.session.run import Run

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
