-- Sums. What may not be added stands in rows of its own: another boundary, another unit, another accounting method,
-- runs that nobody can tell apart from others, devices inside others. Runs that share devices with others are rows too:
-- their `energy_j` is what no other run adds, so that the sum over all rows has each joule once; `told_j` is what they say. What is unknown is counted (`n_unknown`) and adds nothing; a sum of nothing
-- known is empty, never 0. A rate is the sum of joules over the sum of units of the same runs, never a mean of rates.
-- fsum is DuckDB's compensated sum.

CREATE OR REPLACE MACRO run_rollup(by_month, by_model) AS TABLE
SELECT
    project,
    CASE WHEN by_month THEN month END AS month,
    CASE WHEN by_model THEN model END AS model,
    boundary, adds,
    count(*) AS runs,
    count(*) FILTER (energy_j IS NULL) AS n_unknown,
    count(*) FILTER (status <> 'complete') AS n_partial,
    count(*) FILTER (NOT identified) AS n_unidentified,
    fsum(duration_s) / 3600 AS hours,
    fsum(energy_j) AS energy_j,
    fsum(told_j) AS told_j,
    fsum(measured_j) / nullif(fsum(energy_j), 0) AS measured_share,
    fsum(modelled_j) / nullif(fsum(energy_j), 0) AS modelled_share,
    unit,
    fsum(units) AS units,
    -- Runs that share joules have a rate together: not where one of them is in another row.
    CASE WHEN list_has_all(list(run_id), coalesce(flatten(list(others) FILTER (others IS NOT NULL)), []))
        THEN fsum(energy_j) FILTER (units > 0) / nullif(fsum(units) FILTER (energy_j IS NOT NULL), 0) END AS j_per_unit,
    -- Grams of one basis only: lifecycle and direct are different quantities.
    CASE WHEN count(DISTINCT location_basis) <= 1 THEN fsum(location_g) END AS location_g,
    count(*) FILTER (location_g IS NULL) AS n_location_unknown,
    string_agg(DISTINCT location_basis, ', ' ORDER BY location_basis) AS location_basis,
    CASE WHEN count(DISTINCT market_basis) <= 1 THEN fsum(market_g) END AS market_g,
    count(*) FILTER (market_g IS NULL) AS n_market_unknown,
    string_agg(DISTINCT market_basis, ', ' ORDER BY market_basis) AS market_basis
FROM v_run
GROUP BY ALL;

CREATE OR REPLACE VIEW v_project AS
SELECT * EXCLUDE (month, model) FROM run_rollup(false, false) ORDER BY project, adds DESC, energy_j DESC NULLS LAST, boundary, unit;

CREATE OR REPLACE VIEW v_month AS
SELECT * EXCLUDE (model) FROM run_rollup(true, false) ORDER BY project, month, adds DESC, energy_j DESC NULLS LAST, boundary, unit;

CREATE OR REPLACE VIEW v_model AS
SELECT * FROM run_rollup(true, true) ORDER BY project, month, adds DESC, energy_j DESC NULLS LAST, model, boundary, unit;

CREATE OR REPLACE VIEW v_device_month AS
SELECT
    project, month, kind, device_model, scope, adds,
    count(DISTINCT run_id) AS runs,
    count(*) AS devices,
    count(*) FILTER (energy_j IS NULL) AS n_unknown,
    fsum(duration_s) / 3600 AS device_hours,
    fsum(energy_j) AS energy_j,
    coalesce(fsum(energy_j) FILTER (provenance = 'measured'), 0) / nullif(fsum(energy_j), 0) AS measured_share,
    coalesce(fsum(energy_j) FILTER (provenance = 'modelled'), 0) / nullif(fsum(energy_j), 0) AS modelled_share,
    CASE WHEN count(DISTINCT location_basis) <= 1 THEN fsum(location_g) END AS location_g,
    count(*) FILTER (location_g IS NULL) AS n_location_unknown
FROM v_device
GROUP BY ALL
ORDER BY project, month, adds DESC, energy_j DESC NULLS LAST, kind, device_model, scope;

CREATE OR REPLACE VIEW v_layer_month AS
SELECT
    project, month, model, kind, fqn, phase, adds,
    count(DISTINCT run_id) AS runs,
    sum(calls)::BIGINT AS calls,
    fsum(time_self_s) AS time_self_s,
    fsum(energy_j) AS energy_j,
    CASE WHEN any_value(adds) <> 'shared' THEN fsum(energy_j) FILTER (calls > 0) / nullif(sum(calls), 0) END AS j_per_call,
    coalesce(fsum(energy_j) FILTER (provenance = 'measured'), 0) / nullif(fsum(energy_j), 0) AS measured_share,
    coalesce(fsum(energy_j) FILTER (provenance = 'modelled'), 0) / nullif(fsum(energy_j), 0) AS modelled_share,
    CASE WHEN count(DISTINCT location_basis) <= 1 THEN fsum(location_g) END AS location_g,
    count(*) FILTER (location_g IS NULL) AS n_location_unknown
FROM v_layer
GROUP BY ALL
ORDER BY project, month, adds DESC, energy_j DESC, model, kind, fqn, phase;

-- For a Scope 2 report: location- and market-based totals side by side, in MWh and tonnes, one scenario a row.
CREATE OR REPLACE VIEW v_scope2_month AS
SELECT
    project, month, accounting_method, basis, ghg_scope, scenario, boundary, adds,
    count(*) AS runs,
    fsum(energy_j) / 3.6e9 AS energy_mwh,
    fsum(value) / 1e6 AS t_co2e
FROM v_impact
WHERE criterion = 'gwp' AND phase = 'usage' AND accounting_method IN ('location', 'market')
GROUP BY ALL
ORDER BY project, month, accounting_method, basis, ghg_scope, scenario, adds DESC, boundary;
