"""Reports of Software Carbon Intensity, SCI = ((E * I) + M) / R, with the required disclosures.

Of one run by ISO/IEC 21031:2024, and of runs of models by its extension, SCI for AI.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import fsum

from torchwatt.audit.bundle import (
    Bundle,
    count_tokens,
    counted_devices,
    factors_of,
    impact,
    kwh,
    number,
    pue_of,
    text,
    timestamp,
)
from torchwatt.audit.counted_run import ADDED, NOTHING, RunShare
from torchwatt.audit.deduplication import count_bundles
from torchwatt.audit.schema import Row
from torchwatt.core.errors import BundleError
from torchwatt.core.plain_text import DASH, escape_markdown, markdown_table

CountedBundle = tuple[Bundle, RunShare]

UNKNOWN = "unknown"


def format_figure(value: float | None, digits: int = 3, *, padded: bool = False) -> str:
    """Return a number with `digits` significant figures, also zeros if `padded`, and no exponent; a dash if unknown."""
    if value is None:
        return DASH
    return format(Decimal(f"{value:#.{digits}g}" if padded else f"{value:.{digits}g}"), "f")


def format_interval(lo: float | None, hi: float | None) -> str:
    """Return an interval; a dash if unknown."""
    return DASH if lo is None or hi is None else f"{format_figure(lo)} to {format_figure(hi)}"


# Provenance -> method in the report template of the Green Software Foundation: measured, sourced or modeled.
_METHOD = {"measured": "measured", "derived": "measured", "apportioned": "measured", "sourced": "sourced"}
_REQUIRED_DECLARATIONS = ("organisation", "accountable_contact", "model_id", "model_revision")


def sci_markdown(bundles: Sequence[Bundle]) -> bytes:
    """Return the report of one run in Markdown; without embodied figures it states why there is no score."""
    (bundle,) = bundles
    return ("\n".join(_sci_lines(bundle)) + "\n").encode()


def _sci_lines(bundle: Bundle) -> Iterator[str]:
    run, score = bundle.run, impact(bundle, "sci", phase="total")
    unit = escape_markdown(text(run, "functional_unit"))
    yield f"# Software Carbon Intensity: {escape_markdown(text(run, 'name'))}"
    yield ""
    if score is None:
        yield f"**No score.** {_reason_without_score(bundle)}"
    else:
        yield f"**{format_figure(number(score, 'value'))} gCO2e per {unit}**, 90 % interval " + format_interval(
            number(score, "lo"), number(score, "hi")
        )
        yield ""
        dominant, weakest = (escape_markdown(text(score, name)) for name in ("dominant_uncertainty", "weakest_input"))
        yield f"Mostly from: {dominant}. Weakest input: {weakest}."
    yield ""
    yield from _terms(bundle)
    yield ""
    yield from _boundary(bundle)
    yield ""
    yield from _coefficients(bundle, score)
    yield ""
    yield from _components(bundle)
    missing = [name for name in _REQUIRED_DECLARATIONS if not text(run, name)]
    if missing:
        yield ""
        yield f"Not declared, though the template asks for it: {', '.join(missing)}."


def _reason_without_score(bundle: Bundle) -> str:
    if impact(bundle, "gwp") is None:
        return "No grid was named, so there is no I; the energy is below."
    return "The standard says that M, the hardware's share, shall be included, and no embodied figures were given."


def _terms(bundle: Bundle) -> Iterator[str]:
    run, usage = bundle.run, impact(bundle, "gwp")
    embodied = impact(bundle, "gwp", phase="embodied", method="na")
    pue = pue_of(bundle)
    energy = kwh(run, "energy_it_j")
    rows = [
        ("E", "energy inside the boundary, kWh", format_figure(energy), _method(text(run, "energy_it_provenance"))),
        (
            "",
            "PUE",
            format_figure(pue),
            "declared or sourced; see below" if pue else "not given: E is that of the parts only",
        ),
        ("E * I", "use, gCO2e, location-based", _value(usage), _method(text(usage, "weakest_input") if usage else "")),
        (
            "M",
            "hardware's share, gCO2e",
            _value(embodied),
            _method(text(embodied, "weakest_input") if embodied else ""),
        ),
        (
            "R",
            f"functional unit: {escape_markdown(text(run, 'functional_unit'))}",
            format_figure(number(run, "functional_unit_count"), 6),
            text(run, "functional_unit_provenance"),
        ),
    ]
    yield from markdown_table(("Term", "What", "Value", "Method"), rows)


def _value(row: Row | None) -> str:
    return DASH if row is None else format_figure(number(row, "value"))


def _method(provenance: str) -> str:
    return f"{_METHOD.get(provenance, 'modeled')} ({provenance})" if provenance else DASH


def _boundary(bundle: Bundle) -> Iterator[str]:
    run = bundle.run
    yield "## Boundary and span"
    yield ""
    yield f"- inside: {escape_markdown(text(run, 'boundary').replace(';', ', '))}"
    yield f"- left out: {escape_markdown(text(run, 'boundary_excluded').replace(';', ', '))}; network and storage"
    start, end = timestamp(run, "started_at"), timestamp(run, "ended_at")
    yield f"- from {start:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S} UTC"
    yield f"- run {text(run, 'run_id')}, torchwatt {text(run, 'tool_version')}, status {text(run, 'status')}"


def _coefficients(bundle: Bundle, score: Row | None) -> Iterator[str]:
    used = factors_of(bundle, score or impact(bundle, "gwp"))
    yield "## Coefficients"
    yield ""
    if not used:
        yield "None."
        return
    rows = (
        (
            text(f, "kind"),
            format_figure(number(f, "value"), 6),
            escape_markdown(text(f, "unit")),
            format_interval(number(f, "lo"), number(f, "hi")),
            escape_markdown(text(f, "source_name")),
            text(f, "data_year") or DASH,
            escape_markdown(text(f, "basis")),
            text(f, "factor_id"),
        )
        for f in used
    )
    yield from markdown_table(("Name", "Value", "Unit", "Range", "Source", "Year", "Basis", "Row of factor.csv"), rows)


def _components(bundle: Bundle) -> Iterator[str]:
    yield "## Components"
    yield ""
    rows = []
    for device in counted_devices(bundle):
        name = text(device, "device_id")
        grams = impact(bundle, "gwp", subject=f"device:{name}")
        rows.append(
            (
                name,
                escape_markdown(text(device, "model")),
                format_figure(kwh(device, "energy_j")),
                _value(grams),
                text(device, "provenance"),
            )
        )
    total = (("all", "", format_figure(kwh(bundle.run, "energy_it_j")), _value(impact(bundle, "gwp")), ""),)
    yield from markdown_table(("Component", "Model", "kWh", "gCO2e in use", "Known"), (*rows, *total))


# SCI for AI (Green Software Foundation, 2026): the units of its tables 8.1 and 8.2, each with what it is for there.
CONSUMER_UNITS: Mapping[str, str] = {
    "token": "language models are delivered and billed by token",
    "image": "image models are delivered by image",
    "second": "audio and video are delivered by second",
    "page": "document analysis is delivered by page",
    "workflow": "agents are delivered by workflow execution",
    "inference": "classical models are delivered by inference",
    "request": "one request is one inference",
    "character": "translation and speech are delivered by character",
}
_PROVIDER_STAGES = frozenset({"data_preparation", "pretraining", "finetuning", "evaluation"})


@dataclass(frozen=True, slots=True)
class FunctionalUnit:
    """A unit of SCI for AI: how many there were, gross or effective, and why it was chosen.

    Scores are printed per `multiple` units.
    """

    name: str
    count: float
    basis: str
    reason: str
    multiple: int = 1

    @property
    def label(self) -> str:
        """Return the unit with its multiple: `1,000 tokens`."""
        if self.name == "FLOP":
            return f"{self.multiple:.0e} FLOP".replace("e+", "e")
        return self.name if self.multiple == 1 else f"{self.multiple:,} {self.name}s"

    def rate_g(self, grams: float | None) -> float | None:
        """Return grams per `multiple` units; of both terms it is the score, (E * I + M) / R."""
        return None if grams is None else grams / self.count * self.multiple


@dataclass(frozen=True, slots=True)
class CarbonTerms:
    """Grams of the two terms of a score; None is unknown, and then there is no score."""

    operational_g: float | None
    embodied_g: float | None

    @property
    def total_g(self) -> float | None:
        """Return the sum of both."""
        return None if self.operational_g is None or self.embodied_g is None else self.operational_g + self.embodied_g


def sci_ai_markdown(
    bundles: Sequence[Bundle], left_out: Sequence[str] = (), persona: str = "", flops: float | None = None
) -> bytes:
    """Return the scores of the consumer and the provider, apart.

    Args:
        bundles: Runs; each is the consumer's or the provider's.
        left_out: Runs that belong to these and are not in `bundles`: without them there is no score.
        persona: Of runs that do not tell theirs.
        flops: Operations of all runs together; None: the sum of theirs.

    Raises:
        BundleError: It is unknown whose view a run is.
    """
    counted = [(bundle, share) for bundle, share in count_bundles(bundles) if share.state not in NOTHING]
    by_persona = [(_persona_of(bundle, persona), bundle, share) for bundle, share in counted]
    separation = "The two scores have different boundaries and units; they are never added."
    lines = ["# Software Carbon Intensity for AI", "", separation, ""]
    for view, title in (("consumer", "Consumer"), ("provider", "Provider")):
        runs = [(bundle, share) for name, bundle, share in by_persona if name == view]
        section = _sci_ai_section(view, runs, left_out, flops) if runs else ["No run is about this view."]
        lines += [f"## {title}", "", *section, ""]
    return "\n".join(lines).encode()


def _persona_of(bundle: Bundle, persona: str) -> str:
    """Return `consumer` or `provider`.

    Raises:
        BundleError: Neither `persona`, nor `lifecycle_stage`, nor requests in token.csv tell it.
    """
    run = bundle.run
    declared, stage = text(run, "persona"), text(run, "lifecycle_stage")
    if declared in {"consumer", "provider"}:
        return declared
    if stage in _PROVIDER_STAGES:
        return "provider"
    if stage == "inference" or (not persona and bundle["token"]):
        return "consumer"
    if persona:
        return persona
    neither = f"SCI for AI keeps consumer and provider apart, and run {text(run, 'run_id')} is neither"
    raise BundleError(f"{neither}: --set persona=consumer or --set persona=provider")


def _sci_ai_section(
    view: str, runs: Sequence[CountedBundle], left_out: Sequence[str], flops: float | None
) -> Iterator[str]:
    unclear = [text(bundle.run, "run_id") for bundle, share in runs if share.state not in ADDED]
    gaps = [*left_out, *(f"run {name} may share devices with others, which are not identified" for name in unclear)]
    grams = (None, None) if gaps else (_sum_g(runs, "usage", "location"), _sum_g(runs, "embodied", "na"))
    terms = CarbonTerms(*grams)
    units, refused = _consumer_units(runs) if view == "consumer" else _provider_units(runs, flops)
    if not gaps and terms.operational_g is None:
        gaps.append("no grid was named for all of the runs, so the operational term is unknown")
    if terms.embodied_g is None and not left_out and not unclear:
        gaps.append("the embodied term shall be included, and the runs have no embodied factors")
    yield from markdown_table(
        ("Functional unit", "Values", "Count", "Operational, gCO2e", "Embodied, gCO2e", "Score, gCO2e per unit", "Why"),
        (
            (
                escape_markdown(unit.label),
                unit.basis,
                format_figure(unit.count, 6),
                *(
                    UNKNOWN if (rate_g := unit.rate_g(term_g)) is None else format_figure(rate_g, padded=True)
                    for term_g in (terms.operational_g, terms.embodied_g, terms.total_g)
                ),
                escape_markdown(unit.reason),
            )
            for unit in units
        ),
    )
    yield ""
    yield from (f"- no score: {escape_markdown(reason)}" for reason in (*gaps, *refused))
    yield from (f"- {line}" for line in _assumptions(view, runs))


def _sum_g(runs: Sequence[CountedBundle], phase: str, method: str) -> float | None:
    """Return the grams of one term, in proportion to the counted joules; None if a run has none."""
    rows = [(impact(bundle, "gwp", phase=phase, method=method), share.share) for bundle, share in runs]
    values = [None if row is None else (number(row, "value") or 0.0) * share for row, share in rows]
    return None if None in values else fsum(value for value in values if value is not None)


def _consumer_units(runs: Sequence[CountedBundle]) -> tuple[list[FunctionalUnit], list[str]]:
    tokens = [count_tokens(bundle) for bundle, _ in runs]
    if any(bundle["token"] for bundle, _ in runs):
        if None in tokens or not all(bundle["token"] for bundle, _ in runs):
            return [], ["the tokens of some requests are unknown"]
        counts = [count for count in tokens if count is not None]
        gross, effective, output = (sum(column) for column in zip(*counts, strict=True))
        units = [
            FunctionalUnit("token", gross, "gross", f"input and output; {CONSUMER_UNITS['token']}", 10**6),
            FunctionalUnit("token", effective, "effective", "without input that a cache already held", 10**6),
            FunctionalUnit(
                "output token", output, "effective", "generated; input is in the grams, not in the count", 10**6
            ),
        ]
        return [unit for unit in units if unit.count > 0], [] if gross else ["no token was counted"]
    names = {text(bundle.run, "functional_unit") for bundle, _ in runs}
    if len(names) > 1 or names == {"run"}:
        return [], [f"the runs counted {', '.join(sorted(names))}: count one unit of service, such as a token"]
    name = names.pop()
    count = _sum_of(runs, "functional_unit_count")
    if not count:
        return [], [f"no {name} was counted"]
    reason = CONSUMER_UNITS.get(name, "counted by the program; not among the examples of the standard")
    return [FunctionalUnit(name, count, _basis(runs), reason, 10**6 if name in {"token", "character"} else 1)], []


def _sum_of(runs: Sequence[CountedBundle], name: str) -> float | None:
    values = [number(bundle.run, name) for bundle, _ in runs]
    return None if None in values else fsum(value or 0.0 for value in values)


def _basis(runs: Sequence[CountedBundle]) -> str:
    return "; ".join(sorted({text(bundle.run, "functional_unit_basis") or "gross" for bundle, _ in runs}))


def _provider_units(runs: Sequence[CountedBundle], flops: float | None) -> tuple[list[FunctionalUnit], list[str]]:
    """Return what can be stated of the standard's three units."""
    units, refused = [], []
    flops = _sum_of(runs, "flops_total") if flops is None else flops
    if flops:
        units.append(FunctionalUnit("FLOP", flops, _basis(runs), "efficiency of algorithm and hardware", 10**15))
    tokens = _sum_of(runs, "functional_unit_count")
    if tokens and {text(bundle.run, "functional_unit") for bundle, _ in runs} == {"token"}:
        units.append(FunctionalUnit("training token", tokens, _basis(runs), "efficiency of the use of data", 10**3))
    for name, basis in (("params_total", "gross"), ("params_active", "effective")):
        counts = {number(bundle.run, name) for bundle, _ in runs}
        if len(counts) == 1 and (count := counts.pop()):
            units.append(FunctionalUnit("parameter", count, basis, "efficiency of the model's architecture", 10**9))
        elif len(counts - {None}) > 1:
            refused.append(f"per parameter: the runs have models of different sizes ({name})")
    if not units:
        refused.append("FLOP, training tokens and parameters are unknown: declare --set flops_total= or params_total=")
    return units, refused


def _assumptions(view: str, runs: Sequence[CountedBundle]) -> Iterator[str]:
    statuses = [text(bundle.run, "status") for bundle, _ in runs]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in sorted(set(statuses)))
    yield f"runs: {len(runs)} ({counts}); each joule is counted once, partial and aborted runs are included"
    included = sorted({name for bundle, _ in runs for name in text(bundle.run, "boundary").split(";")} - {""})
    outside = sorted({name for bundle, _ in runs for name in text(bundle.run, "boundary_excluded").split(";")} - {""})
    yield escape_markdown(f"inside: {', '.join(included)}; left out: {', '.join((*outside, 'network', 'storage'))}")
    if view == "consumer":
        yield "whole runs are included: loading and idle time of the model, too; gateways and the client are left out"
    else:
        yield "training is included as far as it was metered; data collection, design and deployment are left out"
    yield "gross: all units that were counted; effective: those that needed work, or that work on one token"
    terms = [
        (bundle, impact(bundle, "gwp", phase=phase, method=method))
        for bundle, _ in runs
        for phase, method in (("usage", "location"), ("embodied", "na"))
    ]
    factors = {text(factor, "factor_id"): factor for bundle, term in terms for factor in factors_of(bundle, term)}
    for factor in factors.values():
        figure = f"{text(factor, 'kind')} = {format_figure(number(factor, 'value'), 6)} {text(factor, 'unit')}"
        yield escape_markdown(f"{figure}, {text(factor, 'source_name')} {text(factor, 'data_year')}")
    if all(pue_of(bundle) is None for bundle, _ in runs):
        yield "no PUE: energy is that of the parts inside"
