-- The first ?6 blocks of the series ?3 that reach into [?4, ?5), with their payloads.
UNION ALL
SELECT * FROM (
    SELECT 3, b.series_id, b.start_ms, b.end_ms, b.count, b.min, b.max, b.sum, b.first, b.last,
           b.has_metadata, p.bytes
    FROM blocks AS b LEFT JOIN payloads AS p ON p.id = b.payload_id
    WHERE b.series_id = ?3
        AND b.start_ms < ?5
        AND b.start_ms >= coalesce((SELECT max(start_ms) FROM blocks
                                    WHERE series_id = ?3 AND start_ms <= ?4), ?4)
        AND b.end_ms >= ?4
    ORDER BY b.start_ms LIMIT ?6)
