-- The samples on plain PostgreSQL: partitions by time, made when they are needed.
CREATE TABLE samples (
    series_id bigint NOT NULL,
    ts timestamptz NOT NULL,
    value double precision NOT NULL,
    metadata jsonb,
    PRIMARY KEY (series_id, ts)
) PARTITION BY RANGE (ts);
