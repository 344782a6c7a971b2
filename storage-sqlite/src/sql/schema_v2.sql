-- Version 2: record history beside the metrics.

-- Names of records. Rows are never removed, so that what a handle remembers stays true.
CREATE TABLE record_names (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

-- A row per value. Of two values of one time the larger id was stored later. Times are milliseconds
-- since 1970.
CREATE TABLE record_history (
    id         INTEGER PRIMARY KEY,
    record_id  INTEGER NOT NULL,
    stored_at  INTEGER NOT NULL,
    value_json TEXT NOT NULL
) STRICT;

-- Every question goes by it; the id that ends each of its entries keeps the order of insertion.
CREATE INDEX record_history_by_time ON record_history (record_id, stored_at);

-- For people: SELECT * FROM record_values WHERE record_name = 'accuracy::vienna'.
CREATE VIEW record_values AS
SELECT n.name AS record_name, h.stored_at, h.value_json
FROM record_history AS h JOIN record_names AS n ON n.id = h.record_id;
