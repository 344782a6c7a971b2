-- Jobs, the pipelines that they run, and their executions. Times are milliseconds since 1970, JSON is
-- text.

CREATE TABLE scheduled_jobs (
    id                 TEXT PRIMARY KEY NOT NULL,
    name               TEXT NOT NULL,
    pipeline           TEXT NOT NULL,
    cron_expr          TEXT NOT NULL,
    enabled            INTEGER NOT NULL,
    next_run           INTEGER,
    last_run           INTEGER,
    last_result        TEXT,
    -- Who runs it; all three or none.
    lease_execution_id TEXT,
    lease_worker       TEXT,
    lease_until        INTEGER,
    version            INTEGER NOT NULL,
    created_at         INTEGER NOT NULL,
    updated_at         INTEGER NOT NULL
) STRICT;

-- What a claim looks for: the job that has been due longest.
CREATE INDEX scheduled_jobs_due ON scheduled_jobs (coalesce(lease_until, next_run), id)
WHERE enabled = 1;

-- Jobs name them, but they need not be there.
CREATE TABLE pipelines (
    name        TEXT PRIMARY KEY NOT NULL,
    description TEXT NOT NULL,
    config      TEXT NOT NULL,
    version     INTEGER NOT NULL,
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE job_executions (
    id            TEXT PRIMARY KEY NOT NULL,
    job_id        TEXT NOT NULL REFERENCES scheduled_jobs (id) ON DELETE CASCADE,
    pipeline      TEXT NOT NULL,
    start_time    INTEGER NOT NULL,
    end_time      INTEGER,
    status        TEXT NOT NULL,
    error         TEXT,
    context       TEXT,
    steps         TEXT,
    triggered_by  TEXT NOT NULL,
    scheduled_for INTEGER,
    missed_runs   INTEGER NOT NULL,
    attempt       INTEGER NOT NULL,
    worker        TEXT
) STRICT;

CREATE INDEX job_executions_by_time ON job_executions (start_time, id);
CREATE INDEX job_executions_by_job ON job_executions (job_id, start_time, id);
