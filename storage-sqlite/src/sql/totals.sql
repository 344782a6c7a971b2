-- Number and extent of the sealed samples of every series, and the end of its last block.
UNION ALL
SELECT 3, t.series_id, t.oldest_ms, b.end_ms, t.count, NULL, NULL, NULL, NULL, b.last,
       b.has_metadata, NULL
FROM (SELECT series_id, min(start_ms) AS oldest_ms, max(start_ms) AS last_ms, sum(count) AS count
      FROM blocks GROUP BY series_id) AS t
JOIN blocks AS b ON b.series_id = t.series_id AND b.start_ms = t.last_ms
