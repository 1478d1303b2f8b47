"""Texts and numbers of a report that all views share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import fsum
from statistics import median

from torchwatt.core.factor import Factor, Impact
from torchwatt.core.ledger import MIN_COVERAGE, Ledger, total_self_j
from torchwatt.core.meter import Event, Unavailable
from torchwatt.core.report import Report, Step
from torchwatt.core.terms import INFERENCE, TRAIN, VALIDATION, domain_kind
from torchwatt.core.units import J_PER_KWH
from torchwatt.views.layer_sums import entries_by_stage
from torchwatt.views.number_format import (
    DASH,
    format_count,
    format_energy,
    format_interval,
    format_mass,
    format_money,
    format_share,
    format_time,
    format_wh,
)

NO_CARBON = "No carbon: give region= (such as 'FRA') or intensity_g_per_kwh=."

MAX_DOMAINS = 24

REPEAT_LABEL, METER_LABEL = "90 % of repeats", "another meter"


def energy_text(report: Report) -> str:
    """Return the total with its 90 % interval between repeats, and the coverage."""
    bounds = bounds_text(report.energy_j, report.interval_j)
    energy = (
        f"{format_energy(report.energy_j)} ({REPEAT_LABEL}: {bounds})" if bounds else format_energy(report.energy_j)
    )
    return " · ".join(word for word in (energy, coverage_text(report)) if word)


def coverage_text(report: Report) -> str:
    """Return the metered share of the run if it is below 95 %, else ""."""
    if not report.counted or report.coverage >= MIN_COVERAGE:
        return ""
    return f"metered for {report.coverage * 100:.1f} % of the run"


def systematic_text(report: Report) -> str:
    """Return the interval of the total due to the accuracy of the meters, the same in every repeat."""
    bounds = bounds_text(report.energy_j, report.systematic_j)
    return f"{METER_LABEL}: {bounds}" if bounds else ""


def bounds_text(energy_j: float | None, bounds: tuple[float, float] | None) -> str:
    """Return an interval in the unit of its value; "" without an interval."""
    if energy_j is None or bounds is None:
        return ""
    if energy_j >= J_PER_KWH:
        wh_per_j = 1000 / J_PER_KWH
        return format_interval(bounds[0] * wh_per_j, bounds[1] * wh_per_j, "Wh")
    return format_interval(*bounds)


UNCERTAINTY_LABELS = {"energy_j": "the joules"}  # labels of sources of uncertainty that are not factors


@dataclass(frozen=True, slots=True)
class CarbonText:
    """Grams as text, their factors or how to get them, and notes."""

    grams: str
    basis: str
    notes: tuple[str, ...] = ()


def describe_carbon(report: Report) -> CarbonText:
    """Return the grams with the factors behind them."""
    impact = report.climate_impact("usage", "location")
    notes = _carbon_notes(report)
    if impact is None:
        return CarbonText(DASH, report.carbon_hint or NO_CARBON, notes)
    used = [factor for factor in report.factors if factor.factor_id in impact.factor_ids]
    parts = _factor_texts(used)
    if impact.lo is not None and impact.hi is not None:
        uncertainty = UNCERTAINTY_LABELS.get(impact.dominant_uncertainty, impact.dominant_uncertainty)
        parts.append(f"{format_mass(impact.lo)} to {format_mass(impact.hi)}, mostly from {uncertainty}")
    parts.append(f"{impact.provenance}, weakest input {impact.weakest_input}")
    coverage_notes = dict.fromkeys(f"{f.zone or f.kind}: {f.coverage_note}" for f in used if f.coverage_note)
    return CarbonText(f"{format_mass(impact.value)} CO2e", " · ".join(parts), (*coverage_notes, *notes))


def _carbon_notes(report: Report) -> tuple[str, ...]:
    """Return the market-based and embodied grams and the SCI score, which the main value does not include."""
    market = report.climate_impact("usage", "market")
    embodied, total = report.climate_impact("embodied", "na"), report.climate_impact("total", "location")
    score = next((i for i in report.impacts if i.criterion == "sci"), None)
    lines = []
    if market is not None:
        used = [factor for factor in report.factors if factor.factor_id in market.factor_ids]
        lines.append(f"market-based: {format_mass(market.value)} CO2e ({' · '.join(_factor_texts(used))})")
    if embodied is not None:
        sum_text = f"; with it {format_mass(total.value)}" if total is not None else ""
        lines.append(f"the hardware's share (embodied): {format_mass(embodied.value)} CO2e{sum_text}")
    if score is not None:
        lines.append(f"SCI: {format_mass(score.value)} CO2e per {score.unit.partition('/')[2].strip('{}')}")
    return tuple(lines)


def _factor_texts(used: Sequence[Factor]) -> list[str]:
    """Return a text for each factor; hourly factors of one grid share a text."""
    hours = [factor for factor in used if factor.temporal_resolution == "hour"]
    yearly = [factor for factor in used if factor.temporal_resolution != "hour"]
    texts = [_factor_text(factor) for factor in sorted(yearly, key=lambda f: f.kind)]
    if hours:
        values = [factor.value for factor in hours]
        estimated = sum(bool(factor.is_estimated) for factor in hours)
        span = f"{min(values):.3g} to {max(values):.3g} g/kWh · {hours[0].zone} · {len(hours)} hours"
        texts.insert(0, f"{span}, {estimated} estimated · {hours[0].source_name}")
    return texts


def _factor_text(factor: Factor) -> str:
    if factor.kind == "pue":
        return f"PUE {factor.value:.2f} ({factor.provenance})"
    year = str(factor.data_year or "")
    words = (f"{factor.value:.3g} g/kWh", factor.zone, factor.basis.replace("_", " "), year, factor.source_name)
    return " · ".join(word for word in words if word)


@dataclass(frozen=True, slots=True)
class DomainText:
    """The texts of one domain."""

    domain: str
    energy: str
    bounds: str  # 90 % between repeats; "" if unknown
    share: str
    provenance: str
    meter: str
    sentence: str

    @property
    def energy_and_bounds(self) -> str:
        """Return energy and bounds on one line."""
        return f"{self.energy} ({REPEAT_LABEL}: {self.bounds})" if self.bounds else self.energy


def domain_texts(report: Report) -> tuple[DomainText, ...]:
    """Return the domains, those of the total first, most joules first."""
    ordered = sorted(report.ledgers, key=lambda ledger: (not ledger.counted, -ledger.energy_j, str(ledger.domain)))
    return tuple(_domain_text(report, ledger) for ledger in ordered)


def select_domain_texts(report: Report) -> tuple[tuple[DomainText, ...], str]:
    """Return the domains with the most joules, and a sentence on the others: a large job has hundreds."""
    texts = domain_texts(report)
    if len(texts) <= MAX_DOMAINS:
        return texts, ""
    named = {item.domain for item in texts[:MAX_DOMAINS]}
    rest_j = fsum(ledger.energy_j for ledger in report.counted if str(ledger.domain) not in named)
    return texts[:MAX_DOMAINS], f"and {len(texts) - MAX_DOMAINS} more domains with {format_energy(rest_j)}"


def _domain_text(report: Report, ledger: Ledger) -> DomainText:
    domain, total_j = str(ledger.domain), report.energy_j or 0.0
    return DomainText(
        domain=domain,
        energy=format_energy(ledger.energy_j),
        bounds=bounds_text(ledger.energy_j, replace(report, ledgers=(replace(ledger, counted=True),)).interval_j),
        share=_share_text(ledger, total_j),
        provenance=ledger.provenance,
        meter=" · ".join(_meter_words(report, ledger)),
        sentence=ledger.sentence.removeprefix(f"{domain}: "),
    )


def _share_text(ledger: Ledger, total_j: float) -> str:
    if not ledger.counted:
        return f"inside {ledger.part_of}" if ledger.part_of else "not counted"
    return format_share(ledger.energy_j / total_j) if total_j > 0 else DASH


# Events on what the total includes and excludes; shown above the first number.
_HEAD_EVENTS = (
    "DEVICE_USER_UNKNOWN", "CARDS_BY_INDEX", "OTHER_PROCESSES", "OTHER_CARDS", "SCOPE_UNKNOWN", "MODULE_COUNTER",
    "CHILD_PROCESSES",
)  # fmt: skip


def head_notes(report: Report) -> tuple[str, ...]:
    """Return a sentence for each unexpected inclusion in, or exclusion from, the total."""
    events = sorted(
        (e for e in report.events if e.code in _HEAD_EVENTS), key=lambda e: (_HEAD_EVENTS.index(e.code), e.subject)
    )
    prefixed = ("run", *(e.subject for e in events if e.message.startswith(e.subject)))
    return tuple(e.message if e.subject in prefixed else f"{e.subject}: {e.message}" for e in events)


def measurement_notes(report: Report) -> tuple[str, ...]:
    """Return how the numbers were obtained, in sentences: missing meters, the total's boundary, intervals, tracing."""
    notes = [missing_meters_text(report), *head_notes(report)]
    if report.interval_j is not None:
        notes.append("An interval says what 90 % of repeats of this run would give.")
    if bounds := bounds_text(report.energy_j, report.systematic_j):
        notes.append(f"By the accuracy of the meters, other meters would give {bounds} in total (90 %).")
    if coverage := coverage_text(report):
        notes.append(f"The run was {coverage}; the joules of the rest are unknown and not in the total.")
    if report.traced_steps and report.traced_steps < report.step_count:
        notes.append(
            f"Layers were traced in {report.traced_steps} of {report.step_count} steps; the other steps are filled in "
            "from them."
        )
    return tuple(note for note in notes if note)


def missing_meters_text(report: Report) -> str:
    """Return one sentence on the domains without a meter, and which of them are estimated; "" if none is missing."""
    kinds = {_kind_label(gone.domain): is_modelled_instead(report, gone) for gone in missing_meters(report)}
    if not kinds:
        return ""
    estimated = [kind for kind, modelled in kinds.items() if modelled]
    verb = "is" if len(estimated) == 1 else "are"
    estimate = f"; {join_words(estimated)} {verb} estimated" if estimated else ""
    return f"No power meter found for {join_words(list(kinds))}{estimate}."


def missing_meters(report: Report) -> tuple[Unavailable, ...]:
    """Return what has no meter, GPUs and CPUs first; the order does not depend on that of their discovery."""
    order = ("gpu", "cpu")
    return tuple(
        sorted(
            report.unavailable,
            key=lambda gone: (
                order.index(kind) if (kind := domain_kind(gone.domain)) in order else len(order),
                gone.domain,
                gone.reason,
            ),
        )
    )


def _kind_label(domain: str) -> str:
    """Return `GPU` for `gpu` and `DRAM 0` for `dram:0`."""
    name, _, index = domain.partition(":")
    return f"{name.upper()} {index}".strip()


def join_words(words: Sequence[str]) -> str:
    """Join words by commas and a last `and`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def is_modelled_instead(report: Report, gone: Unavailable) -> bool:
    """Return whether a model replaces this missing meter in the total."""
    kind = domain_kind(gone.domain)
    return any(ledger.domain.kind == kind and ledger.provenance == "modelled"
               for ledger in report.counted)  # fmt: skip


def _meter_words(report: Report, ledger: Ledger) -> list[str]:
    """Return the meter's name, other users, static power and cross-check, which the ledger's sentence lacks."""
    meter = report.meter(str(ledger.domain))
    words = []
    if meter is not None:
        words.append(f"{meter.vendor} {meter.model}".strip() if meter.vendor not in meter.model else meter.model)
        if meter.shared:
            words.append("includes other processes")
    if ledger.static_w is not None:
        words.append(f"static {ledger.static_w:.3g} W")
    if ledger.cross_check_j is not None and ledger.energy_j > 0:
        words.append(f"cross-check by integrated power: {(ledger.cross_check_j / ledger.energy_j - 1) * 100:+.1f} %")
    return [word for word in words if word]


@dataclass(frozen=True, slots=True)
class EnergyRate:
    """Joules per unit: `175 J` per `step`, with details."""

    label: str
    value: str
    detail: str


def energy_rates(report: Report) -> tuple[EnergyRate, ...]:
    """Return joules per step and per counted unit."""
    energy_rates = list(step_rates(report))
    for unit, count in sorted(report.units.items()):
        per_unit = format_energy(report.energy_per(count))
        energy_rates.append(EnergyRate(f"per {unit}", per_unit, f"{format_count(count)} counted, total / count"))
    return (*energy_rates, *_stage_figures(report), *([] if report.cost is None else [_cost_rate(report, report.cost)]))


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


def describe_cost(report: Report) -> str:
    """Describe the overhead of sampling and tracing."""
    sampler = report.sampler
    words = ["not sampled"]
    if sampler.mode != "none":
        words = [f"sampled by {'' if sampler.mode == 'replay' else 'a '}{sampler.mode}"]
        words.append(f"{format_time(sampler.cpu_s)} CPU")
    if missed := sum(sampler.missed.values()):
        reads = f" of {missed + sum(sampler.reads.values())}" if sampler.reads else ""  # a bundle has no reads
        words.append(f"{missed}{reads} readings late")
    if report.tracing_cost_s is not None:
        share = report.tracing_cost_s / report.duration_s if report.duration_s > 0 else None
        words.append(f"tracing {format_time(report.tracing_cost_s)} ({format_share(share)} of the run)")
    if report.traced_steps:
        filled = ", the others filled in from them" if report.traced_steps < report.step_count else ""
        words.append(f"{report.traced_steps} of {report.step_count} steps traced{filled}")
    return " · ".join(words)


def describe_run(report: Report) -> str:
    """Return the run's id and the versions of the software."""
    names = ("torchwatt", "python", "torch", "os")
    return " · ".join(
        (report.run_id, *(f"{name} {report.software[name]}" for name in names if name in report.software))
    )


def select_warnings(report: Report) -> tuple[Event, ...]:
    """Return warnings and errors in time order."""
    events = (event for event in report.events if event.severity != "info")
    return tuple(sorted(events, key=lambda event: (event.t_ns, event.code, event.subject)))


def event_time(report: Report, event: Event) -> str:
    """Return the time of an event since the start."""
    return format_time(max((event.t_ns - report.start_ns) / 1e9, 0.0))
