"""Report of Software Carbon Intensity (ISO/IEC 21031:2024): SCI = ((E * I) + M) / R, with the required disclosures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torchwatt.audit.exports.cells import counted, factors_of, impact, kwh, number, pue_of, text, when
from torchwatt.audit.exports.markdown import DASH, between, figure, plain, table
from torchwatt.audit.reader import Bundle
from torchwatt.audit.schema import Row

# Provenance -> method in the report template of the Green Software Foundation: measured, sourced or modeled.
_METHOD = {"measured": "measured", "derived": "measured", "apportioned": "measured", "sourced": "sourced"}
_ASKED = ("organisation", "accountable_contact", "model_id", "model_revision")


def sci_markdown(bundles: Sequence[Bundle]) -> bytes:
    """Return the report of one run in Markdown; without embodied figures it states why there is no score."""
    (bundle,) = bundles
    return ("\n".join(_lines(bundle)) + "\n").encode()


def _lines(bundle: Bundle) -> Iterator[str]:
    run, score = bundle.run, impact(bundle, "sci", phase="total")
    unit = plain(text(run, "functional_unit"))
    yield f"# Software Carbon Intensity: {plain(text(run, 'name'))}"
    yield ""
    if score is None:
        yield f"**No score.** {_why(bundle)}"
    else:
        yield f"**{figure(number(score, 'value'))} gCO2e per {unit}**, 90 % interval " + between(
            number(score, "lo"), number(score, "hi")
        )
        yield ""
        dominant, weakest = (plain(text(score, name)) for name in ("dominant_uncertainty", "weakest_input"))
        yield f"Mostly from: {dominant}. Weakest input: {weakest}."
    yield ""
    yield from _terms(bundle)
    yield ""
    yield from _boundary(bundle)
    yield ""
    yield from _coefficients(bundle, score)
    yield ""
    yield from _components(bundle)
    missing = [name for name in _ASKED if not text(run, name)]
    if missing:
        yield ""
        yield f"Not declared, though the template asks for it: {', '.join(missing)}."


def _why(bundle: Bundle) -> str:
    if impact(bundle, "gwp") is None:
        return "No grid was named, so there is no I; the energy is below."
    return "The standard says that M, the hardware's share, shall be included, and no embodied figures were given."


def _terms(bundle: Bundle) -> Iterator[str]:
    run, usage = bundle.run, impact(bundle, "gwp")
    embodied = impact(bundle, "gwp", phase="embodied", method="na")
    pue = pue_of(bundle)
    energy = kwh(run, "energy_it_j")
    rows = [
        ("E", "energy inside the boundary, kWh", figure(energy), _method(text(run, "energy_it_provenance"))),
        ("", "PUE", figure(pue), "declared or sourced; see below" if pue else "not given: E is that of the parts only"),
        ("E * I", "use, gCO2e, location-based", _value(usage), _method(text(usage, "weakest_input") if usage else "")),
        (
            "M",
            "hardware's share, gCO2e",
            _value(embodied),
            _method(text(embodied, "weakest_input") if embodied else ""),
        ),
        (
            "R",
            f"functional unit: {plain(text(run, 'functional_unit'))}",
            figure(number(run, "functional_unit_count"), 6),
            text(run, "functional_unit_provenance"),
        ),
    ]
    yield from table(("Term", "What", "Value", "Method"), rows)


def _value(row: Row | None) -> str:
    return DASH if row is None else figure(number(row, "value"))


def _method(provenance: str) -> str:
    return f"{_METHOD.get(provenance, 'modeled')} ({provenance})" if provenance else DASH


def _boundary(bundle: Bundle) -> Iterator[str]:
    run = bundle.run
    yield "## Boundary and span"
    yield ""
    yield f"- inside: {plain(text(run, 'boundary').replace(';', ', '))}"
    yield f"- left out: {plain(text(run, 'boundary_excluded').replace(';', ', '))}; network and storage"
    start, end = when(run, "started_at"), when(run, "ended_at")
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
            figure(number(f, "value"), 6),
            plain(text(f, "unit")),
            between(number(f, "lo"), number(f, "hi")),
            plain(text(f, "source_name")),
            text(f, "data_year") or DASH,
            plain(text(f, "basis")),
            text(f, "factor_id"),
        )
        for f in used
    )
    yield from table(("Name", "Value", "Unit", "Range", "Source", "Year", "Basis", "Row of factor.csv"), rows)


def _components(bundle: Bundle) -> Iterator[str]:
    yield "## Components"
    yield ""
    rows = []
    for device in counted(bundle):
        name = text(device, "device_id")
        grams = impact(bundle, "gwp", subject=f"device:{name}")
        rows.append(
            (
                name,
                plain(text(device, "model")),
                figure(kwh(device, "energy_j")),
                _value(grams),
                text(device, "provenance"),
            )
        )
    total = (("all", "", figure(kwh(bundle.run, "energy_it_j")), _value(impact(bundle, "gwp")), ""),)
    yield from table(("Component", "Model", "kWh", "gCO2e in use", "Known"), (*rows, *total))
