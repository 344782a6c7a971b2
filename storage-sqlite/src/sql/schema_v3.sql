-- Version 3: events and projections beside metrics and record history.

-- Streams, each with the version of the last event that was appended to it. Rows are never removed,
-- names never changed.
CREATE TABLE event_streams (
    id      INTEGER PRIMARY KEY,
    name    TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL
) STRICT;

-- The log. Numbers follow each other without a gap; AUTOINCREMENT, so that none comes back when all
-- are pruned. Times are milliseconds since 1970.
CREATE TABLE events (
    sequence   INTEGER PRIMARY KEY AUTOINCREMENT,
    stream_id  INTEGER NOT NULL,
    version    INTEGER NOT NULL,
    event_id   TEXT,
    event_type TEXT NOT NULL,
    stored_at  INTEGER NOT NULL,
    payload    TEXT NOT NULL
) STRICT;

CREATE UNIQUE INDEX events_by_id ON events (event_id) WHERE event_id IS NOT NULL;

-- Its entries end with the sequence number, hence one stream is read in the order of the log.
CREATE INDEX events_by_stream ON events (stream_id);

-- For people: SELECT * FROM event_log WHERE stream = 'thread-17'.
CREATE VIEW event_log AS
SELECT e.sequence, s.name AS stream, e.version, e.event_id, e.event_type, e.stored_at, e.payload
FROM events AS e JOIN event_streams AS s ON s.id = e.stream_id;

-- The last event that each projection has seen.
CREATE TABLE projections (
    id         INTEGER PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    checkpoint INTEGER NOT NULL
) STRICT;

CREATE TABLE projection_rows (
    projection_id INTEGER NOT NULL,
    table_name    TEXT NOT NULL,
    key           TEXT NOT NULL,
    value_json    TEXT NOT NULL,
    PRIMARY KEY (projection_id, table_name, key)
) STRICT, WITHOUT ROWID;

-- For people: SELECT key, value_json ->> 'title' FROM projected WHERE table_name = 'projects'.
CREATE VIEW projected AS
SELECT p.name AS projection, r.table_name, r.key, r.value_json
FROM projection_rows AS r JOIN projections AS p ON p.id = r.projection_id;
