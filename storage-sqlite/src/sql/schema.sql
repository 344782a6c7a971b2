-- Version 1. One dictionary, one journal, blocks with their payloads beside them, one row of state.

CREATE TABLE series (
    id          INTEGER PRIMARY KEY,
    server_id   TEXT NOT NULL,
    metric_type TEXT NOT NULL,
    UNIQUE (server_id, metric_type)
) STRICT;

-- What was committed and is not sealed yet, a row per commit. An id never comes back, because every
-- handle remembers the last one it has seen: a new row's is above those of all rows and above
-- sealed_id. (AUTOINCREMENT would do the same, and write one more page with every commit.)
CREATE TABLE journal (
    id      INTEGER PRIMARY KEY,
    min_ms  INTEGER NOT NULL,
    max_ms  INTEGER NOT NULL,
    rows    INTEGER NOT NULL,
    payload BLOB NOT NULL
) STRICT;

-- The samples of a series between two times, both included; disjoint in time per series. The
-- summaries stand apart from the payloads so that a year of them is a few dozen pages.
CREATE TABLE blocks (
    series_id    INTEGER NOT NULL,
    start_ms     INTEGER NOT NULL,
    end_ms       INTEGER NOT NULL,
    count        INTEGER NOT NULL,
    min          REAL NOT NULL,
    max          REAL NOT NULL,
    sum          REAL NOT NULL,
    first        REAL NOT NULL,
    last         REAL NOT NULL,
    has_metadata INTEGER NOT NULL,
    payload_id   INTEGER NOT NULL,
    PRIMARY KEY (series_id, start_ms)
) STRICT, WITHOUT ROWID;

CREATE TABLE payloads (
    id    INTEGER PRIMARY KEY,
    bytes BLOB NOT NULL
) STRICT;

-- Journal rows up to sealed_id are in blocks, for every series. While a seal is under way, those
-- up to sealing_id are in blocks too, for the series below sealing_next. version changes with
-- every change of blocks.
CREATE TABLE state (
    one          INTEGER PRIMARY KEY CHECK (one = 1),
    sealed_id    INTEGER NOT NULL,
    sealing_id   INTEGER NOT NULL,
    sealing_next INTEGER NOT NULL,
    version      INTEGER NOT NULL
) STRICT;

INSERT INTO state VALUES (1, 0, 0, 0, 0);
