-- What people and Grafana read.
CREATE VIEW metrics AS
SELECT s.server_id, p.ts AS "timestamp", s.metric_type, p.value,
    p.metadata::jsonb AS metadata
FROM samples p JOIN series s ON s.id = p.series_id;

CREATE VIEW servers AS
SELECT s.server_id, min(p.first_seen) AS first_seen, max(p.last_seen) AS last_seen
FROM series s
CROSS JOIN LATERAL (
    SELECT min(ts) AS first_seen, max(ts) AS last_seen FROM samples WHERE series_id = s.id
) p
WHERE p.first_seen IS NOT NULL
GROUP BY s.server_id;

COMMENT ON VIEW metrics IS 'One row per sample; times are UTC.';
COMMENT ON VIEW servers IS 'When each server was first and last seen.';
