"""Base class of the training callbacks: checks options early and owns the current training and its run."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from torchwatt.core.errors import ConfigError
from torchwatt.core.report import Status
from torchwatt.integrations.training_budget import NO_TOTALS, CheckpointTotals, TrainingBudget
from torchwatt.integrations.training_meter import TrainingMeter
from torchwatt.reports.run_options import check_options
from torchwatt.session.profile import profile
from torchwatt.session.run import Run

_log = logging.getLogger("torchwatt")
Hook = TypeVar("Hook", bound=Callable[..., Any])


def guard_hook(hook: Hook) -> Hook:
    """Decorate a hook so that an exception in it ends metering instead of training; it then returns None."""

    @functools.wraps(hook)
    def safe(callback: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return hook(callback, *args, **kwargs)
        except Exception as error:
            callback._give_up(error)
            return None

    return cast("Hook", safe)


class MeteringCallback:
    """Owns the current training and the run of the latest one.

    Args:
        energy_budget_j: End training after the step that makes its joules this many; no limit by default.
        carbon_budget_g: The same for location-based grams of CO2e; needs a region or an intensity.
        profiling: Options of `torchwatt.profile`, such as `region=`, `layers="off"`, `csv=`.

    Raises:
        ConfigError: An option is invalid, or a carbon budget has no region or intensity.
        FactorError: The region is in no table.
    """

    def __init__(
        self, *, energy_budget_j: float | None = None, carbon_budget_g: float | None = None, **profiling: Any
    ) -> None:
        self._budget = TrainingBudget(energy_budget_j, carbon_budget_g)
        checked = check_options(
            profile(**profiling)._arguments
        )  # reject invalid options now, not after hours of loading data
        if carbon_budget_g is not None and not checked.carbon.location:
            raise ConfigError(
                f"carbon_budget_g={carbon_budget_g!r}: grams need a grid; give region= (such as 'FRA') or "
                "intensity_g_per_kwh="
            )
        self._profiling = profiling
        self._begun = 0
        self._training: TrainingMeter | None = None
        self._run: Run | None = None

    @property
    def run(self) -> Run | None:
        """The run of the current training, or of the last one; None before the first."""
        return self._run

    def _begin(
        self, model: Any, *, processes: int = 1, earlier: CheckpointTotals = NO_TOTALS, resumed: bool = False
    ) -> TrainingMeter:
        """Start metering; a training that has not ended yet is ended as aborted first.

        Raises:
            ConfigError: There is a budget, and more than one process.
        """
        if self._budget and processes > 1:
            raise ConfigError(
                f"a budget needs a single process, and this is one of {processes}: a process that ended by its own "
                "meter would leave the others waiting"
            )
        self._end("aborted", "another training began")
        self._begun += 1
        self._training = training = TrainingMeter(
            model, _number_outputs(self._profiling, self._begun), self._budget, earlier
        )
        self._run = training.run
        if resumed and not earlier.run_ids:
            _log.warning("torchwatt: the checkpoint contains no earlier joules: energy/total_j and budgets start at 0")
        return training

    def _give_up(self, error: Exception) -> None:
        """End metering, but not training, after an internal error; keep the measurements so far."""
        training, self._training = self._training, None
        _log.warning("torchwatt: metering ended by an internal error; training continues", exc_info=error)
        if training is not None:
            training.abandon(f"metering failed: {type(error).__name__}: {error}")

    def _end(self, status: Status = "complete", reason: str = "") -> None:
        training, self._training = self._training, None
        if training is not None:
            training.end(status, reason)


def _number_outputs(profiling: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return the options of a callback's n-th training, with output paths numbered from 2: `audit`, `audit-2`, ..."""
    options = dict(profiling)
    for name in ("csv", "html"):
        if number > 1 and options.get(name) is not None:
            path = Path(options[name])
            options[name] = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return options
