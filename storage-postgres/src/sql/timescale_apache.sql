-- The samples as a hypertable: a chunk a day, made when it is needed. Every edition has this.
-- Metadata is JSON as text: compressed, equal values become one, and to jsonb 1 and 1.0 are equal.
CREATE TABLE samples (
    series_id bigint NOT NULL,
    ts timestamptz NOT NULL,
    value double precision NOT NULL,
    metadata text COLLATE "C",
    PRIMARY KEY (series_id, ts)
);
SELECT {timescaledb}.create_hypertable(
    'samples', {timescaledb}.by_range('ts', interval '1 day'), create_default_indexes => false);
