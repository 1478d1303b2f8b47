"""Report of Software Carbon Intensity (ISO/IEC 21031:2024): SCI = ((E * I) + M) / R, with the required disclosures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal

from torchwatt.audit.bundle import (
    SYSTEMATIC,
    Bundle,
    counted_devices,
    factors_of,
    impact,
    kwh,
    number,
    pue_of,
    text,
    timestamp,
)
from torchwatt.audit.schema import Row

DASH = "—"
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def escape_markdown(text: str) -> str:
    """Return untrusted text on one line with Markdown syntax escaped; a dash if empty."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split())) or DASH


def format_figure(value: float | None, digits: int = 3) -> str:
    """Return a number with `digits` significant figures and no exponent; a dash if unknown."""
    return DASH if value is None else format(Decimal(f"{value:.{digits}g}"), "f")


def format_interval(lo: float | None, hi: float | None) -> str:
    """Return an interval; a dash if unknown."""
    return DASH if lo is None or hi is None else f"{format_figure(lo)} to {format_figure(hi)}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; cells must already be escaped by `plain`."""
    lines = [f"| {' | '.join(header)} |", f"|{'|'.join(' --- ' for _ in header)}|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


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


J_PER_MWH = 3.6e9
_MEASURED = frozenset({"measured", "derived", "apportioned"})


def ai_act_markdown(bundles: Sequence[Bundle]) -> bytes:
    """Return the block of one run, in Markdown."""
    (bundle,) = bundles
    return ("\n".join(_act_lines(bundle)) + "\n").encode()


def _act_lines(bundle: Bundle) -> Iterator[str]:
    run = bundle.run
    joules, provenance = number(run, "energy_it_j"), text(run, "energy_it_provenance")
    bounds = [None if (n := number(run, name)) is None else n / J_PER_MWH for name in SYSTEMATIC]
    gpus = counted_devices(bundle, "gpu")
    hardware = ", ".join(f"{escape_markdown(text(row, 'model'))}" for row in gpus)
    rows = [
        ("Energy of this run (MWh)", format_figure(None if joules is None else joules / J_PER_MWH)),
        ("What another meter would say (MWh, 90 %)", format_interval(*bounds)),
        ("Measured or estimated", DASH if joules is None else "measured" if provenance in _MEASURED else "estimated"),
        ("Compute of this run (FLOP)", format_figure(number(run, "flops_total"))),
        ("How the compute is known", text(run, "flops_provenance") or DASH),
        ("Wall time (s)", format_figure(number(run, "duration_s"), 6)),
        (
            "Period (UTC)",
            f"{timestamp(run, 'started_at'):%Y-%m-%d %H:%M:%S} to {timestamp(run, 'ended_at'):%Y-%m-%d %H:%M:%S}",
        ),
        ("Accelerators", f"{len(gpus)}: {hardware}" if gpus else DASH),
        ("Stage", text(run, "lifecycle_stage") or DASH),
        ("Model", escape_markdown(text(run, "model_id"))),
    ]
    yield "## Energy consumption (EU AI Act, Annex XI, section 1, 2(d)-(e))"
    yield ""
    yield from markdown_table(("Item", "Value"), rows)
    yield ""
    yield f"**Method.** {_act_method(bundle)}"
    yield ""
    missing = list(_act_missing(bundle))
    yield f"**Missing information.** {'; '.join(missing) if missing else 'none'}."
    yield ""
    yield (
        "One run only: the form asks for the whole training, earlier and failed runs included. Inference is asked for "
        "as FLOP of a named benchmark, not as energy."
    )


def _act_method(bundle: Bundle) -> str:
    run = bundle.run
    if number(run, "energy_it_j") is None:
        return "Nothing could be metered on this machine."
    parts = [
        f"{text(row, 'device_id')} by {text(row, 'sensor')} ({text(row, 'provenance')})"
        for row in counted_devices(bundle)
    ]
    coverage = number(run, "coverage_ratio")
    coverage_text = "" if coverage is None else f" Meters covered {coverage:.1%} of the run."
    excluded = text(run, "boundary_excluded").replace(";", ", ") or "nothing that was found"
    pue = pue_of(bundle)
    building = f"PUE {pue:g} is not in the energy above." if pue else "No PUE was given: cooling is not in it."
    return (
        f"Energy was taken by torchwatt {text(run, 'tool_version')} from the meters of the machine itself: "
        f"{escape_markdown(', '.join(parts))}.{coverage_text} "
        f"Not metered: {escape_markdown(excluded)}; network and storage. {building} "
        f"Every counter reading and the joules of each layer are in the audit bundle of run {text(run, 'run_id')}."
    )


def _act_missing(bundle: Bundle) -> Iterator[str]:
    run = bundle.run
    if number(run, "energy_it_j") is None:
        yield "energy: nothing was metered"
    if number(run, "flops_total") is None:
        yield "compute in FLOP was not counted"
    for name in ("lifecycle_stage", "model_id", "organisation"):
        if not text(run, name):
            yield f"{name} was not declared"
    if text(run, "status") != "complete":
        yield f"the run is {text(run, 'status')}"
