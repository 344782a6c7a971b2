-- Jobs, the pipelines that they run, and their executions. Ids and names are compared byte by byte.

CREATE TABLE scheduled_jobs (
    id text COLLATE "C" PRIMARY KEY,
    name text NOT NULL,
    pipeline text NOT NULL,
    cron_expr text NOT NULL,
    enabled boolean NOT NULL,
    next_run timestamptz,
    last_run timestamptz,
    last_result text,
    -- Who runs it; all three or none.
    lease_execution_id text,
    lease_worker text,
    lease_until timestamptz,
    version bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);

-- What a claim looks for: the job that has been due longest.
CREATE INDEX scheduled_jobs_due ON scheduled_jobs (coalesce(lease_until, next_run), id)
WHERE enabled;

-- Jobs name them, but they need not be there.
CREATE TABLE pipelines (
    name text COLLATE "C" PRIMARY KEY,
    description text NOT NULL,
    config jsonb NOT NULL,
    version bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);

-- Changed only while the row of the job is locked.
CREATE TABLE job_executions (
    id text COLLATE "C" PRIMARY KEY,
    job_id text COLLATE "C" NOT NULL REFERENCES scheduled_jobs (id) ON DELETE CASCADE,
    pipeline text NOT NULL,
    start_time timestamptz NOT NULL,
    end_time timestamptz,
    status text NOT NULL,
    error text,
    context jsonb,
    steps jsonb,
    triggered_by text NOT NULL,
    scheduled_for timestamptz,
    missed_runs bigint NOT NULL,
    attempt bigint NOT NULL,
    worker text
);

CREATE INDEX job_executions_by_time ON job_executions (start_time, id);
CREATE INDEX job_executions_by_job ON job_executions (job_id, start_time, id);
