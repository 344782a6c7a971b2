-- Version 1. Run once, in one transaction, with the schema first in the search path.

-- One row: what this schema is, and what handles in other processes must know.
CREATE TABLE state (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version integer NOT NULL,
    -- Counts prunes that took partitions or series away: what a handle remembers holds for one value.
    generation bigint NOT NULL DEFAULT 0,
    -- A prune is half done: the extents in `days` and the marks in `series` are not exact.
    prune_pending boolean NOT NULL DEFAULT false,
    -- Whether `samples` is a hypertable of TimescaleDB.
    hypertable boolean NOT NULL
);

-- Names, compared byte by byte. Rows are never removed, ids never given again.
CREATE TABLE series (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    server_id text COLLATE "C" NOT NULL,
    metric_type text COLLATE "C" NOT NULL,
    -- A prune took its last sample away.
    emptied boolean NOT NULL DEFAULT false,
    UNIQUE (server_id, metric_type)
);

-- How many samples each day (UTC) holds and their extent, added up over the slots. Each handle
-- writes to a slot of its own, so that commits do not wait for each other.
CREATE TABLE days (
    day date NOT NULL,
    slot smallint NOT NULL,
    samples bigint NOT NULL,
    oldest timestamptz NOT NULL,
    newest timestamptz NOT NULL,
    -- A prune took samples of this day: `oldest` has to be looked up again.
    stale boolean NOT NULL DEFAULT false,
    PRIMARY KEY (day, slot)
) WITH (fillfactor = 50);

-- The partitions of `samples` and what they hold, bounds half-open.
CREATE TABLE partitions (
    name name PRIMARY KEY,
    low timestamptz NOT NULL,
    high timestamptz NOT NULL
);
