"""Joules per step, counted unit, stage and token, and the cost: the figures at the top of each view."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from statistics import median

from torchwatt.core.factor import Impact
from torchwatt.core.ledger import total_self_j
from torchwatt.core.report import INPUT_UNIT, OUTPUT_UNIT, Report, Step
from torchwatt.core.requests import Figure, figures_by_part
from torchwatt.core.terms import INFERENCE, TRAIN, VALIDATION
from torchwatt.views.layer_sums import entries_by_stage
from torchwatt.views.number_format import (
    DASH,
    format_count,
    format_energy,
    format_interval,
    format_money,
    format_time,
    format_wh,
)


@dataclass(frozen=True, slots=True)
class EnergyRate:
    """Joules per unit: `175 J` per `step`, with details."""

    label: str
    value: str
    detail: str


def energy_rates(report: Report) -> tuple[EnergyRate, ...]:
    """Return joules per step, counted unit and token, and of each stage, and the cost."""
    rates = (*step_rates(report), *unit_rates(report), *token_rates(report), *_stage_figures(report))
    return (*rates, *([] if report.cost is None else [_cost_rate(report, report.cost)]))


def unit_rates(report: Report) -> tuple[EnergyRate, ...]:
    """Return joules per counted unit."""
    rates = []
    for unit, count in report.sorted_units:
        formula = f"{format_count(count)} counted, total / count"
        outputs = report.units.get(OUTPUT_UNIT)
        if unit == INPUT_UNIT and outputs is not None:  # of a watched server, whose prompts are no product of their own
            unit, count = "total token", count + outputs  # noqa: PLW2901
            formula = f"{format_count(count)} input and output tokens counted, total / count"
        rates.append(EnergyRate(f"per {unit}", format_energy(report.energy_per(count)), formula))
    return tuple(rates)


# Label, figure of `requests.generation_figures`, and what it is divided by.
_TOKEN_RATES = (
    ("per output token", "energy_per_output_token", "output_tokens", "all stages / output tokens"),
    ("per total token", "energy_per_total_token", "", "all stages / (input + output tokens)"),
    ("prefill, per input token", "prefill_energy_per_input_token", "input_tokens", "prefill / input tokens"),
    ("decode, per output token", "decode_energy_per_output_token", "", "decode / output tokens after the first ones"),
)


AFTER_THE_FIRST, ONE_CALL = "calls after the first", "one call"


def _generation_figures(report: Report) -> tuple[dict[str, Figure], dict[str, Figure], str]:
    """Return figures of generation by name, those of the first call, and of which calls the former are.

    They are those of the calls after the first, if there are any: the first call of a program allocates, tunes and
    compiles.
    """
    parts = {
        part: {figure.name: figure for figure in figures} for part, figures in figures_by_part(report.tokens).items()
    }
    if "steady" in parts:
        return parts["steady"], parts["warm_up"], AFTER_THE_FIRST
    return parts["all"], {}, ONE_CALL


def token_rates(report: Report) -> list[EnergyRate]:
    """Return joules per output token and per total token side by side, per token of each stage, and the latencies."""
    if not report.tokens:
        return []
    figures, first_call, which = _generation_figures(report)
    rates = []
    for label, name, counted, formula in _TOKEN_RATES:
        value = figures[name].value
        words = [f"{formula}, {which}"]
        if counted:
            words.insert(0, f"{format_count(figures[counted].value)} tokens of {_requests_text(figures)}")
        if name in first_call and (first_mj := first_call[name].value) is not None:
            words.append(f"first call {format_energy(first_mj / 1e3)}")
        words.append(report.boundary)
        if value is not None:
            rates.append(EnergyRate(label, format_energy(value / 1e3), " · ".join(filter(None, words))))
    latency_ms, between_ms = figures["time_to_first_token"].value, figures["inter_token_latency"].value
    if latency_ms is not None:
        words = [f"then {format_time(between_ms / 1e3)} a token"] if between_ms is not None else []
        throughput = figures["output_token_throughput"].value
        words += [f"{format_count(throughput)} output tokens/s", which] if throughput is not None else [which]
        rates.append(EnergyRate("time to first token", format_time(latency_ms / 1e3), " · ".join(words)))
    return rates


def _requests_text(figures: Mapping[str, Figure]) -> str:
    count = figures["requests"].value or 0
    return f"{count:.0f} request{'s' * (count != 1)}"


def generation_sentence(report: Report) -> str:
    """Return joules per token in one sentence; "" without requests of known tokens and joules."""
    if not report.tokens:
        return ""
    figures, _, which = _generation_figures(report)
    values = {label: figures[name].value for label, name, _, _ in _TOKEN_RATES}
    texts = {label: format_energy(value / 1e3) for label, value in values.items() if value is not None}
    if "per output token" not in texts:
        return ""
    inputs, outputs = (format_count(figures[name].value) for name in ("input_tokens", "output_tokens"))
    of_calls = f" ({which})" if which != ONE_CALL else ""
    text = f"{_requests_text(figures)} with {inputs} input and {outputs} output tokens{of_calls}"
    text += f": {texts['per output token']} per output token"
    if "per total token" in texts:
        text += f", {texts['per total token']} per input or output token"
    stages = [label.replace(", per", f" {value} per") for label, value in texts.items() if ", per" in label]
    return "; ".join(filter(None, (text, ", ".join(stages)))) + "."


def stage_energy_j(report: Report) -> dict[str, float]:
    """Return joules by the name of each stage, "" for none, most first; {} where the program named no stage."""
    sums = {stage: total_self_j(entries) for stage, entries in entries_by_stage(report).items()}
    return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0]))) if any(sums) else {}


def _stage_figures(report: Report) -> list[EnergyRate]:
    """Return joules of each stage with its share of the total."""
    total_j = report.energy_j or 0.0
    stages = stage_energy_j(report) if total_j > 0 else {}
    return [
        EnergyRate(f"stage {name}" if name else "no stage", format_energy(joules), f"{joules / total_j:.1%} of the run")
        for name, joules in stages.items()
    ]


def _cost_rate(report: Report, cost: Impact) -> EnergyRate:
    """Return the cost of the run's electricity, with the energy and the declared price that it is made of."""
    used = {factor.kind: factor for factor in report.factors if factor.factor_id in cost.factor_ids}
    price, pue = used["price"], used.get("pue")
    building = "" if pue is None else f" × PUE {pue.value:.2f} ({pue.provenance})"
    price_text = f"{price.value:g} {price.unit.partition('/')[0].strip('{}')}/kWh ({price.provenance})"
    amount = format_money(cost.value, cost.unit.strip("{}"))
    return EnergyRate("cost", amount, f"{format_wh(report.energy_j)}{building} at {price_text}")


STAGE_LABELS = {TRAIN: "training step", VALIDATION: "validation step", INFERENCE: "inference step", "": "other step"}


def step_rates(report: Report) -> tuple[EnergyRate, ...]:
    """Return the median joules per step of each stage, over steps with known joules; training first."""
    by_stage: dict[str, list[Step]] = defaultdict(list)
    for step in report.steps:
        by_stage[step.stage].append(step)
    order = sorted(
        by_stage,
        key=lambda stage: (list(STAGE_LABELS).index(stage) if stage in STAGE_LABELS else len(STAGE_LABELS), stage),
    )
    if len(order) < 2:
        return tuple(_step_rate(report, by_stage[stage], "step", "") for stage in order)
    many = f" of {report.step_count}"
    return tuple(_step_rate(report, by_stage[name], STAGE_LABELS.get(name, f"step of {name}"), many) for name in order)


def _step_rate(report: Report, steps: Sequence[Step], name: str, many: str) -> EnergyRate:
    known_j = [joules / s.count for s in steps if (joules := step_j(report, s)) is not None]
    seconds = median((step.end_ns - step.start_ns) / step.count / 1e9 for step in steps)
    count = sum(step.count for step in steps)
    words = [f"{count}{many} {'step' if count == 1 and not many else 'steps'} of {format_time(seconds)}"]
    if known_j and count > 1:
        words.insert(0, f"median; from {format_interval(min(known_j), max(known_j))}")
    if known_j and len(known_j) < len(steps):
        words.append(f"{len(steps) - len(known_j)} without a meter")
    return EnergyRate(f"per {name}", format_energy(median(known_j)) if known_j else DASH, " · ".join(words))


def step_j(report: Report, step: Step) -> float | None:
    """Return a step's joules over all counted domains; None if one of them is unknown."""
    parts = [step.energy_j.get(str(ledger.domain)) for ledger in report.counted]
    return fsum(p for p in parts if p is not None) if parts and None not in parts else None
