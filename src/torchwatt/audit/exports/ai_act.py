"""The energy block of the EU AI Act's model documentation (Annex XI, section 1, 2(d) and (e)).

The form of the Code of Practice requires energy in MWh with at least two significant figures, whether it was measured
or estimated, the method in about a hundred words, and the missing information. This fills in the values of one run; it
is not a statement of conformity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torchwatt.audit.exports.cells import SYSTEMATIC, counted, number, pue_of, text, when
from torchwatt.audit.exports.markdown import DASH, between, figure, plain, table
from torchwatt.audit.reader import Bundle

J_PER_MWH = 3.6e9
_MEASURED = frozenset({"measured", "derived", "apportioned"})


def ai_act_markdown(bundles: Sequence[Bundle]) -> bytes:
    """Return the block of one run, in Markdown."""
    (bundle,) = bundles
    return ("\n".join(_lines(bundle)) + "\n").encode()


def _lines(bundle: Bundle) -> Iterator[str]:
    run = bundle.run
    joules, provenance = number(run, "energy_it_j"), text(run, "energy_it_provenance")
    bounds = [None if (n := number(run, name)) is None else n / J_PER_MWH for name in SYSTEMATIC]
    gpus = counted(bundle, "gpu")
    hardware = ", ".join(f"{plain(text(row, 'model'))}" for row in gpus)
    rows = [
        ("Energy of this run (MWh)", figure(None if joules is None else joules / J_PER_MWH)),
        ("What another meter would say (MWh, 90 %)", between(*bounds)),
        ("Measured or estimated", DASH if joules is None else "measured" if provenance in _MEASURED else "estimated"),
        ("Compute of this run (FLOP)", figure(number(run, "flops_total"))),
        ("How the compute is known", text(run, "flops_provenance") or DASH),
        ("Wall time (s)", figure(number(run, "duration_s"), 6)),
        ("Period (UTC)", f"{when(run, 'started_at'):%Y-%m-%d %H:%M:%S} to {when(run, 'ended_at'):%Y-%m-%d %H:%M:%S}"),
        ("Accelerators", f"{len(gpus)}: {hardware}" if gpus else DASH),
        ("Stage", text(run, "lifecycle_stage") or DASH),
        ("Model", plain(text(run, "model_id"))),
    ]
    yield "## Energy consumption (EU AI Act, Annex XI, section 1, 2(d)-(e))"
    yield ""
    yield from table(("Item", "Value"), rows)
    yield ""
    yield f"**Method.** {_method(bundle)}"
    yield ""
    missing = list(_missing(bundle))
    yield f"**Missing information.** {'; '.join(missing) if missing else 'none'}."
    yield ""
    yield (
        "One run only: the form asks for the whole training, earlier and failed runs included. Inference is asked for "
        "as FLOP of a named benchmark, not as energy."
    )


def _method(bundle: Bundle) -> str:
    run = bundle.run
    if number(run, "energy_it_j") is None:
        return "Nothing could be metered on this machine."
    parts = [
        f"{text(row, 'device_id')} by {text(row, 'sensor')} ({text(row, 'provenance')})" for row in counted(bundle)
    ]
    coverage = number(run, "coverage_ratio")
    coverage_text = "" if coverage is None else f" Meters covered {coverage:.1%} of the run."
    excluded = text(run, "boundary_excluded").replace(";", ", ") or "nothing that was found"
    pue = pue_of(bundle)
    building = f"PUE {pue:g} is not in the energy above." if pue else "No PUE was given: cooling is not in it."
    return (
        f"Energy was taken by torchwatt {text(run, 'tool_version')} from the meters of the machine itself: "
        f"{plain(', '.join(parts))}.{coverage_text} "
        f"Not metered: {plain(excluded)}; network and storage. {building} "
        f"Every counter reading and the joules of each layer are in the audit bundle of run {text(run, 'run_id')}."
    )


def _missing(bundle: Bundle) -> Iterator[str]:
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
