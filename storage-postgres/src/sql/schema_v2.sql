-- Version 2: record history beside the metrics.

-- Names of records, compared byte by byte. Rows are never removed, ids never given again.
CREATE TABLE record_names (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE
);

-- A row per value. Of two values of one time the larger id was stored later.
CREATE TABLE record_history (
    record_id bigint NOT NULL,
    stored_at timestamptz NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    value jsonb NOT NULL,
    PRIMARY KEY (record_id, stored_at, id)
);

-- What people read.
CREATE VIEW record_values AS
SELECT n.name AS record_name, h.stored_at, h.value
FROM record_history h JOIN record_names n ON n.id = h.record_id;

COMMENT ON VIEW record_values IS 'One row per value of a record; times are UTC.';
