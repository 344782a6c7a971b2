-- Blocks of the series ?3 that reach into [?4, ?5): those that the range cuts, with their payloads;
-- all others as one row, as if they were one block without a payload. Where a sum among them is out
-- of bounds, so is theirs.
UNION ALL
SELECT 3, b.series_id, b.start_ms, b.end_ms, b.count, b.min, b.max, b.sum, b.first, b.last,
       b.has_metadata, p.bytes
FROM blocks AS b LEFT JOIN payloads AS p ON p.id = b.payload_id
WHERE b.series_id = ?3
    AND b.start_ms < ?5
    AND b.start_ms >= coalesce((SELECT max(start_ms) FROM blocks
                                WHERE series_id = ?3 AND start_ms <= ?4), ?4)
    AND b.end_ms >= ?4
    AND (b.start_ms < ?4 OR b.end_ms >= ?5)
UNION ALL
SELECT 3, ?3, t.start_ms, t.end_ms, t.count, t.min, t.max, t.sum,
       (SELECT first FROM blocks WHERE series_id = ?3 AND start_ms = t.start_ms),
       (SELECT last FROM blocks WHERE series_id = ?3 AND start_ms = t.last_ms),
       0, NULL
FROM (SELECT min(start_ms) AS start_ms, max(start_ms) AS last_ms, max(end_ms) AS end_ms,
             sum(count) AS count, min(min) AS min, max(max) AS max,
             CASE WHEN max(abs(sum)) > 1.7976931348623157e308 THEN 9e999 ELSE sum(sum) END AS sum
      FROM blocks
      WHERE series_id = ?3 AND start_ms >= ?4 AND start_ms < ?5 AND end_ms < ?5) AS t
WHERE t.count > 0
