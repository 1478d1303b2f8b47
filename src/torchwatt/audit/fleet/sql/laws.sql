-- What must hold in every lake; each statement returns the runs for which it does not: run_id, expected, found.

-- PARTS: a run has all the rows of the tables that its bundle had
SELECT told.run_id, told.name || '=' || told.expected AS expected, told.name || '=' || coalesce(have.n, 0) AS found
FROM (
    SELECT run_id, project, split_part(item, '=', 1) AS name, split_part(item, '=', 2)::BIGINT AS expected
    FROM (SELECT run_id, project, unnest(string_split(lake_rows, ';')) AS item FROM lake_run) WHERE item <> ''
) AS told
LEFT JOIN (
    SELECT 'device' AS name, run_id, project, count(*) AS n FROM lake_device GROUP BY ALL
    UNION ALL SELECT 'layer', run_id, project, count(*) FROM lake_layer GROUP BY ALL
    UNION ALL SELECT 'window', run_id, project, count(*) FROM lake_window GROUP BY ALL
    UNION ALL SELECT 'hourly', run_id, project, count(*) FROM lake_hourly GROUP BY ALL
    UNION ALL SELECT 'impact', run_id, project, count(*) FROM lake_impact GROUP BY ALL
    UNION ALL SELECT 'event', run_id, project, count(*) FROM lake_event GROUP BY ALL
) AS have ON have.name = told.name AND have.run_id = told.run_id AND have.project = told.project
WHERE told.name <> 'factor' AND told.expected <> coalesce(have.n, 0);

-- TWICE: a run is in the lake once
SELECT run_id, 'one project' AS expected, string_agg(project, ', ' ORDER BY project) AS found
FROM lake_run GROUP BY run_id HAVING count(*) > 1;

-- ORPHAN: a part of a run whose part of `run` is missing (an ingest that died: run it again)
SELECT DISTINCT run_id, 'a part of run' AS expected, 'none' AS found
FROM lake_device WHERE run_id NOT IN (SELECT run_id FROM lake_run);

-- TOTAL: a run's joules are those of its counting devices
SELECT run.run_id, coalesce(run.energy_it_j::VARCHAR, 'empty') AS expected, coalesce(have.joules::VARCHAR, 'empty') AS found
FROM lake_run AS run
LEFT JOIN (
    SELECT run_id, project, fsum(energy_j) AS joules FROM lake_device WHERE counted GROUP BY ALL
) AS have ON have.run_id = run.run_id AND have.project = run.project
WHERE (run.energy_it_j IS NULL) <> (have.joules IS NULL) OR abs(run.energy_it_j - have.joules) > 1e-9 * run.energy_it_j + 1e-9;

-- LAYERS: a counting device's joules are those of its layers
SELECT device.run_id, device.device_id || ' ' || device.energy_j AS expected, coalesce(have.joules::VARCHAR, 'empty') AS found
FROM lake_device AS device
LEFT JOIN (
    SELECT run_id, project, device_id, fsum(energy_self_j) AS joules FROM lake_layer GROUP BY ALL
) AS have ON have.run_id = device.run_id AND have.project = device.project AND have.device_id = device.device_id
JOIN lake_run AS run ON run.run_id = device.run_id AND run.project = device.project
WHERE device.counted
    AND (have.joules IS NULL OR abs(device.energy_j - have.joules) > 1e-9 * device.energy_j + 1e-9);

-- COPIES: the measured and modelled parts that `run` carries are those of its counting devices
SELECT run.run_id, run.lake_measured_j || ' measured, ' || run.lake_modelled_j || ' modelled' AS expected,
    have.measured_j || ' measured, ' || have.modelled_j || ' modelled' AS found
FROM lake_run AS run
JOIN (
    SELECT run_id, project,
        coalesce(fsum(energy_j) FILTER (provenance = 'measured'), 0) AS measured_j,
        coalesce(fsum(energy_j) FILTER (provenance = 'modelled'), 0) AS modelled_j
    FROM lake_device WHERE counted GROUP BY ALL
) AS have ON have.run_id = run.run_id AND have.project = run.project
WHERE abs(run.lake_measured_j - have.measured_j) > 1e-9 * have.measured_j + 1e-9
    OR abs(run.lake_modelled_j - have.modelled_j) > 1e-9 * have.modelled_j + 1e-9;

-- GRAMS: the grams that `run` carries are those of its impacts
SELECT run.run_id, run.lake_location_g::VARCHAR AS expected, impact.value::VARCHAR AS found
FROM lake_run AS run
LEFT JOIN lake_impact AS impact ON impact.run_id = run.run_id AND impact.project = run.project
    AND impact.subject = 'run' AND impact.criterion = 'gwp' AND impact.phase = 'usage'
    AND impact.accounting_method = 'location' AND impact.scenario = 'as_run'
WHERE run.lake_location_g IS DISTINCT FROM impact.value;
