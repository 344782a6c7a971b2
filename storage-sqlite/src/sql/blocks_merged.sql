-- Blocks of the series ?3 that reach into [?4, ?5): those that the range cuts, with their payloads;
-- all others as one row, as if they were one block without a payload. Where a sum among them is out
-- of bounds, so is theirs.
--
-- Blocks are disjoint, so of those that start in the range the last alone can end outside. The
-- others start before it: their ends, of which there may be thousands, need not be read.
UNION ALL
SELECT 3, b.series_id, b.start_ms, b.end_ms, b.count, b.min, b.max, b.sum, b.first, b.last,
       b.has_metadata, p.bytes
FROM blocks AS b LEFT JOIN payloads AS p ON p.id = b.payload_id
WHERE b.series_id = ?3
    AND b.start_ms IN (
        (SELECT max(start_ms) FROM blocks WHERE series_id = ?3 AND start_ms < ?4),
        (SELECT max(start_ms) FROM blocks WHERE series_id = ?3 AND start_ms < ?5))
    AND b.end_ms >= ?4
    AND (b.start_ms < ?4 OR b.end_ms >= ?5)
UNION ALL
SELECT 3, ?3, oldest.start_ms, newest.end_ms, t.count, t.min, t.max, coalesce(t.sum, 9e999),
       oldest.first, newest.last, 0, NULL
FROM (SELECT start_ms, first FROM blocks
      WHERE series_id = ?3 AND start_ms >= ?4 AND start_ms < ?5 AND end_ms < ?5
      ORDER BY start_ms LIMIT 1) AS oldest
CROSS JOIN (SELECT end_ms, last FROM blocks
            WHERE series_id = ?3 AND start_ms >= ?4 AND start_ms < ?5 AND end_ms < ?5
            ORDER BY start_ms DESC LIMIT 1) AS newest
CROSS JOIN (SELECT sum(count) AS count, min(min) AS min, max(max) AS max, sum(sum) AS sum
            FROM blocks
            WHERE series_id = ?3 AND start_ms >= ?4 AND start_ms < (
                SELECT CASE WHEN end_ms < ?5 THEN ?5 ELSE start_ms END FROM blocks
                WHERE series_id = ?3 AND start_ms < ?5 ORDER BY start_ms DESC LIMIT 1)) AS t
