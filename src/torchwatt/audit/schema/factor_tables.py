"""`factor` and `impact`: carbon factors, and the impacts computed with them."""

from __future__ import annotations

from torchwatt.audit.schema.table_schema import RUN_ID, Table, boolean, integer, number, provenance, string, timestamp

FACTOR_KINDS = (
    "grid_gwp", "grid_adpe", "grid_pe", "grid_wue", "pue", "wue", "embodied_gwp", "embodied_adpe", "embodied_pe",
    "lifetime", "share", "tdp", "estimator_coefficient", "equivalence", "residual_mix", "contract_gwp", "price",
)  # fmt: skip

FACTOR = Table(
    "factor",
    ("factor_id",),
    "the numbers about grid, building and hardware that impacts are made with",
    (
        string("factor_id", "kind and a hash of the content", required=True),
        string("kind", "what it is, and its name in a formula", required=True, values=FACTOR_KINDS),
        number("value", "", "in `unit`", required=True),
        string("unit", "UCUM", required=True),
        number("lo", "", "90 % interval, or the spread of two sources"),
        number("hi", "", "90 % interval, or the spread of two sources"),
        string(
            "basis", "what is inside",
            values=("lifecycle", "direct", "upstream", "combustion_only", "unknown"),
        ),
        string("gas", "CO2 alone, or all as CO2e", values=("CO2", "CO2e")),
        string(
            "perspective", "whose electricity",
            values=("production", "consumption", "marginal", "residual", "contract"),
        ),
        string("accounting_method", "GHG Protocol Scope 2", values=("location", "market")),
        string("zone", "country, or country/part"),
        integer("data_year", "a", "the year that the number is about"),
        string("source_name", "who published it", required=True),
        string("source_url", "where"),
        string("source_version", "package or file it was read from"),
        string("licence", "of the data"),
        string("coverage_note", "what is in it and what is not"),
        provenance("provenance", "how it is known", required=True),
        number("u", "", "standard uncertainty", minimum=0),
        string("distribution", "of lo..hi", values=("uniform", "normal", "triangular", "unknown")),
        string("gwp_set", "IPCC report of the warming potentials", values=("AR4", "AR5", "AR6", "unknown")),
        string("instrument", "contract behind a market-based number"),
        string("includes_td_losses", "losses of the grid inside", values=("yes", "no", "unknown")),
        string("zone_system", "of zone", values=("iso3166-1", "iso3166-2", "electricitymaps", "egrid", "biddingzone")),
        string("temporal_resolution", "how long it holds", values=("hour", "month", "year", "static")),
        timestamp("valid_from", "UTC"),
        timestamp("valid_to", "UTC, not included"),
        timestamp("retrieved_at", "UTC, when it was looked up"),
        string("source_sha256", "hash of the file it was read from"),
        boolean("is_estimated", "the source itself estimated it"),
        string("estimation_method", "how"),
        string("fallback_from", "what was asked for and not found"),
    ),
)  # fmt: skip

IMPACT = Table(
    "impact",
    ("run_id", "subject", "criterion", "phase", "accounting_method", "scenario"),
    "opinions about a grid and a year, re-computable from `formula`, the energy of the subject and the factors",
    (
        RUN_ID,
        string("subject", "run, device:<device_id>, window:<window_id> or layer:<fqn>", required=True),
        string("criterion", "what", required=True, values=("energy", "gwp", "adpe", "pe", "wcf", "cost", "sci")),
        string("phase", "of the life cycle", required=True, values=("usage", "embodied", "total")),
        number("value", "", "in `unit`", required=True),
        string("unit", "UCUM", required=True),
        number("lo", "", "90 % interval"),
        number("hi", "", "90 % interval"),
        string(
            "formula", "of numbers, + - * / ( ) and names: energy_j of the subject, duration_s, units of the run, "
            "share_ratio and reserved_s of the device, usage and embodied (values of the same subject), and the kinds "
            "of the factors (several of one kind: kind_1, kind_2, in the order of factor_ids; several with hours: the "
            "kind alone is their mean, weighted with the subject's joules of the hours)", required=True,
        ),
        string("factor_ids", "rows of factor", many=True, refers="factor.factor_id"),
        provenance("provenance", "how it is known", required=True),
        provenance("weakest_input", "the least known of what it is made of", required=True),
        string(
            "ghg_scope", "GHG Protocol; who runs on rented machines declares it",
            values=("scope2", "scope3_1", "scope3_2", "scope3_3", "na"),
        ),
        string(
            "accounting_method", "two totals side by side, never added", required=True,
            values=("location", "market", "na"),
        ),
        string("scenario", "as_run, or repriced:<name>", required=True),
        number("u", "", "standard uncertainty", minimum=0),
        number("per_unit_value", "", "value over run.functional_unit_count"),
        string("dominant_uncertainty", "the term that lo and hi mostly come from"),
    ),
)  # fmt: skip
