-- One row a run, a device, a layer, an impact: what may be added, beside what says whether it may.
-- A run without its part of `run` is still being written and counts nowhere; a run that two writers put under two
-- projects at the same moment counts once.

CREATE OR REPLACE VIEW v_run AS
SELECT
    project, strftime(date, '%Y-%m') AS month, date, run_id,
    coalesce(lake_model, '(unknown)') AS model,
    coalesce(lake_boundary, '(nothing metered)') AS boundary,
    CASE WHEN lake_overlaps THEN 'overlapping' ELSE 'yes' END AS adds,
    status, duration_s,
    functional_unit AS unit, functional_unit_count AS units,
    energy_it_j AS energy_j, energy_it_provenance AS provenance,
    lake_measured_j AS measured_j, lake_modelled_j AS modelled_j,
    lake_location_g AS location_g, lake_location_basis AS location_basis,
    lake_market_g AS market_g, lake_market_basis AS market_basis
FROM lake_run
QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY project, date) = 1;

-- A device that does not count toward its run's total (a core inside its package) says so in `adds`.
CREATE OR REPLACE VIEW v_device AS
SELECT
    run.project, run.month, run.run_id,
    CASE WHEN NOT device.counted THEN 'inside another device' ELSE run.adds END AS adds,
    device.device_id, device.kind, coalesce(device.model, '(unknown)') AS device_model,
    coalesce(device.scope, '(unknown)') AS scope, run.duration_s,
    device.energy_j, device.provenance,
    -- Grams follow joules at the mean grams per joule of the run.
    CASE WHEN device.counted AND run.energy_j > 0 THEN run.location_g * device.energy_j / run.energy_j END AS location_g,
    run.location_basis
FROM lake_device AS device
JOIN v_run AS run ON run.run_id = device.run_id AND run.project = device.project AND run.date = device.date
WHERE device.energy_j IS NOT NULL OR device.counted;

CREATE OR REPLACE VIEW v_layer AS
SELECT
    run.project, run.month, run.model, run.run_id,
    CASE WHEN NOT layer.lake_counts THEN 'inside another device' ELSE run.adds END AS adds,
    split_part(layer.device_id, ':', 1) AS kind, layer.fqn, layer.phase,
    layer.calls, layer.time_self_s, layer.energy_self_j AS energy_j, layer.provenance,
    CASE WHEN layer.lake_counts AND run.energy_j > 0 THEN run.location_g * layer.energy_self_j / run.energy_j END AS location_g,
    run.location_basis
FROM lake_layer AS layer
JOIN v_run AS run ON run.run_id = layer.run_id AND run.project = layer.project AND run.date = layer.date;

CREATE OR REPLACE VIEW v_impact AS
SELECT
    run.project, run.month, run.boundary, run.adds, run.run_id, run.energy_j,
    impact.criterion, impact.phase, impact.accounting_method, impact.scenario,
    coalesce(impact.lake_basis, '') AS basis, coalesce(impact.ghg_scope, '') AS ghg_scope,
    impact.value, impact.unit
FROM lake_impact AS impact
JOIN v_run AS run ON run.run_id = impact.run_id AND run.project = impact.project AND run.date = impact.date
WHERE impact.subject = 'run';
