-- Adds to the days those pending samples that replace none, and says how many they are. Runs before
-- they are stored, and with the lock of the writers held alone, so that nobody stores them
-- meanwhile. OFFSET 0 keeps the look-up a look-up, whatever the planner thinks of a table without
-- statistics.
WITH counted AS MATERIALIZED (
    SELECT day, count(*) FILTER (WHERE fresh) AS samples, min(ts) AS oldest, max(ts) AS newest
    FROM (
        SELECT (p.ts AT TIME ZONE 'UTC')::date AS day, p.ts,
               (SELECT true FROM samples s
                WHERE s.series_id = p.series_id AND s.ts = p.ts OFFSET 0) IS NULL AS fresh
        FROM pg_temp.storage_pending p
    ) pending
    GROUP BY day
), added AS (
    INSERT INTO days (day, slot, samples, oldest, newest)
    SELECT day, $1, samples, oldest, newest FROM counted ORDER BY day
    ON CONFLICT (day, slot) DO UPDATE
    SET samples = days.samples + EXCLUDED.samples,
        oldest = least(days.oldest, EXCLUDED.oldest),
        newest = greatest(days.newest, EXCLUDED.newest)
)
SELECT coalesce(sum(samples), 0)::bigint FROM counted
