-- Version 3: events and projections beside metrics and record history.

-- One row: the first event that was not pruned, and the last that was appended. Who appends, prunes
-- or moves a checkpoint holds it locked until the end of the transaction. So numbers have no gap,
-- and transactions become visible in the order of their numbers.
CREATE TABLE event_state (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    first bigint NOT NULL,
    last bigint NOT NULL
);

INSERT INTO event_state (first, last) VALUES (1, 0);

-- Streams, compared byte by byte, each with the version of its last event. Rows are never removed.
CREATE TABLE event_streams (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    version bigint NOT NULL
);

CREATE TABLE events (
    sequence bigint PRIMARY KEY,
    stream_id bigint NOT NULL,
    version bigint NOT NULL,
    event_id text COLLATE "C",
    event_type text COLLATE "C" NOT NULL,
    stored_at timestamptz NOT NULL,
    payload jsonb NOT NULL
);

CREATE UNIQUE INDEX events_by_id ON events (event_id) WHERE event_id IS NOT NULL;

CREATE INDEX events_by_stream ON events (stream_id, sequence);

-- What people read.
CREATE VIEW event_log AS
SELECT e.sequence, s.name AS stream, e.version, e.event_id, e.event_type, e.stored_at, e.payload
FROM events e JOIN event_streams s ON s.id = e.stream_id;

COMMENT ON VIEW event_log IS 'One row per event, in the order of sequence; times are UTC.';

-- The last event that each projection has seen.
CREATE TABLE projections (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    checkpoint bigint NOT NULL
);

CREATE TABLE projection_rows (
    projection_id bigint NOT NULL,
    table_name text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    value jsonb NOT NULL,
    PRIMARY KEY (projection_id, table_name, key)
);

-- What people read: SELECT key, value ->> 'title' FROM projected WHERE table_name = 'projects'.
CREATE VIEW projected AS
SELECT p.name AS projection, r.table_name, r.key, r.value
FROM projection_rows r JOIN projections p ON p.id = r.projection_id;

COMMENT ON VIEW projected IS 'One row per row of a projection.';
