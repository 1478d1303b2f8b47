-- One row a run, a device, a layer, an impact: what may be added, beside what says whether it may.
-- A run without its part of `run` is still being written and counts nowhere; a run that two writers put under two
-- projects at the same moment counts once. `lake_counts` is what the rule of torchwatt/audit/deduplication.py says of all runs
-- of the lake: `energy_j` is what no other run adds, `told_j` what the run itself says.

CREATE OR REPLACE VIEW v_run AS
SELECT
    run.project, strftime(run.date, '%Y-%m') AS month, run.date, run.run_id,
    coalesce(lake_model, '(unknown)') AS model,
    coalesce(lake_boundary, '(nothing metered)') AS boundary,
    coalesce(counts.adds, 'not compared') AS adds,
    counts.others AS others, coalesce(counts.identified, false) AS identified,
    status, coalesce(counts.seconds, duration_s) AS duration_s, duration_s AS told_s,
    functional_unit AS unit,
    CASE WHEN counts.adds IN ('copy', 'part of a job') THEN NULL ELSE functional_unit_count END AS units,
    CASE WHEN counts.adds IS NULL OR counts.adds = 'yes' THEN energy_it_j ELSE counts.energy_j END AS energy_j,
    energy_it_j AS told_j, energy_it_provenance AS provenance,
    lake_measured_j * coalesce(counts.share, 1) AS measured_j, lake_modelled_j * coalesce(counts.share, 1) AS modelled_j,
    lake_location_g * coalesce(counts.share, 1) AS location_g, lake_location_basis AS location_basis,
    lake_market_g * coalesce(counts.share, 1) AS market_g, lake_market_basis AS market_basis,
    coalesce(counts.share, 1) AS share
FROM lake_run AS run
LEFT JOIN lake_counts AS counts ON counts.run_id = run.run_id AND counts.device_id = ''
QUALIFY row_number() OVER (PARTITION BY run.run_id ORDER BY run.project, run.date) = 1;

-- A device that does not count toward its run's total (a core inside its package) says so in `adds`.
CREATE OR REPLACE VIEW v_device AS
SELECT
    run.project, run.month, run.run_id,
    CASE WHEN NOT device.counted THEN 'inside another device' ELSE run.adds END AS adds,
    device.device_id, device.kind, coalesce(device.model, '(unknown)') AS device_model,
    coalesce(device.scope, '(unknown)') AS scope, run.duration_s,
    device.energy_j * coalesce(counts.share, 1) AS energy_j, device.energy_j AS told_j, device.provenance,
    -- Grams follow joules at the mean grams per joule of the run.
    CASE WHEN device.counted AND run.energy_j > 0 THEN run.location_g * device.energy_j * coalesce(counts.share, 1) / run.energy_j
        WHEN device.counted AND run.energy_j = 0 THEN run.location_g * 0 END AS location_g,
    run.location_basis
FROM lake_device AS device
JOIN v_run AS run ON run.run_id = device.run_id AND run.project = device.project AND run.date = device.date
LEFT JOIN lake_counts AS counts ON counts.run_id = device.run_id AND counts.device_id = device.device_id
WHERE device.energy_j IS NOT NULL OR device.counted;

CREATE OR REPLACE VIEW v_layer AS
SELECT
    run.project, run.month, run.model, run.run_id,
    CASE WHEN NOT layer.lake_counts THEN 'inside another device' ELSE run.adds END AS adds,
    split_part(layer.device_id, ':', 1) AS kind, layer.fqn, layer.phase,
    CASE WHEN run.adds IN ('copy', 'part of a job') THEN NULL ELSE layer.calls END AS calls,
    layer.time_self_s, layer.energy_self_j * coalesce(counts.share, 1) AS energy_j, layer.provenance,
    CASE WHEN layer.lake_counts AND run.energy_j > 0 THEN run.location_g * layer.energy_self_j * coalesce(counts.share, 1) / run.energy_j
        WHEN layer.lake_counts AND run.energy_j = 0 THEN run.location_g * 0 END AS location_g,
    run.location_basis
FROM lake_layer AS layer
JOIN v_run AS run ON run.run_id = layer.run_id AND run.project = layer.project AND run.date = layer.date
LEFT JOIN lake_counts AS counts ON counts.run_id = layer.run_id AND counts.device_id = layer.device_id;

CREATE OR REPLACE VIEW v_impact AS
SELECT
    run.project, run.month, run.boundary, run.adds, run.run_id, run.energy_j,
    impact.criterion, impact.phase, impact.accounting_method, impact.scenario,
    coalesce(impact.lake_basis, '') AS basis, coalesce(impact.ghg_scope, '') AS ghg_scope,
    -- What was embodied goes with time and not with joules; a total of both cannot be parted.
    CASE WHEN run.adds IN ('copy', 'part of a job') THEN 0 * impact.value
        WHEN run.adds <> 'shared' THEN impact.value
        WHEN impact.phase = 'usage' AND impact.criterion <> 'sci' THEN impact.value * run.share
        WHEN impact.phase = 'embodied' THEN impact.value * run.duration_s / nullif(run.told_s, 0) END AS value,
    impact.unit
FROM lake_impact AS impact
JOIN v_run AS run ON run.run_id = impact.run_id AND run.project = impact.project AND run.date = impact.date
WHERE impact.subject = 'run';
