"""`Run`, the result of `with profile() as run`."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from torchwatt.carbon import HOW_TO_GET_GRAMS
from torchwatt.core.errors import ConfigError
from torchwatt.core.report import Report
from torchwatt.reports.report_result import JobRun, ReportResult
from torchwatt.session.live_layers import LiveLayers
from torchwatt.session.live_meter import LiveMeter
from torchwatt.session.session import MAX_COUNT, Session
from torchwatt.views import SpanTimeline

MIN_COUNT = 1e-9  # for smaller counts, joules per unit may overflow a float


def _parse_count(n: Any) -> float | None:
    """Return a count from a number or a scalar of numpy or torch; None if it is not a valid count."""
    if getattr(n, "shape", None) == () and callable(getattr(n, "item", None)):
        try:
            n = n.item()
        except Exception:  # a tensor without data: not a number; `count` raises the error
            return None
    if not isinstance(n, Real) or isinstance(n, bool):
        return None
    exact: Any = n  # compare before conversion: 2**53 + 1 is 2**53 as a float
    return float(exact) if exact == 0 or MIN_COUNT <= exact <= MAX_COUNT else None


def _short_repr(value: Any) -> str:
    """Return a short repr for error messages; never raises."""
    try:
        return " ".join(reprlib.repr(value).split())
    except Exception:  # an int of more digits than Python prints, a repr that fails
        return f"a {type(value).__name__}"


class Run(ReportResult):
    """The result of a profiled block; while the block runs, the values so far.

    Energies are joules in the measured boundary; None (never 0) where nothing could be metered.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def report(self) -> Report:
        """The immutable value behind everything else."""
        return self._session.report or self._session.snapshot()

    @property
    def job(self) -> JobRun | None:
        """The merged job, after the block, on the rank that merged it; see `profile(job=...)`."""
        report = self._session.job_report
        return None if report is None else JobRun(report)

    @property
    def units(self) -> Mapping[str, float]:
        """Units counted with `count`."""
        return dict(self._session.units)

    @property
    def run_id(self) -> str:
        """Unique identifier of the run."""
        return self._session.run_id

    @property
    def name(self) -> str:
        """The name shown in reports."""
        return self._session.options.name

    @property
    def files(self) -> tuple[Path, ...]:
        """The requested files and folders, after they are written at the end of the block."""
        return self._session.written.paths if self._session.written is not None else ()

    @property
    def file_notes(self) -> tuple[str, ...]:
        """Notes about `files`: folders created, names that differ from the requested ones."""
        return self._session.written.notes if self._session.written is not None else ()

    @property
    def nested(self) -> bool:
        """Whether this run is a window of another one; its joules are included in the other's."""
        return self._session.nested

    @property
    def traces(self) -> bool:
        """Whether layers are traced."""
        return self._session.options.layers

    @property
    def carbon_how(self) -> str:
        """The source of the carbon intensity, or how to get grams."""
        location = self._session.options.carbon.location
        if not location:
            return HOW_TO_GET_GRAMS
        always = location[0].always
        return location[0].label if always is None else f"{always.value:.3g} g/kWh · {location[0].label}"

    def pulse(self) -> LiveMeter:
        """Return a cheap live view of the meters while the run runs."""
        return LiveMeter(self._session)

    def live_layers(self, pulse: LiveMeter) -> LiveLayers | None:
        """Return steps and layers while the run runs; None if layers are not traced."""
        tracer = self._session.tracer
        return None if tracer is None else LiveLayers(self._session, tracer, pulse)

    def _timeline(self) -> SpanTimeline | None:
        return self._session.timeline()

    def step(self) -> None:
        """Mark the end of a step if automatic detection cannot; after the first mark only marks count."""
        self._session.step()

    def resume(self) -> None:
        """Exclude the time since the last step, such as an evaluation or a checkpoint, from the next step."""
        self._session.resume()

    @property
    def live_units(self) -> Mapping[str, float]:
        """The units that live views show: those that were counted, else the output tokens so far."""
        units, tokens = self.units, self._session.requests.live_output_tokens
        return units or ({"output token": float(tokens)} if tokens else {})

    def count(self, unit: str, n: float = 1) -> None:
        """Count units of work (`run.count("image", 64)`), for joules per unit.

        Args:
            unit: Its name.
            n: How many: a number, or a scalar of numpy or torch.

        Raises:
            ConfigError: The unit has no name; the count is not 0 or a number from 1e-9 to 2**53; or the sum exceeds
                2**53.
        """
        if not isinstance(unit, str) or not unit:
            raise ConfigError(f"count({_short_repr(unit)}, ...): name the unit, such as 'image'")
        number = _parse_count(n)
        if number is None:
            raise ConfigError(f"count({_short_repr(unit)}, {_short_repr(n)}): give 0 or a number from 1e-9 to 2**53")
        self._session.count(unit, number)

    def add_tokens(self, input: int = 0, output: int = 0, *, cached: int = 0) -> None:  # noqa: A002
        """Record a request of your own generation loop; the tokens of libraries are counted without this.

        Its stages are those that `torchwatt.stage` named on this thread since its last request, such as "prefill"
        and "decode".

        Args:
            input: Tokens of the prompt.
            output: Tokens generated.
            cached: Of the input, those that a cache of an earlier request contained.

        Raises:
            ConfigError: A count is negative or not a whole number.
        """
        for name, count in (("input", input), ("output", output), ("cached", cached)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise ConfigError(f"add_tokens({name}={_short_repr(count)}): give a whole number of tokens, at least 0")
        self._session.requests.add_tokens(input, output, cached)

    def energy_per(self, unit: str) -> float | None:
        """Return joules per counted unit, or per step for `"step"`; None where the energy is unknown.

        Raises:
            ConfigError: Nothing of that unit was counted.
        """
        report = self.report
        n = float(report.step_count) if unit == "step" else self._session.units.get(unit, 0.0)
        if n <= 0:
            raise ConfigError(f"no {unit!r} was counted: call run.count({unit!r}, n) inside the block")
        return report.energy_per(n)
