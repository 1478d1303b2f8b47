"""A callback for Lightning's `Trainer`: energy per step, epoch and layer, and an end by budget."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

from torchwatt.core.errors import import_optional
from torchwatt.integrations.metering_callback import MeteringCallback, guard_hook
from torchwatt.integrations.training_budget import NO_TOTALS, CheckpointTotals, parse_totals
from torchwatt.session.profile import outcome_of

# One framework under two package names, each with its own callback class; prefer the one that is already imported.
PACKAGE_NAMES = ("lightning.pytorch", "pytorch_lightning")


def _callback_bases() -> tuple[Any, ...]:
    names = [name for name in PACKAGE_NAMES if name in sys.modules]
    if not names:
        names = [name for name in PACKAGE_NAMES if find_spec(name.partition(".")[0]) is not None][:1]
    return tuple(import_optional(name, __name__).Callback for name in names or PACKAGE_NAMES[:1])


class EnergyCallback(MeteringCallback, *_callback_bases()):  # type: ignore[misc]
    """Meters `Trainer.fit()`; the sanity check and validations are booked separately from training steps.

    `energy = EnergyCallback(region="FRA", energy_budget_j=500_000)`, then `Trainer(callbacks=[energy]).fit(model)`,
    and `energy.run` is the run, as `with torchwatt.profile(model) as run` makes it.

    It logs, to the Trainer's loggers and `callback_metrics`: `energy/step_j` (mean of the steps since it was logged
    last, every `log_every_n_steps`), `energy/epoch_j` (the steps of an epoch), `energy/evaluation_j` and
    `energy/checkpoint_j` (since they were logged last), `energy/total_j`, and `carbon/total_g` if a grid is given.
    Unknown values are not logged. A step is an optimizer step; several optimizers in one batch are one step.
    """

    _earlier: CheckpointTotals = NO_TOTALS
    _optimizer_steps = 0
    _resumed = False

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Start metering."""
        self._begin(pl_module, processes=trainer.world_size, earlier=self._earlier, resumed=self._resumed)
        self._earlier, self._resumed = NO_TOTALS, False

    @guard_hook
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Record the step count at the start, and log the energy of the sanity check."""
        self._optimizer_steps = trainer.global_step
        if self._training is not None:
            self._log(trainer, self._training.metrics(step=False))

    @guard_hook
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Record the start of an epoch."""
        if self._training is not None:
            self._training.epoch_began(trainer.current_epoch)

    @guard_hook
    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Record that steps resume after a pause."""
        if self._training is not None:
            self._training.end_pause()

    @guard_hook
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Record an optimizer step, if this batch completed one; stop training once the budget is used up."""
        training = self._training
        if training is None or trainer.global_step == self._optimizer_steps:
            return
        self._optimizer_steps = trainer.global_step
        logs = _is_logged_batch(trainer)
        training.end_step(pause_follows=logs)
        if logs:
            self._log(trainer, training.metrics())
        self._decide(trainer)

    @guard_hook
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Record the start of an evaluation."""
        if self._training is not None:
            self._training.pause_began("evaluation")

    @guard_hook
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Record the end of an evaluation."""
        if self._training is not None:
            self._training.end_pause()
            self._decide(trainer)

    @guard_hook
    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        """Record the start of a checkpoint; the next event of any kind ends it."""
        if self._training is not None:
            self._training.pause_began("checkpoint")

    @guard_hook
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the energy of the epoch's steps."""
        training = self._training
        if training is not None:
            training.end_epoch()
            self._log(trainer, training.metrics(step=False))
            self._decide(trainer)

    @guard_hook
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the energy since the last row, such as that of the last checkpoint."""
        if self._training is not None:
            self._training.last_look()
            self._log(trainer, self._training.metrics(step=False))

    @guard_hook
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """End the run."""
        self._end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End the run; Lightning re-raises the exception."""
        self._end(*outcome_of(exception))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End a run that is still open after `on_fit_end` and `on_exception`."""
        if stage == "fit":
            self._end("aborted", "Lightning called neither on_fit_end nor on_exception")

    @guard_hook
    def state_dict(self) -> dict[str, Any]:
        """Return the totals so far, for the checkpoint."""
        training = self._training
        if training is None:
            return {}
        training.pause_began("checkpoint")
        return training.used.to_json()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the totals of earlier runs; ignored while training runs, whose own joules include them."""
        if self._training is None:
            self._earlier = parse_totals(state_dict)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        """Record whether this fit resumes: batch-size finders reload a checkpoint of step 0, which is not a resume."""
        self._resumed = self._training is None and checkpoint.get("global_step", 0) > 0

    def _log(self, trainer: Any, metrics: dict[str, float]) -> None:
        """Write a row directly to the loggers, as Lightning's LearningRateMonitor does.

        `self.log_dict` would repeat the latest value in each later row of the epoch and round it to 32 bits.
        """
        if not metrics or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=max(trainer.fit_loop.epoch_loop._batches_that_stepped, 0))
        as_tensor = import_optional("torch", __name__).tensor
        trainer.callback_metrics.update({name: as_tensor(value) for name, value in metrics.items()})

    def _decide(self, trainer: Any) -> None:
        if self._training is not None and self._training.over:
            trainer.should_stop = True


def _is_logged_batch(trainer: Any) -> bool:
    """Return whether Lightning logs this batch; without its logger connector, decide by the global step."""
    connector = getattr(trainer, "_logger_connector", None)
    should_log = getattr(connector, "should_update_logs", None)
    if should_log is not None:
        return bool(should_log)
    every = trainer.log_every_n_steps
    return bool(every) and trainer.global_step % every == 0
