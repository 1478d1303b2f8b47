"""Joules per output token of a run beside the estimate of EcoLogits: the value, its text and its HTML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, log
from textwrap import fill
from typing import TYPE_CHECKING, Any

from torchwatt.carbon.ecologits import ESTIMATED_CRITERIA, Assumption, EstimatedRange, TokenEstimate, TokenLoad
from torchwatt.core.factor import Impact
from torchwatt.core.plain_text import to_printable
from torchwatt.views import DASH, format_energy, format_interval, format_power
from torchwatt.views.number_format import BORDER, escape_text, format_count, html_tag, muted_text

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, repr=False)
class EstimateComparison:
    """Joules per output token of a run against the estimate of EcoLogits for the same parameters.

    Attributes:
        provenance: How the run's joules are known.
        boundary: The domains that they include.
        calls: Which calls of the run these figures are of: those after the first, if there are any.
        output_tokens: Of these calls.
        energy_j: Joules per output token of the run.
        band_j: What other meters would measure; None if a meter states no band.
        decode_j: Joules of `decode` per output token after the first of each request; None if unknown.
        load: The run in the quantities that the estimator assumes.
        model: Class of the model; empty if the parameters were given.
        parameters: Of the model.
        active_parameters: Those that are used for one token.
        counted_by: How the active ones are known.
        version: Of ecologits.
        zone: Country of the electricity mix that the estimate uses.
        estimate: At the package's batch.
        estimate_at_batch: At the batch of the run.
        assumptions: Each assumption, and the estimate where it alone is replaced by the run's value.
        replaced_j: The estimate with all of them replaced.
        run_impacts: The run's impacts per output token, as far as the run has them.
    """

    provenance: str
    boundary: str
    calls: str
    output_tokens: int
    energy_j: float
    band_j: tuple[float, float] | None
    decode_j: float | None
    load: TokenLoad
    model: str
    parameters: int
    active_parameters: int
    counted_by: str
    version: str
    zone: str
    estimate: TokenEstimate
    estimate_at_batch: TokenEstimate
    assumptions: tuple[Assumption, ...]
    replaced_j: EstimatedRange
    run_impacts: tuple[Impact, ...]

    @property
    def title(self) -> str:
        """What is compared: `measured against estimated`, or `modelled against estimated` without meters."""
        return f"{self.provenance} against estimated"

    @property
    def ratio(self) -> float:
        """Return the run's joules over the estimate."""
        return self.energy_j / self.estimate.energy_j.mean

    @property
    def main_assumption(self) -> Assumption:
        """The assumption whose replacement changes the estimate most, by the absolute logarithm of the ratio."""
        return max(self.assumptions, key=lambda each: abs(each.log_ratio))

    @property
    def explanation(self) -> str:
        """The main assumption in one sentence."""
        main = self.main_assumption
        explains = main.log_ratio * log(self.ratio) > 0
        verb = "explains most of the difference" if explains else "changes the estimate most, but away from this run"
        change = f"the estimate becomes {format_energy(main.replaced_j.mean)} ({_times(exp(main.log_ratio))})"
        return f"{main.name} {verb}: with {_run_text(main)} instead of {_assumed_text(main)}, {change}."

    @property
    def frame(self) -> pd.DataFrame:
        """One row per assumption, a first one of EcoLogits' own and a last one of all replaced; joules per token."""
        import pandas as pd

        own = self.estimate.energy_j
        rows: list[dict[str, Any]] = [{"assumption": "(none)", **_replaced_cells(own, 0.0)}]
        rows += (
            {
                "assumption": each.name,
                "unit": each.unit,
                "ecologits_lo": each.assumed.lo,
                "ecologits_hi": each.assumed.hi,
                "this_run": each.run_value,
                **_replaced_cells(each.replaced_j, each.log_ratio),
            }
            for each in self.assumptions
        )
        rows.append({"assumption": "(all)", **_replaced_cells(self.replaced_j, log(self.replaced_j.mean / own.mean))})
        return pd.DataFrame(rows, columns=list(_FRAME_COLUMNS))

    @property
    def impacts(self) -> pd.DataFrame:
        """Joules and impacts per output token: this run's electricity, and the estimate's electricity and hardware."""
        import pandas as pd

        rows = [
            {
                "criterion": name,
                "unit": unit,
                "this_run": None if run is None else run[0],
                "this_run_lo": None if run is None else run[1],
                "this_run_hi": None if run is None else run[2],
                "ecologits_lo": usage.lo,
                "ecologits_hi": usage.hi,
                "ecologits_embodied_lo": None if embodied is None else embodied.lo,
                "ecologits_embodied_hi": None if embodied is None else embodied.hi,
            }
            for name, unit, run, usage, embodied in self._criteria()
        ]
        return pd.DataFrame(rows)

    def _criteria(
        self,
    ) -> Iterator[
        tuple[str, str, tuple[float, float | None, float | None] | None, EstimatedRange, EstimatedRange | None]
    ]:
        yield "energy", "J", (self.energy_j, *(self.band_j or (None, None))), self.estimate.energy_j, None
        by_name = {impact.criterion: (impact.value, impact.lo, impact.hi) for impact in self.run_impacts}
        for name, (unit, _) in ESTIMATED_CRITERIA.items():
            yield name, unit, by_name.get(name), self.estimate.usage[name], self.estimate.embodied.get(name)

    @property
    def _subject(self) -> str:
        """What is compared, in one line."""
        parameters = f"{format_count(self.parameters)} parameters{f' of {self.model}' * bool(self.model)}"
        if self.active_parameters != self.parameters:
            parameters += f", {format_count(self.active_parameters)} active ({self.counted_by})"
        tokens = f"{format_count(self.output_tokens)} output tokens, {self.calls}"
        return f"{parameters} · {tokens} · {self.boundary}"

    def _figures(self) -> list[tuple[str, str, str]]:
        """Return (label, joules per output token, details)."""
        details = [f"batch {_number(self.load.batch)}"]
        if self.decode_j is not None:
            details.append(f"decode alone {format_energy(self.decode_j)}")
        if self.band_j is not None:
            details.append(f"other meters: {format_interval(*self.band_j)}")
        own, at_batch = self.estimate.energy_j, self.estimate_at_batch.energy_j
        estimated = [f"batch {_number(self.assumptions[0].assumed.mean)}", _range_text(own)]
        return [
            ("this run", format_energy(self.energy_j), " · ".join(details)),
            (f"EcoLogits {self.version}", format_energy(own.mean), " · ".join(filter(None, estimated))),
            ("EcoLogits, this batch", format_energy(at_batch.mean), _range_text(at_batch)),
            ("this run / EcoLogits", _number(self.ratio), f"at this batch {_number(self.energy_j / at_batch.mean)}"),
        ]

    def _assumption_rows(self) -> list[tuple[str, str, str, str, str]]:
        rows = [
            (
                each.name,
                _assumed_text(each),
                _run_text(each),
                format_energy(each.replaced_j.mean),
                _times(exp(each.log_ratio)),
            )
            for each in self.assumptions
        ]
        own, every = self.estimate.energy_j.mean, self.replaced_j.mean
        return [*rows, ("all of these", "", "", format_energy(every), _times(every / own))]

    def _impact_rows(self) -> list[tuple[str, str, str, str]]:
        return [
            (
                f"{name}, {unit.replace('{', '').replace('}', '')}",
                DASH if run is None else _number(run[0] * MILLION),
                _ends_text(usage.times(MILLION)),
                DASH if embodied is None else _ends_text(embodied.times(MILLION)),
            )
            for name, unit, run, usage, embodied in self._criteria()
        ]

    @property
    def _notes(self) -> list[str]:
        notes = ["EcoLogits counts no prompt: this run's joules include its prefill."]
        if self.provenance != "measured":
            notes.append(f"This run's joules are {self.provenance}: no meter measured all of them.")
        return [*notes, f"Grid of the estimate: {self.zone}. Nothing was looked up on a network."]

    def __repr__(self) -> str:
        parts = [f"{self.title}: joules per output token", self._subject, *_aligned(self._figures(), "  ")]
        parts += [
            "",
            "assumptions of EcoLogits, replaced one at a time",
            *_aligned([_HEADS, *self._assumption_rows()], "  "),
        ]
        parts += [fill(self.explanation, WIDTH), "", "per million output tokens, use of electricity"]
        parts += _aligned([_IMPACT_HEADS, *self._impact_rows()], "  ")
        return to_printable("\n".join([*parts, *self._notes]))

    def _repr_html_(self) -> str:
        title = html_tag("b", escape_text(f"{self.title}: joules per output token"))
        figures = _html_table([], self._figures())
        replaced = muted_text("assumptions of EcoLogits, replaced one at a time")
        impacts = muted_text("per million output tokens, use of electricity")
        return html_tag(
            "div",
            html_tag("div", title)
            + html_tag("div", muted_text(escape_text(self._subject)))
            + figures
            + html_tag("div", replaced)
            + _html_table(_HEADS, self._assumption_rows())
            + html_tag("div", escape_text(self.explanation))
            + html_tag("div", impacts, "margin-top:6px")
            + _html_table(_IMPACT_HEADS, self._impact_rows())
            + html_tag("div", muted_text(escape_text(" ".join(self._notes)))),
            f"border:{BORDER};border-radius:6px;padding:8px 12px;font-size:13px",
        )


MILLION = 1e6
WIDTH = 110  # of a line of the text
_HEADS = ("assumption", "EcoLogits", "this run", "estimate", "change")
_IMPACT_HEADS = ("criterion", "this run", "EcoLogits", "its hardware")
_FRAME_COLUMNS = (
    "assumption", "unit", "ecologits_lo", "ecologits_hi", "this_run", "estimate_j", "estimate_lo_j", "estimate_hi_j",
    "ratio", "log_ratio",
)  # fmt: skip


def _replaced_cells(energy_j: EstimatedRange, log_ratio: float) -> dict[str, float]:
    return {
        "estimate_j": energy_j.mean,
        "estimate_lo_j": energy_j.lo,
        "estimate_hi_j": energy_j.hi,
        "ratio": exp(log_ratio),
        "log_ratio": log_ratio,
    }


def _number(value: float) -> str:
    """Return three significant figures without an exponent where that is short: `64`, `0.149`, `3.4e-06`."""
    return f"{value:.3g}" if abs(value) < 1000 else format_count(value)


def _times(ratio: float) -> str:
    return f"x {_number(ratio)}"


def _ends_text(limits: EstimatedRange) -> str:
    low, high = _number(limits.lo), _number(limits.hi)
    return low if low == high else f"{low} to {high}"


def _range_text(limits: EstimatedRange) -> str:
    return "" if limits.lo == limits.hi else format_interval(limits.lo, limits.hi)


def _assumed_text(each: Assumption) -> str:
    if each.unit == "J":
        return f"GPUs of {format_energy(each.assumed.mean)} a token"
    return f"a server of {format_power(each.assumed.mean)}" if each.unit == "W" else _ends_text(each.assumed)


def _run_text(each: Assumption) -> str:
    if each.unit in {"J", "W"} and not each.run_value:
        return "no counted GPU" if each.unit == "J" else "no counted host"
    if each.unit == "J":
        return f"GPUs of {format_energy(each.run_value)} a token"
    return f"a host of {format_power(each.run_value)}" if each.unit == "W" else _number(each.run_value)


def _aligned(rows: Sequence[Sequence[str]], indent: str) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _html_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    style = "padding:2px 8px;text-align:left"
    lines = [html_tag("tr", "".join(html_tag("th", escape_text(head), style) for head in heads))] if heads else []
    lines += (html_tag("tr", "".join(html_tag("td", escape_text(cell), style) for cell in row)) for row in rows)
    return html_tag("table", "".join(lines), "border-collapse:collapse;font-size:12px;margin:4px 0")
