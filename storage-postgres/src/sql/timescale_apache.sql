-- The samples as a hypertable: a chunk a day, made when it is needed. Every edition has this.
CREATE TABLE samples (
    series_id bigint NOT NULL,
    ts timestamptz NOT NULL,
    value double precision NOT NULL,
    metadata jsonb,
    PRIMARY KEY (series_id, ts)
);
SELECT {timescaledb}.create_hypertable(
    'samples', {timescaledb}.by_range('ts', interval '1 day'), create_default_indexes => false);
