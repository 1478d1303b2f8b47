"""Meters one training, independent of the framework: steps, epochs, evaluations and checkpoints."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import fsum
from typing import Any, Literal

from torchwatt.core.ledger import sum_if_known
from torchwatt.core.meter import Event
from torchwatt.core.report import Status, Window
from torchwatt.core.units import NS_PER_S
from torchwatt.integrations.training_budget import NO_TOTALS, BudgetSchedule, CheckpointTotals, TrainingBudget
from torchwatt.session.live_meter import STALE_NS, LiveMeter
from torchwatt.session.profile import profile
from torchwatt.tracing import wait_for_devices

TrainingPart = Literal["train", "evaluation", "checkpoint", "rest"]
MAX_READING_AGE_NS = (
    20 * NS_PER_S
)  # longer since the last reading: read afresh, as `LiveMeter.update` goes back a minute at most
MAX_ENDS = 256
MIN_END_DISTANCE_NS = NS_PER_S // 5


@dataclass(frozen=True, slots=True)
class PhaseEnd:
    """The end of a part; several parts if the boundaries between them are unknown."""

    t_ns: int
    parts: frozenset[TrainingPart]
    steps: int
    ends_epoch: bool


class PhaseEnergyTracker:
    """Reads the meters at the ends of parts; the report, computed from all readings, may differ slightly.

    Counters are read at the end of a part; other meters publish later, and the part's joules are unknown until then.
    A sum is None if it includes an interval of several parts, or one in which a meter gave no readings.
    """

    def __init__(self, pulse: LiveMeter) -> None:
        self._pulse = pulse
        self._ends: deque[PhaseEnd] = deque()
        self._booked_j = 0.0
        self._ended_ns = self._looked_ns = time.monotonic_ns()
        self._gaps = pulse.gaps
        self._sums: dict[str, float | None] = {}
        self._steps = 0

    @property
    def least_j(self) -> float | None:
        """Return the joules read so far, per meter up to its latest reading; None before the first."""
        return fsum(self._pulse.energy_j.values()) if self._pulse.energy_j else None

    @property
    def whole_j(self) -> float | None:
        """Return the joules up to the last instant known to all meters; None if one is late or had a gap."""
        t_ns, whole_j = self._pulse.whole or (0, 0.0)
        late = self._looked_ns - t_ns > STALE_NS
        return None if late or self._gaps or whole_j <= 0 else whole_j

    def carbon_g(self, energy_j: float | None) -> float | None:
        """Convert joules to grams of CO2e; None without a region."""
        return None if energy_j is None else self._pulse.carbon_g(energy_j)

    def glance(self) -> None:
        """Evaluate readings that the sampler has already taken; reads no meter unless the last update is old."""
        now_ns = time.monotonic_ns()
        self._pulse.update(fresh=now_ns - self._looked_ns > MAX_READING_AGE_NS)
        self._looked_ns = now_ns
        self._resolve()

    def look(self, *parts: TrainingPart, steps: int = 0, ends_epoch: bool = False) -> None:
        """Read all meters now; book the joules since the last end to `parts`, which contain `steps` steps."""
        self._end(frozenset(parts), steps, ends_epoch=ends_epoch)
        self._looked_ns = self._ended_ns
        self._pulse.update(fresh=True)
        self._resolve()

    def note(self, steps: int) -> bool:
        """Record the end of steps without reading meters; within 0.2 s of the last end, do nothing and return False.

        A later reading can then resolve most steps even if slow meters have not published its own instant yet.
        """
        if time.monotonic_ns() - self._ended_ns < MIN_END_DISTANCE_NS:
            return False
        self._end(frozenset(("train",)), steps)
        return True

    def _end(self, parts: frozenset[TrainingPart], steps: int, *, ends_epoch: bool = False) -> None:
        self._ended_ns = time.monotonic_ns()
        self._pulse.request_at(self._ended_ns)
        self._ends.append(PhaseEnd(self._ended_ns, parts, steps, ends_epoch))
        if len(self._ends) > MAX_ENDS:  # no reading for long, or a meter stopped: merge the oldest two
            oldest, second = self._ends.popleft(), self._ends.popleft()
            steps, ends_epoch = oldest.steps + second.steps, oldest.ends_epoch or second.ends_epoch
            self._ends.appendleft(PhaseEnd(second.t_ns, oldest.parts | second.parts, steps, ends_epoch))
            self._pulse.forget(oldest.t_ns)

    def step_j(self) -> float | None:
        """Return the mean joules of the resolved steps since the last call; None if unknown."""
        joules, steps = self._sums.pop("step", None), self._steps
        self._steps = 0
        return None if joules is None or not steps else joules / steps

    def take(self, name: Literal["epoch", "evaluation", "checkpoint", "rest"]) -> float | None:
        """Return the joules of parts finished since the last call; for `epoch`, of its training steps only."""
        return self._sums.pop(name, None)

    @property
    def has_epoch(self) -> bool:
        """Return whether the joules of a finished epoch are known and were not taken."""
        return self._sums.get("epoch") is not None

    def _resolve(self) -> None:
        torn, self._gaps = self._pulse.gaps > self._gaps, self._pulse.gaps
        while self._ends and (joules := self._pulse.result_at(self._ends[0].t_ns)) is not None:
            end, total_j = self._ends.popleft(), fsum(joules.values())
            used_j, self._booked_j = total_j - self._booked_j, total_j
            self._pulse.forget(end.t_ns)
            self._book(end, None if torn or len(end.parts) > 1 else used_j)

    def _book(self, end: PhaseEnd, used_j: float | None) -> None:
        for part in end.parts:
            name = "step" if part == "train" else part
            self._sums[name] = sum_if_known((self._sums.get(name, 0.0), used_j))
        if "train" in end.parts:
            self._steps += end.steps
            self._sums["open"] = sum_if_known((self._sums.get("open", 0.0), used_j))
        if end.ends_epoch:
            self._sums["epoch"] = self._sums.pop("open", None)


_log = logging.getLogger("torchwatt")


class TrainingMeter:
    """Meters from construction on. A step is one optimizer step with the data loading before it.

    Args:
        model: The model whose layers are named.
        options: Options of `profile`.
        budget: The limits at which training is to stop.
        earlier: Totals of earlier runs if this one resumes from their checkpoint.
    """

    def __init__(
        self, model: Any, options: Mapping[str, Any], budget: TrainingBudget, earlier: CheckpointTotals = NO_TOTALS
    ) -> None:
        self.budget = budget
        self.earlier = earlier
        self.used = earlier  # by this run and earlier ones, as of the last reading
        self.over = ""  # the reason to stop training early; empty if none
        self.steps = 0
        self._profile = profile(model, **options)
        self.run = self._profile.__enter__()
        self._session = self.run._session
        self._live = PhaseEnergyTracker(self.run.pulse())
        self._pace = BudgetSchedule()
        self._last_ns = time.monotonic_ns()  # the end of the last step or pause
        self._trained = 0  # steps since the last end passed to `_live`
        self._epoch: tuple[int, int] | None = None
        self._pause: tuple[TrainingPart, int] | None = None
        self._count: dict[str, int] = {}
        if budget and not any(c.quantity != "gauge" for meter in self._session.feed.meters for c in meter.channels):
            self.note("BUDGET_UNMETERED", "no meter is available: the budget will not end training")

    @property
    def pausing(self) -> TrainingPart | None:
        """Return the part that runs between steps now; None during steps."""
        return self._pause[0] if self._pause is not None else None

    def end_step(self, *, pause_follows: bool = False) -> None:
        """Record the end of an optimizer step; check the budget if due."""
        self.end_pause()
        self._session.step()
        self.steps += 1
        self._trained += 1
        self._last_ns = time.monotonic_ns()
        if pause_follows:
            self.look("train")
            return
        if self._live.note(self._trained):
            self._trained = 0
        if self.budget and not self.over and self._pace.is_due(self._last_ns / NS_PER_S):
            self._spend()

    def look(self, part: TrainingPart, *, ends_epoch: bool = False) -> None:
        """Read all meters at the end of `part` and of any steps not booked yet.

        Waits for the devices first, because queued work still belongs to `part`.
        """
        wait_for_devices()
        unannounced: tuple[TrainingPart, ...] = ("train",) if self._trained and part != "train" else ()
        self._live.look(part, *unannounced, steps=self._trained, ends_epoch=ends_epoch)
        self._trained = 0
        self._check()

    def began_again(self) -> None:
        """Record that the loop restarts after a failed attempt; its joules are included in this training."""
        self.end_pause()
        self.look("rest")
        self._close_epoch()
        self._session.resume()
        self._last_ns = time.monotonic_ns()
        message = (
            f"the loop restarted after {self.steps} steps, as with a smaller batch; joules of all attempts are included"
        )
        self._session.note(Event(self._last_ns, "info", "BEGAN_AGAIN", "run", message))

    def epoch_began(self, number: int) -> None:
        """Record the start of an epoch, which ends the one before."""
        self.end_pause()
        self.look("rest")
        self._close_epoch()
        self._epoch = (number, time.monotonic_ns())

    def pause_began(self, part: TrainingPart) -> None:
        """Record the start of an evaluation or a checkpoint, which ends any other pause."""
        if self.pausing == part:
            return
        self.end_pause()
        self.look("rest" if self._epoch is None else "train")
        self._pause = (part, time.monotonic_ns())

    def begin_pause(self, part: TrainingPart) -> None:
        """Record a running pause whose start had no callback: it starts at the end of the last step or pause."""
        if self.pausing != part:
            self.end_pause()
            self._pause = (part, self._last_ns)

    def record_pause(self, part: TrainingPart) -> None:
        """Record the end of a pause whose start had no callback."""
        self.begin_pause(part)
        self.end_pause()

    def end_pause(self) -> None:
        """End the pause, if any: book its joules and add its window to the report."""
        if self._pause is None:
            return
        (part, start_ns), self._pause = self._pause, None
        self.look(part)
        self._last_ns = time.monotonic_ns()
        self._add_window(part, self._count.get(part, 0), start_ns, self._last_ns)
        self._count[part] = self._count.get(part, 0) + 1
        self._session.resume()

    def metrics(self, *, step: bool = True) -> dict[str, float]:
        """Return the metrics known since the last call, by name, in J and g; unknown ones are omitted."""
        metrics = {
            "energy/step_j": self._live.step_j() if step else None,
            "energy/epoch_j": self._live.take("epoch"),
            "energy/evaluation_j": self._live.take("evaluation"),
            "energy/checkpoint_j": self._live.take("checkpoint"),
        }
        if self._live.whole_j is not None:  # else `used` is what earlier runs used
            metrics |= {"energy/total_j": self.used.energy_j, "carbon/total_g": self.used.carbon_g}
        return {name: value for name, value in metrics.items() if value is not None}

    @property
    def has_epoch(self) -> bool:
        """Return whether the joules of a finished epoch are known and `metrics` has not returned them."""
        return self._live.has_epoch

    def end_epoch(self) -> None:
        """Record the end of an epoch's last step; evaluations may follow before the next epoch."""
        self.end_pause()
        self.look("train", ends_epoch=True)
        self._last_ns = time.monotonic_ns()

    def last_look(self) -> None:
        """Wait until slow meters have published, so that the last metrics are known."""
        self.end_pause()
        self.look("rest")
        self._session.feed.wait_for_update()
        self._live.glance()
        self._check()

    def end(self, status: Status = "complete", reason: str = "") -> None:
        """End the session; its report stays available from `run`."""
        if not self._session.running:
            return
        if self._pause is not None:
            part, start_ns = self._pause
            self._add_window(part, self._count.get(part, 0), start_ns, time.monotonic_ns())
        self._close_epoch()
        self._profile.end(status, reason or self.over)

    def abandon(self, reason: str) -> None:
        """End the session as partial after an internal error."""
        if self._session.running:
            self._session.note(Event(time.monotonic_ns(), "error", "METERING_FAILED", "run", reason))
            self._profile.end("partial", reason)

    def note(self, code: str, message: str) -> None:
        """Log a warning and add it to the report as an event."""
        self._session.note(Event(time.monotonic_ns(), "warning", code, "run", message))
        _log.warning(message)

    def _close_epoch(self) -> None:
        if self._epoch is not None:
            number, start_ns = self._epoch
            self._add_window("epoch", number, start_ns, time.monotonic_ns())
            self._epoch = None

    def _add_window(self, kind: Any, number: int, start_ns: int, end_ns: int) -> None:
        # The report computes the window's joules from the final curves, with readings that are not available yet.
        self._session.add_window(Window(f"{kind} {number}", start_ns, end_ns, None, kind))

    def _spend(self) -> None:
        """Check the budget, with fresh readings if the limit is near."""
        if self._pace.near:
            self.look("train")
        else:
            self._live.glance()
            self._check()

    def _check(self) -> None:
        live, run_id = self._live, self.run.run_id
        self.used = self.earlier.plus(live.whole_j, live.carbon_g(live.whole_j), run_id)
        if not self.budget or self.over:
            return
        # A lower bound, without what a slow or failed meter has not published yet.
        least = self.earlier.plus(live.least_j, live.carbon_g(live.least_j), run_id)
        energy_j, carbon_g = least.energy_j, least.carbon_g
        part = self.budget.used_part(energy_j, carbon_g)
        self._pace.record_check(time.monotonic_ns() / NS_PER_S, part)
        if part >= 1:
            self.over = f"{self.budget.describe_excess(energy_j, carbon_g)} after {self.steps} steps of this run"
            self.note("BUDGET_REACHED", f"{self.over}: training ends early")
