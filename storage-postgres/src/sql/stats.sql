-- Exact while no prune is half done, by counting otherwise.
SELECT (SELECT coalesce(sum(samples), 0)::bigint FROM days),
       CASE WHEN prune_pending
            THEN (SELECT count(*) FROM series s
                  WHERE EXISTS (SELECT FROM samples WHERE series_id = s.id))
            ELSE (SELECT count(*) FROM series WHERE NOT emptied)
       END,
       CASE WHEN prune_pending THEN (SELECT min(ts) FROM samples)
            ELSE (SELECT min(oldest) FROM days)
       END,
       CASE WHEN prune_pending THEN (SELECT max(ts) FROM samples)
            ELSE (SELECT max(newest) FROM days)
       END
FROM state
