-- The tables of a lake, for DuckDB. By hand:  SET VARIABLE lake = '/data/lake';  .read lake.sql
-- `fleet sql LAKE` prints them with `lake_counts` (what each run adds beside all others) and the views that need it,
-- ready to be piped into `duckdb`.
CREATE OR REPLACE VIEW lake_run AS SELECT * FROM read_parquet(getvariable('lake') || '/run/*/*/*.parquet', hive_partitioning = true, hive_types = {'project': VARCHAR, 'date': DATE});
CREATE OR REPLACE VIEW lake_device AS SELECT * FROM read_parquet(getvariable('lake') || '/device/*/*/*.parquet', hive_partitioning = true, hive_types = {'project': VARCHAR, 'date': DATE});
CREATE OR REPLACE VIEW lake_layer AS SELECT * FROM read_parquet(getvariable('lake') || '/layer/*/*/*.parquet', hive_partitioning = true, hive_types = {'project': VARCHAR, 'date': DATE});
CREATE OR REPLACE VIEW lake_window AS SELECT * FROM read_parquet(getvariable('lake') || '/window/*/*/*.parquet', hive_partitioning = true, hive_types = {'project': VARCHAR, 'date': DATE});
CREATE OR REPLACE VIEW lake_hourly AS SELECT * FROM read_parquet(getvariable('lake') || '/hourly/*/*/*.parquet', hive_partitioning = true, hive_types = {'project': VARCHAR, 'date': DATE});
CREATE OR REPLACE VIEW lake_factor AS SELECT * FROM read_parquet(getvariable('lake') || '/factor/*/*/*.parquet', hive_partitioning = true, hive_types = {'project': VARCHAR, 'date': DATE});
CREATE OR REPLACE VIEW lake_impact AS SELECT * FROM read_parquet(getvariable('lake') || '/impact/*/*/*.parquet', hive_partitioning = true, hive_types = {'project': VARCHAR, 'date': DATE});
CREATE OR REPLACE VIEW lake_event AS SELECT * FROM read_parquet(getvariable('lake') || '/event/*/*/*.parquet', hive_partitioning = true, hive_types = {'project': VARCHAR, 'date': DATE});
