-- Stores the pending samples over those of the same series and time; leaves equal ones alone.
INSERT INTO samples AS s (series_id, ts, value, metadata)
SELECT series_id, ts, value, metadata FROM pg_temp.storage_pending ORDER BY series_id, ts
ON CONFLICT (series_id, ts) DO UPDATE
SET value = EXCLUDED.value, metadata = EXCLUDED.metadata
-- As text: to jsonb 1 and 1.0 are equal.
WHERE (s.value, s.metadata::text) IS DISTINCT FROM (EXCLUDED.value, EXCLUDED.metadata::text)
